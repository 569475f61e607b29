"""Asking seldom and safely: with an application whose answers the tests hold back."""

import asyncio
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import LookupRefused, LookupUnavailable
from messagebusd.identity.answer import AnswerReader, Reply
from messagebusd.identity.breaker import FAILURES, LONGEST_PAUSE_SECONDS
from messagebusd.identity.question import Questions
from messagebusd.identity.webhook import WAITING_PER_CALL, WebhookLookup
from tests.support.clock import FakeClock
from tests.support.properties import examples
from tests.unit.identity.callers import Caller


class Call:
    """One question that reached the application."""

    def __init__(self, question, number):
        self.question = json.loads(question)
        self.cookie = self.question["headers"].get("cookie", "")
        self.number = number
        self.reply = asyncio.get_running_loop().create_future()

    def answer(self, body=None, status=200, headers=()):
        if not self.reply.done():
            content = json.dumps(body or {}).encode()
            self.reply.set_result(Reply(status, tuple(headers), content))

    def fail(self):
        if not self.reply.done():
            self.reply.set_exception(LookupUnavailable("away"))


class World:
    def __init__(self, *, timeout=30.0, ttl=30.0, stale=300.0, max_concurrency=100):
        self.clock = FakeClock(0.0)
        self.calls = []
        self.counted = Counter()
        self.paused = False
        self.lookup = WebhookLookup(
            self,
            Questions(["cookie", "user-agent"], ["user-agent"], ["x-present"]),
            AnswerReader("as_is", ttl),
            self,
            timeout=timeout,
            stale_if_error=stale,
            max_concurrency=max_concurrency,
            clock=self.clock,
        )

    # the host
    async def open(self):
        pass

    async def close(self):
        self.closed = True

    async def ask(self, question):
        call = Call(question, len(self.calls))
        self.calls.append(call)
        return await call.reply

    # the observer
    def lookup_cached(self, outcome):
        self.counted[outcome] += 1

    def lookup_paused(self, paused):
        self.paused = paused

    # polls
    def poll(self, cookie="_t=1", *headers, **caller):
        lines = [("Cookie", cookie)] if cookie else []
        return asyncio.create_task(self.lookup.identify(Caller(*lines, *headers, **caller)))

    async def settled(self):
        for _ in range(12):
            await asyncio.sleep(0)

    async def known(self, cookie="_t=1", body=None, **answer):
        """Have an answer known already."""
        poll = self.poll(cookie)
        await self.settled()
        self.calls[-1].answer(body or {"user_id": 1}, **answer)
        return await poll


async def test_polls_that_ask_the_same_share_one_call():
    world = World()
    polls = [world.poll() for _ in range(50)] + [world.poll("_t=2")]
    await world.settled()
    assert [call.cookie for call in world.calls] == ["_t=1", "_t=2"]
    world.calls[0].answer({"user_id": 1})
    world.calls[1].answer({"user_id": 2})
    found = [each.user_id for each in await asyncio.gather(*polls)]
    assert found == [1] * 50 + [2]
    assert world.counted == {"miss": 2, "shared": 49}


async def test_an_answer_is_used_until_its_time_is_over():
    world = World()
    await world.known(body={"user_id": 1, "cache_ttl": 60})
    world.clock.advance(59)
    assert (await world.poll()).user_id == 1
    world.clock.advance(1)
    poll = world.poll()
    await world.settled()
    world.calls[1].answer({"user_id": 2})
    assert (await poll).user_id == 2
    assert world.counted == {"miss": 2, "hit": 1}


async def test_a_poll_that_goes_away_takes_nothing_from_the_others():
    world = World()
    leader, follower = world.poll(), world.poll()
    await world.settled()
    leader.cancel()
    await world.settled()
    world.calls[0].answer({"user_id": 1})
    assert (await follower).user_id == 1
    assert len(world.calls) == 1
    with pytest.raises(asyncio.CancelledError):
        await leader


