"""Ask the host application who polls, as seldom and as briefly as it can be done (SPEC 5).

A 200 with valid JSON is an identity, a 4xx is the visitor's answer and passed on as it is, and
everything else is a failed lookup: then an older identity of the same visitor is used, or the poll
is told to come back later. Nobody becomes anonymous because something failed.

Polls that ask the same share one call. It belongs to nobody of them: one that goes away takes
nothing from the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol

from messagebusd.errors import LookupRefused, LookupUnavailable, LookupUnusable
from messagebusd.identity.answer import Answer, AnswerReader, Reply
from messagebusd.identity.base import Caller, Identity, IdentityLookup, LookupObserver
from messagebusd.identity.breaker import CircuitBreaker
from messagebusd.identity.cache import AnswerCache, Entry, Refusal
from messagebusd.identity.question import Question, Questions
from messagebusd.protocol.message import Id

# For each call that may be under way, so many wait for their turn; more would wait in vain.
WAITING_PER_CALL = 30
# How long it is remembered that a visitor's answers are for one poll only.
INDIVIDUAL_SECONDS = 30.0
LOG_EVERY_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Host(Protocol):
    """The application, as `application.Application` reaches it."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def ask(self, question: bytes) -> Reply: ...


class WebhookLookup(IdentityLookup):
    """See the module's docstring. Seconds: ``timeout`` is for one lookup altogether,
    ``stale_if_error`` says how long after its time an identity may still be used. ``clock`` is
    monotonic."""

    def __init__(
        self,
        host: Host,
        questions: Questions,
        reader: AnswerReader,
        observer: LookupObserver,
        *,
        timeout: float,
        stale_if_error: float,
        max_concurrency: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._questions = questions
        self._reader = reader
        self._observer = observer
        self._timeout = timeout
        self._stale_if_error = stale_if_error
        self._clock = clock
        self._cache = AnswerCache(clock)
        self._breaker = CircuitBreaker(clock, observer.lookup_paused)
        self._turns = asyncio.Semaphore(max_concurrency)
        self._waiting = 0
        self._max_waiting = max_concurrency * WAITING_PER_CALL
        self._calls: dict[bytes, asyncio.Task[Entry | LookupUnavailable]] = {}
        self._is_failing = False
        self._log_again_at = 0.0

    @property
    def is_paused(self) -> bool:
        return self._breaker.is_paused

    async def open(self) -> None:
        await self._host.open()

    async def close(self) -> None:
        calls = tuple(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._host.close()

    def forget(self, user_id: Id | None = None, site_id: str | None = None) -> None:
        self._cache.forget(user_id, site_id)

    async def identify(self, caller: Caller) -> Identity:
        question = self._questions.of(caller)
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            entry = await self._find(question, deadline)
        except LookupUnavailable:
            known = self._known(question)
            if known is None or not isinstance(known.said, Identity):
                raise
            self._observer.lookup_cached("stale")
            entry = known
        if isinstance(entry.said, Refusal):
            raise LookupRefused(entry.said.status, entry.said.body, entry.said.headers)
        assert entry.said is not None, "an answer"
        return entry.said

    def _known(self, question: Question) -> Entry | None:
        """The answer that counts for this visitor, fresh or not: the newest, but a fresh refusal
        of his own stands against what others were told."""
        entry = self._cache.get(question.key)
        if question.refusal_key == question.key:
            return entry
        refused = self._cache.get(question.refusal_key)
        if refused is None or entry is None:
            return refused or entry
        stands = self._cache.is_fresh(refused) or entry.moment < refused.moment
        return refused if stands else entry

    async def _find(self, question: Question, deadline: float) -> Entry:
        """The answer: a fresh one that is known, one that others wait for, or one of its own.

        There is no await between the last look at whether it is still valid and the return: an
        invalidation either is seen here, or finds the poll registered.
        """
        if question.bypasses:
            return await self._find_alone(question, deadline, "bypass")
        entry = self._known(question)
        if entry is not None and self._cache.is_fresh(entry):
            if entry.said is None:
                return await self._find_alone(question, deadline, "miss")
            self._observer.lookup_cached("hit")
            return entry
        call = self._calls.get(question.key)
        outcome = "miss" if call is None else "shared"
        while True:
            is_mine = call is None
            entry = await self._wait(call or self._start(question), deadline)
            if not is_mine and not _is_for(question, entry):
                return await self._find_alone(question, deadline, outcome)
            if self._counts(entry, question):
                self._observer.lookup_cached(outcome)
                return entry
            call = self._calls.get(question.key)

    async def _find_alone(self, question: Question, deadline: float, outcome: str) -> Entry:
        while True:
            entry = await self._call(question, deadline)
            if self._counts(entry, question):
                self._observer.lookup_cached(outcome)
                return entry

    def _counts(self, entry: Entry, question: Question) -> bool:
        """Whether an answer may be acted upon, or something newer says otherwise.

        A refusal that may be out of date may: its visitor comes back.
        """
        if isinstance(entry.said, Refusal):
            return True
        known = self._known(question)
        if known is not None and isinstance(known.said, Refusal) and known.moment > entry.moment:
            return False
        return self._cache.is_valid(entry)

    # -- calls -------------------------------------------------------------------------------

    def _start(self, question: Question) -> asyncio.Task[Entry | LookupUnavailable]:
        """A call that others can wait for as well."""
        call = asyncio.create_task(self._call_for_all(question))
        self._calls[question.key] = call
        return call

    async def _call_for_all(self, question: Question) -> Entry | LookupUnavailable:
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            return await self._call(question, deadline)
        except LookupUnavailable as error:
            return error
        finally:
            self._calls.pop(question.key, None)

    async def _wait(self, call: asyncio.Task[Entry | LookupUnavailable], deadline: float) -> Entry:
        try:
            async with asyncio.timeout_at(deadline):
                found = await asyncio.shield(call)
        except TimeoutError:
            raise self._too_late() from None
        if isinstance(found, LookupUnavailable):
            raise LookupUnavailable(str(found))  # each poll has one of its own
        return found

    async def _call(self, question: Question, deadline: float) -> Entry:
        """Ask, when it is this one's turn, and keep the answer. Raises LookupUnavailable."""
        if self._breaker.is_open:
            raise _left_alone()
        if self._waiting >= self._max_waiting:
            raise LookupUnavailable("too many lookups wait for their turn")
        try:
            async with asyncio.timeout_at(deadline):
                self._waiting += 1
                try:
                    await self._turns.acquire()
                finally:
                    self._waiting -= 1
        except TimeoutError:
            raise LookupUnavailable("too many lookups are under way") from None
        try:
            return await self._ask(question, deadline)
        finally:
            self._turns.release()

    async def _ask(self, question: Question, deadline: float) -> Entry:
        if not self._breaker.admit():
            raise _left_alone()
        moment, now = self._cache.next_moment(), self._clock()
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    reply = await self._host.ask(question.body())
            except TimeoutError:
                raise self._too_late() from None
            answer = self._reader.read(reply)
        except LookupUnusable as error:
            # Perhaps about one visitor only, who must not be able to close the door to all others.
            self._breaker.succeeded()
            self._note_failure(error)
            raise
        except LookupUnavailable as error:
            self._breaker.failed()
            self._note_failure(error)
            raise
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        self._note_success()
        return self._keep(question, answer, reply, moment, now)

    def _keep(
        self, question: Question, answer: Answer, reply: Reply, moment: int, now: float
    ) -> Entry:
        """Have others use the answer as far as they may; the answer for this poll."""
        said, fresh_until = answer.said, now + answer.ttl
        stale_until = fresh_until + self._stale_if_error
        key = question.refusal_key if isinstance(said, Refusal) else question.key
        entry = Entry(key, said, moment, answer.shared, fresh_until, stale_until, reply.size)
        if isinstance(said, Refusal):
            if said.status == HTTPStatus.TOO_MANY_REQUESTS:
                return entry  # which says nothing about who it is
            # It takes the place of an identity in any case; its text is for as long as it counts.
            short = Refusal(said.status, b"", ())
            self._cache.put(entry if answer.ttl else replace(entry, said=short, size=0))
        elif answer.shared:
            self._cache.put(entry)
        else:
            # In its place, that nothing of this visitor can be shared for a while.
            until = now + INDIVIDUAL_SECONDS
            self._cache.put(Entry(key, None, moment, False, until, until))
        return entry

    def _too_late(self) -> LookupUnavailable:
        return LookupUnavailable(f"no answer within {self._timeout:g} seconds")

    def _note_failure(self, error: LookupUnavailable) -> None:
        now = self._clock()
        if now >= self._log_again_at:  # one line tells as much as one for every poll
            self._log_again_at = now + LOG_EVERY_SECONDS
            self._is_failing = True
            _log.warning("lookups fail", extra={"reason": str(error)})

    def _note_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            _log.info("lookups are answered again")


def _is_for(question: Question, entry: Entry) -> bool:
    """Whether an answer to somebody else may be used for this one."""
    return entry.shared and entry.key in (question.key, question.refusal_key)


def _left_alone() -> LookupUnavailable:
    return LookupUnavailable("the application has failed repeatedly, and is left alone briefly")
