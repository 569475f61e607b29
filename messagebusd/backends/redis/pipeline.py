"""Commands of many callers over one connection, sharing round trips.

What callers ask for within one turn of the loop, or while an answer is awaited, is sent together;
the next lot goes when all of it is answered. Commands are executed in the order in which they were
asked for.

A command that may have been executed is never sent twice: when the connection fails, those under
way fail with it. Sent again are only those of which the server said that it did not execute them:
because it has forgotten a script, or is another node of a cluster. If a later call of the same
script was executed meanwhile, the earlier one fails instead, for the sake of the order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from messagebusd.backends.redis.connection import Connection, Word, pack
from messagebusd.backends.redis.errors import code_of, explain, moved_to
from messagebusd.backends.redis.route import Route
from messagebusd.backends.redis.scripts import Script
from messagebusd.errors import StoreRefused, StoreUnavailable

# Commands that may wait or be under way, for all callers together.
MAX_COMMANDS = 10_000
# What is sent at a time, so that it can be answered in time.
BATCH_COMMANDS = 1000
BATCH_BYTES = 1024 * 1024
# How often a command is sent that the server does not execute: it has moved, and the new node does
# not know the script.
MAX_TRIES = 3
# Between two failed attempts to connect, in seconds: doubled each time.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class _Command:
    __slots__ = ("future", "packed", "script", "since", "tries")

    def __init__(
        self, packed: bytes, script: Script | None, since: float, future: asyncio.Future[Any]
    ) -> None:
        self.packed = packed
        self.script = script
        self.since = since
        self.future = future
        self.tries = 1

    def fail(self, reason: str, kind: type[StoreUnavailable] = StoreUnavailable) -> None:
        if not self.future.done():  # else its caller has gone
            self.future.set_exception(kind(reason))


class Pipeline:
    """See the module's docstring. All errors are StoreUnavailable.

    ``on_elsewhere`` is called when the server turns out not to be the right one (any more): it is a
    replica now, or another node of a cluster has the keys. Connections to it are no use. ``batch``
    is how many commands are sent together at most.
    """

    def __init__(
        self,
        route: Route,
        *,
        timeout: float,
        on_elsewhere: Callable[[str], None] = lambda reason: None,
        batch: int = BATCH_COMMANDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._route = route
        self._batch = batch
        self._timeout = timeout
        self._on_elsewhere = on_elsewhere
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: deque[_Command] = deque()
        # What was sent last: how many of it are answered, and when it went out.
        self._sent: Sequence[_Command] = ()
        self._answered = 0
        self._sent_at = 0.0
        self._unexecuted: list[_Command] = []
        self._move_to: str | None = None
        self._is_readonly = False
        self._flush_handle: asyncio.Handle | None = None
        self._watch_handle: asyncio.TimerHandle | None = None
        # After a failure: why, how long the pause grew, and when the next attempt may be.
        self._reason = ""
        self._pause = 0.0
        self._not_before = 0.0
        self._is_closed = False

    async def open(self) -> None:
        """Connect now, to find out whether that is possible."""
        self._attach(await self._route.connect())

    async def close(self) -> None:
        """Fail what waits, and disconnect."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._fail_all("the store is closed")
        for handle in (self._flush_handle, self._watch_handle):
            if handle is not None:
                handle.cancel()
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def disconnect(self, reason: str) -> None:
        """Give up the connection, if there is one; the next command makes another."""
        if self._connection is not None:
            self._connection.fail(reason)

    def run(self, *words: Word) -> asyncio.Future[Any]:
        """The answer to a command."""
        return self._submit(pack(words), None)

    def call(
        self, script: Script, keys: Sequence[Word], arguments: Sequence[Word]
    ) -> asyncio.Future[Any]:
        """What a script returns."""
        packed = pack(("EVALSHA", script.digest, len(keys), *keys, *arguments))
        return self._submit(packed, script)

    async def load(self, *scripts: Script) -> None:
        """Hand the server these scripts."""
        await asyncio.gather(*(self.run("SCRIPT", "LOAD", each.text) for each in scripts))

    def _submit(self, packed: bytes, script: Script | None) -> asyncio.Future[Any]:
        now = self._clock()
        command = _Command(packed, script, now, self._loop.create_future())
        if len(self._waiting) + len(self._sent) >= MAX_COMMANDS:
            command.fail("too many commands are waiting for the server")
        elif self._is_closed:
            command.fail("the store is closed")
        elif self._connection is None and self._connecting is None and now < self._not_before:
            command.fail(self._reason)
        else:
            self._waiting.append(command)
            if self._connection is not None:
                self._flush_soon()
            elif self._connecting is None:
                self._connect()
            if self._watch_handle is None:
                self._watch_handle = self._loop.call_later(self._timeout / 4, self._watch)
        return command.future

    # -- sending and receiving ---------------------------------------------------------------

    def _flush_soon(self) -> None:
        if self._flush_handle is None and not self._sent:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        if self._connection is None or self._sent:
            return
        waiting, size = self._waiting, 0
        batch: list[_Command] = []
        while waiting and size < BATCH_BYTES and len(batch) < self._batch:
            command = waiting.popleft()
            if not command.future.done():
                batch.append(command)
                size += len(command.packed)
        if batch:
            self._sent, self._answered, self._sent_at = batch, 0, self._clock()
            self._connection.send(b"".join([each.packed for each in batch]))

    def _on_answers(self, answers: list[Any]) -> None:
        sent = self._sent
        if self._answered + len(answers) > len(sent):
            self.disconnect("the server answers more than it was asked")
            return
        self._sent_at = self._clock()  # as long as answers come, the server is there
        for answer in answers:
            command = sent[self._answered]
            self._answered += 1
            if isinstance(answer, hiredis.ReplyError):
                self._on_error(command, str(answer))
                continue
            if self._unexecuted and command.script is not None:
                self._fail_overtaken(command.script)
            if not command.future.done():
                command.future.set_result(answer)
        if self._answered == len(sent):
            self._sent = ()
            self._finish()

    def _on_error(self, command: _Command, answer: str) -> None:
        code = code_of(answer)
        if code in ("NOSCRIPT", "MOVED") and command.tries < MAX_TRIES:
            command.tries += 1
            self._unexecuted.append(command)
            if code == "MOVED":
                self._move_to = moved_to(answer)
            return
        if code == "READONLY":
            self._is_readonly = True
        command.fail(explain(answer), StoreRefused if code == "WRONGTYPE" else StoreUnavailable)

    def _fail_overtaken(self, script: Script) -> None:
        for each in self._unexecuted:
            if each.script is script:
                each.fail(explain("NOSCRIPT"))
        self._unexecuted = [each for each in self._unexecuted if not each.future.done()]

    def _finish(self) -> None:
        """All that was sent is answered: prepare for what comes next."""
        if self._is_readonly:
            self._is_readonly = False
            reason = explain("READONLY")
            self._rest(reason)
            self._fail_all(reason)
            self.disconnect(reason)
            self._on_elsewhere(reason)
            return
        self._pause = 0.0
        again, self._unexecuted = self._unexecuted, []
        node, self._move_to = self._move_to, None
        self._waiting.extendleft(reversed(again))
        if node is not None and again:
            self._follow(node)
        elif again:
            self._reload({each.script for each in again if each.script is not None})
        # The callers that were answered just now come first, and may have more to ask.
        self._flush_soon()

    def _reload(self, scripts: set[Script]) -> None:
        for script in scripts:
            loaded = self._loop.create_future()
            # Should it fail, the call that needs the script says so.
            loaded.add_done_callback(lambda each: each.cancelled() or each.exception())
            packed = pack(("SCRIPT", "LOAD", script.text))
            self._waiting.appendleft(_Command(packed, None, self._clock(), loaded))

    def _follow(self, node: str) -> None:
        changed = self._route.redirect(node)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_lost = lambda reason: None
            connection.fail("moved")
        self._connect()
        if changed:
            self._on_elsewhere(explain("MOVED"))

    # -- the connection ----------------------------------------------------------------------

    def _connect(self) -> None:
        self._connecting = self._loop.create_task(self._make_connection())

    async def _make_connection(self) -> None:
        try:
            connection = await self._route.connect()
        except Exception as error:
            if not isinstance(error, StoreUnavailable):
                _log.exception("connecting failed")
            reason = str(error) if isinstance(error, StoreUnavailable) else "an internal error"
            self._connecting = None
            self._rest(reason)
            self._fail_all(reason)
        else:
            self._connecting = None
            self._attach(connection)

    def _attach(self, connection: Connection) -> None:
        self._connection = connection
        connection.on_answers = self._on_answers
        connection.on_lost = self._on_lost
        if not connection.is_open:
            self._on_lost("the server has closed the connection")
        self._flush_soon()

    def _on_lost(self, reason: str) -> None:
        self._connection = None
        had_work = bool(self._sent)
        for command in (*self._sent[self._answered :], *self._unexecuted):
            command.fail(reason)
        self._sent, self._unexecuted, self._move_to = (), [], None
        if had_work or self._pause:
            self._rest(reason)
            self._fail_all(reason)
        elif self._waiting:
            self._connect()

    def _rest(self, reason: str) -> None:
        """Make no connection for a moment: callers fail at once meanwhile."""
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) or FIRST_PAUSE_SECONDS
        self._not_before = self._clock() + self._pause * random.uniform(0.5, 1.0)
        self._reason = reason

    def _fail_all(self, reason: str) -> None:
        for command in (*self._sent[self._answered :], *self._unexecuted, *self._waiting):
            command.fail(reason)
        self._sent, self._unexecuted = (), []
        self._waiting.clear()

    def _watch(self) -> None:
        """Look a few times within the timeout whether somebody waits for too long."""
        self._watch_handle = None
        reason = "the server does not answer in time"
        too_old = self._clock() - self._timeout
        if self._sent and self._sent_at <= too_old:
            self.disconnect(reason)
        while self._waiting and self._waiting[0].since <= too_old:
            self._waiting.popleft().fail(reason)
        if self._sent or self._waiting:
            self._watch_handle = self._loop.call_later(self._timeout / 4, self._watch)