async def test_an_answer_that_nobody_waits_for_any_more_is_kept():
    world = World()
    poll = world.poll()
    await world.settled()
    poll.cancel()
    world.calls[0].answer({"user_id": 1})
    await world.settled()
    assert (await world.poll()).user_id == 1


@pytest.mark.parametrize(
    "body",
    [
        {"response_headers": {"Set-Cookie": "session=1"}},
        {"cache_ttl": 0},
    ],
    ids=["cookie", "no ttl"],
)
async def test_an_answer_for_one_visitor_goes_to_one_poll(body):
    world = World()
    polls = [world.poll("") for _ in range(5)]
    await world.settled()
    assert len(world.calls) == 1
    world.calls[0].answer({**body, "user_id": 0})
    await world.settled()
    assert len(world.calls) == 5
    for call in world.calls[1:]:
        call.answer({**body, "user_id": call.number})
    assert sorted([(await each).user_id for each in polls]) == [0, 1, 2, 3, 4]
    # Nor does anybody wait for another's answer now.
    more = [world.poll("") for _ in range(3)]
    await world.settled()
    assert len(world.calls) == 8
    for call in world.calls[5:]:
        call.answer({"user_id": call.number})
    assert sorted([(await each).user_id for each in more]) == [5, 6, 7]
    # Until it answers for all.
    assert (await world.poll("")).user_id == 7


async def test_the_cookie_of_a_poll_that_went_away_is_nobodys():
    world = World()
    leader, follower = world.poll(""), world.poll("")
    await world.settled()
    leader.cancel()
    await world.settled()
    world.calls[0].answer({"response_headers": {"Set-Cookie": "session=1"}})
    await world.settled()
    world.calls[1].answer({"response_headers": {"Set-Cookie": "session=2"}})
    assert (await follower).response_headers == (("set-cookie", "session=2"),)


async def test_a_refusal_with_a_cookie_is_for_one_poll():
    world = World()
    polls = [world.poll() for _ in range(3)]
    await world.settled()
    world.calls[0].answer(status=403, headers=[("Set-Cookie", "_t=del0")])
    await world.settled()
    for call in world.calls[1:]:
        call.answer(status=403, headers=[("Set-Cookie", f"_t=del{call.number}")])
    refusals = await asyncio.gather(*polls, return_exceptions=True)
    assert sorted(each.headers for each in refusals) == [
        (("set-cookie", f"_t=del{number}"),) for number in range(3)
    ]


@pytest.mark.parametrize(("status", "calls"), [(401, 1), (403, 1), (404, 2), (429, 2)])
async def test_refusals_that_are_kept_for_a_moment(status, calls):
    world = World()
    for _ in range(2):
        poll = world.poll()
        await world.settled()
        world.calls[-1].answer("no", status)
        with pytest.raises(LookupRefused) as caught:
            await poll
        assert (caught.value.status, caught.value.body) == (status, b'"no"')
    assert len(world.calls) == calls
    world.clock.advance(5)
    assert (await world.known()).user_id == 1


async def test_a_refusal_of_nobody_known_is_for_his_address_only():
    world = World()
    banned, other = world.poll("", remote_addr="192.0.2.66"), world.poll("")
    await world.settled()
    world.calls[0].answer("banned", 403)
    await world.settled()
    world.calls[1].answer({})
    assert (await other).user_id is None
    with pytest.raises(LookupRefused):
        await banned
    with pytest.raises(LookupRefused):
        await world.poll("", remote_addr="192.0.2.66")
    assert (await world.poll("")).user_id is None
    assert len(world.calls) == 2


async def test_polls_with_a_bypass_header_reach_the_application_each_by_itself():
    world = World()
    await world.known()
    present = ("X-Present", "true")
    polls = [world.poll("_t=1", present) for _ in range(3)]
    await world.settled()
    assert len(world.calls) == 4
    for call in world.calls[1:]:
        assert call.question["headers"]["x-present"] == "true"
        call.answer({"user_id": 10 + call.number})
    assert [(await each).user_id for each in polls] == [11, 12, 13]
    assert (await world.poll()).user_id == 13  # refreshed
    assert world.counted == {"miss": 1, "bypass": 3, "hit": 1}


async def test_an_old_identity_is_used_while_the_application_is_away():
    world = World()
    await world.known()
    for seconds in (30, 299):
        world.clock.advance(seconds - world.clock.now)
        for headers in ((), (("X-Present", "1"),)):
            poll = world.poll("_t=1", *headers)
            await world.settled()
            world.calls[-1].fail()
            assert (await poll).user_id == 1
    world.clock.advance(31)
    poll = world.poll()
    await world.settled()
    world.calls[-1].fail()
    with pytest.raises(LookupUnavailable):
        await poll
    assert world.counted["stale"] == 4


async def test_a_visitor_who_was_never_known_does_not_become_anonymous():
    world = World()
    await world.known("", {})
    world.clock.advance(40)
    poll = world.poll("_t=1")
    await world.settled()
    world.calls[-1].fail()
    with pytest.raises(LookupUnavailable):
        await poll


@pytest.mark.parametrize("headers", [(), [("Set-Cookie", "_t=del")]], ids=["", "cookie"])
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_an_identity_that_was_refused_is_never_used_again(status, headers):
    world = World()
    await world.known()
    world.clock.advance(30)
    poll = world.poll()
    await world.settled()
    world.calls[-1].answer("no", status, headers)
    with pytest.raises(LookupRefused):
        await poll
    world.clock.advance(6)
    poll = world.poll()
    await world.settled()
    world.calls[-1].fail()
    with pytest.raises(LookupUnavailable):
        await poll


async def test_an_identity_on_its_way_does_not_outrun_a_newer_refusal():
    world = World()
    slow = world.poll()
    await world.settled()
    quick = world.poll("_t=1", ("X-Present", "1"))
    await world.settled()
    world.calls[1].answer("no", 403)
    with pytest.raises(LookupRefused):
        await quick
    world.calls[0].answer({"user_id": 1})
    await world.settled()
    assert not slow.done()  # it asks again
    world.calls[2].fail()
    with pytest.raises(LookupUnavailable):
        await slow
    world.clock.advance(6)
    poll = world.poll()
    await world.settled()
    world.calls[3].fail()
    with pytest.raises(LookupUnavailable):
        await poll


async def test_a_visitor_who_polls_too_often_is_still_known():
    world = World()
    await world.known()
    world.clock.advance(30)
    poll = world.poll()
    await world.settled()
    world.calls[-1].answer("slow down", 429)
    with pytest.raises(LookupRefused):
        await poll
    poll = world.poll()
    await world.settled()
    world.calls[-1].fail()
    assert (await poll).user_id == 1


async def test_an_invalidation_reaches_what_is_known_and_what_is_under_way():
    world = World()
    await world.known()
    under_way = world.poll("_t=2")
    await world.settled()
    world.lookup.forget(1)
    world.calls[1].answer({"user_id": 1, "is_admin": True})
    await world.settled()
    assert not under_way.done()  # it asks again
    world.calls[2].answer({"user_id": 1})
    assert not (await under_way).is_admin
    world.poll("_t=1")
    await world.settled()
    assert len(world.calls) == 4


async def test_an_invalidation_of_somebody_else_costs_nothing():
    world = World()
    await world.known()
    under_way = world.poll("_t=2")
    await world.settled()
    world.lookup.forget(7)
    world.calls[1].answer({"user_id": 2})
    await under_way
    await world.poll()
    assert len(world.calls) == 2


async def test_what_was_invalidated_is_not_even_used_while_the_application_is_away():
    world = World()
    await world.known()
    world.lookup.forget(1)
    poll = world.poll()
    await world.settled()
    world.calls[-1].fail()
    with pytest.raises(LookupUnavailable):
        await poll


async def test_a_slow_application_is_not_waited_for_longer_than_allowed():
    world = World(timeout=0.05)
    poll = world.poll()
    with pytest.raises(LookupUnavailable, match="within"):
        await poll
    await world.known("_t=2")
    world.clock.advance(30)
    assert (await world.poll("_t=2")).user_id == 1


async def test_others_wait_for_their_turn():
    world = World(max_concurrency=2)
    polls = [world.poll(f"_t={number}") for number in range(4)]
    await world.settled()
    assert len(world.calls) == 2
    for number in range(4):
        world.calls[number].answer({"user_id": number})
        await world.settled()
    assert [(await each).user_id for each in polls] == [0, 1, 2, 3]


async def test_not_too_many_wait():
    world = World(max_concurrency=1)
    polls = [world.poll(f"_t={number}") for number in range(WAITING_PER_CALL + 2)]
    await world.settled()
    with pytest.raises(LookupUnavailable, match="wait for their turn"):
        await polls[-1]
    assert not any(each.done() for each in polls[:-1])
    await world.lookup.close()


async def test_who_waits_in_vain_is_no_failure_of_the_application():
    world = World(max_concurrency=1, timeout=0.05)
    polls = [world.poll(f"_t={number}") for number in range(FAILURES + 5)]
    await asyncio.gather(*polls, return_exceptions=True)
    assert not world.paused


async def test_an_application_that_fails_is_left_alone_then_tried_by_one():
    world = World()
    await world.known("_t=old")
    world.clock.advance(30)
    for number in range(FAILURES):
        poll = world.poll(f"_t={number}")
        await world.settled()
        world.calls[-1].fail()
        with pytest.raises(LookupUnavailable):
            await poll
    assert world.paused
    asked = len(world.calls)
    with pytest.raises(LookupUnavailable, match="left alone"):
        await world.poll()
    assert (await world.poll("_t=old")).user_id == 1
    assert len(world.calls) == asked
    world.clock.advance(LONGEST_PAUSE_SECONDS)
    trial, others = world.poll("_t=a"), [world.poll(f"_t={each}") for each in "bcd"]
    await world.settled()
    assert len(world.calls) == asked + 1
    assert all(isinstance(each.exception(), LookupUnavailable) for each in others)
    world.calls[-1].answer({"user_id": 5})
    assert (await trial).user_id == 5
    assert not world.paused


@pytest.mark.parametrize(
    ("status", "body"), [(500, {}), (302, {}), (200, {"user_id": ""}), (200, {"cache_ttl": -1})]
)
async def test_answers_about_one_visitor_keep_nobody_else_out(status, body):
    """Somebody who knows what the application fails at would lock everybody out."""
    world = World()
    for number in range(2 * FAILURES):
        poll = world.poll(f"poison={number}")
        await world.settled()
        world.calls[-1].answer(body, status=status)
        with pytest.raises(LookupUnavailable):
            await poll
    assert not world.paused
    assert (await world.known("_t=good", {"user_id": 3})).user_id == 3


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_answers_in_place_of_the_application_are_failures(status):
    world = World()
    for number in range(FAILURES):
        poll = world.poll(f"_t={number}")
        await world.settled()
        world.calls[-1].answer(status=status)
        await asyncio.gather(poll, return_exceptions=True)
    assert world.paused


async def test_closing_ends_what_is_under_way():
    world = World()
    poll = world.poll()
    await world.settled()
    await world.lookup.close()
    assert world.closed
    assert world.calls[0].reply.cancelled()
    with pytest.raises(asyncio.CancelledError):
        await poll


async def test_failures_are_logged_once_and_the_end_of_them_too(caplog):
    caplog.set_level("INFO")
    world = World()
    for _ in range(3):
        poll = world.poll()
        await world.settled()
        world.calls[-1].fail()
        with pytest.raises(LookupUnavailable):
            await poll
    await world.known("_t=2")
    await world.known("_t=3")
    assert [each.message for each in caplog.records] == [
        "lookups fail",
        "lookups are answered again",
    ]


# -- any order of events

VISITORS = {"": None, "_t=1": 1, "_t=1b": 1, "_t=2": 2}
REPLIES = ["identity", "cookie", "no ttl", "refusal", "too many", "error"]

polling = st.tuples(
    st.just("poll"), st.sampled_from(["_t=1", *VISITORS]), st.sampled_from([False, False, True])
)
replying = st.tuples(st.just("reply"), st.integers(0, 3), st.sampled_from(REPLIES))
others = st.one_of(
    st.tuples(st.just("forget"), st.sampled_from([None, 1, 1, 2])),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([1, 6, 31, 400])),
)
# What happens, and how many turns of the loop pass before the next.
steps = st.lists(
    st.tuples(st.one_of(polling, polling, replying, replying, others), st.sampled_from([0, 2, 9])),
    min_size=20,
    max_size=40,
)


class Truth:
    """What an application and its visitors would complain about."""

    def __init__(self):
        self.world = World(max_concurrency=3)
        self.time = 0
        self.forgotten = {None: 0, 1: 0, 2: 0}
        self.refused = dict.fromkeys(VISITORS, -1)
        self.cookies = Counter()
        self.asked_at = {}
        self.polls = []

    async def ask(self, question):
        call = Call(question, self.time)
        self.time += 1
        self.world.calls.append(call)
        reply = await call.reply
        refused = self.refused[call.cookie]
        if reply.status == 403:
            self.refused[call.cookie] = max(refused, call.number)
        elif reply.status == 200 and call.number > refused:
            self.refused[call.cookie] = -1  # let in again
        return reply

    async def poll(self, cookie, bypasses):
        headers = [("X-Present", "1")] if bypasses else []
        lines = [("Cookie", cookie)] if cookie else []
        try:
            found = await self.world.lookup.identify(Caller(*lines, *headers))
        except (LookupRefused, LookupUnavailable):
            return
        # No await since it was found: this is the moment at which a poll would be registered.
        assert found.user_id == VISITORS[cookie]
        [asked] = found.group_ids
        assert asked >= max(self.forgotten[found.user_id], self.forgotten[None])
        assert asked >= self.refused[cookie], "an identity from before a refusal"
        for name, value in found.response_headers:
            assert name == "set-cookie"
            self.cookies[value] += 1
            assert self.cookies[value] == 1, "a session of two visitors"

    def reply(self, call, kind):
        if call.reply.done():
            return
        body = {"user_id": VISITORS[call.cookie], "group_ids": [call.number]}
        if kind == "identity":
            call.answer(body)
        elif kind == "cookie":
            call.answer({**body, "response_headers": {"Set-Cookie": f"s={call.number}"}})
        elif kind == "no ttl":
            call.answer({**body, "cache_ttl": 0})
        elif kind == "refusal":
            call.answer("no", 403)
        elif kind == "too many":
            call.answer("no", 429)
        else:
            call.fail()

    async def reply_to_all(self, kind):
        await self.world.settled()
        while waiting := [each for each in self.world.calls if not each.reply.done()]:
            for call in waiting:
                self.reply(call, kind)
            await self.world.settled()

    async def run(self, steps):
        self.world.ask = self.ask
        for step, turns in steps:
            self.time += 1
            match step:
                case "poll", cookie, bypasses:
                    self.polls.append(asyncio.create_task(self.poll(cookie, bypasses)))
                case "reply", index, kind:
                    waiting = [each for each in self.world.calls if not each.reply.done()]
                    if waiting:
                        call = waiting[index % len(waiting)]
                        self.reply(call, kind)
                case "forget", user_id:
                    self.forgotten[user_id] = self.time
                    self.world.lookup.forget(user_id)
                case "cancel", index:
                    if self.polls:
                        self.polls[index % len(self.polls)].cancel()
                case "wait", seconds:
                    await self.reply_to_all("error")  # no call takes that long
                    self.world.clock.advance(seconds)
            for _ in range(turns):
                await asyncio.sleep(0)
        await self.reply_to_all("identity")
        assert all(each.done() for each in self.polls)
        for each in self.polls:
            if not each.cancelled():
                each.result()
        await self.world.lookup.close()


@examples(2)
@given(steps)
def test_no_order_of_events_shows_anybody_what_is_not_his(steps):
    async def run():
        await Truth().run(steps)

    asyncio.run(run())
