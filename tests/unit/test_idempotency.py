"""The same key and body is carried out once (SPEC 4)."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from messagebusd.errors import (
    IdempotencyConflict,
    InvalidChannel,
    MalformedRequest,
    RateLimited,
    StoreUnavailable,
)
from messagebusd.http import idempotency
from messagebusd.http.idempotency import IdempotencyLedger, Outcome, idempotency_key
from tests.support.clock import FakeClock

HOUR = 3600.0


class Caller:
    """Asks a ledger, and counts what was carried out."""

    def __init__(self, **options):
        self.clock = FakeClock()
        self.ledger = IdempotencyLedger(clock=self.clock, **options)
        self.acts = 0

    async def ask(self, key="k", body=b"b", *, caller="forum", call="publish", act=None):
        outcome, replayed = await self.ledger.once(caller, call, key, body, act or self.act)
        return outcome.body.decode(), replayed

    async def act(self):
        self.acts += 1
        return Outcome(200, b"%d" % self.acts)


async def test_the_first_answer_is_given_again():
    caller = Caller()
    assert await caller.ask() == ("1", False)
    assert await caller.ask() == ("1", True)
    assert await caller.ask() == ("1", True)
    assert caller.acts == 1


@pytest.mark.parametrize("other", [{"key": "l"}, {"caller": "blog"}, {"call": "batch"}])
async def test_a_key_belongs_to_one_caller_and_call(other):
    caller = Caller()
    await caller.ask()
    assert await caller.ask(**other) == ("2", False)


async def test_parts_do_not_run_into_each_other():
    caller = Caller()
    await caller.ask(caller="ab", call="c", key="d")
    assert await caller.ask(caller="a", call="bc", key="d") == ("2", False)


async def test_another_body_is_a_conflict():
    caller = Caller()
    await caller.ask()
    with pytest.raises(IdempotencyConflict):
        await caller.ask(body=b"c")
    assert await caller.ask() == ("1", True)


async def test_the_second_waits_for_the_first():
    caller = Caller()
    let = asyncio.Event()

    async def slow():
        await let.wait()
        return await caller.act()

    asking = [asyncio.create_task(caller.ask(act=slow)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(IdempotencyConflict):
        await caller.ask(body=b"c")
    let.set()
    assert await asyncio.gather(*asking) == [("1", False), ("1", True), ("1", True)]


async def test_of_those_who_wait_one_takes_over_if_the_first_fails():
    caller = Caller()
    let = asyncio.Event()

    async def fail():
        await let.wait()
        raise StoreUnavailable("away")

    first = asyncio.create_task(caller.ask(act=fail))
    await asyncio.sleep(0)
    others = [asyncio.create_task(caller.ask()) for _ in range(3)]
    await asyncio.sleep(0)
    let.set()
    with pytest.raises(StoreUnavailable):
        await first
    assert sorted(await asyncio.gather(*others)) == [("1", False), ("1", True), ("1", True)]


async def test_one_that_is_cancelled_leaves_the_key_free():
    caller = Caller()
    first = asyncio.create_task(caller.ask(act=asyncio.Event().wait))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await caller.ask() == ("1", False)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), InvalidChannel("no"), OSError()])
async def test_failures_are_not_remembered(error):
    caller = Caller()

    async def fail():
        raise error

    with pytest.raises(type(error)):
        await caller.ask(act=fail)
    assert await caller.ask(body=b"corrected") == ("1", False)


async def test_an_outcome_that_changed_nothing_is_not_remembered():
    caller = Caller()

    async def nothing():
        return Outcome(200, b"nothing", done=False)

    assert await caller.ask(act=nothing) == ("nothing", False)
    assert await caller.ask() == ("1", False)


async def test_answers_are_kept_for_a_day():
    caller = Caller()
    await caller.ask()
    caller.clock.advance(24 * HOUR - 1)
    assert await caller.ask() == ("1", True)
    caller.clock.advance(1)
    assert await caller.ask(body=b"another") == ("2", False)
    caller.clock.advance(24 * HOUR)
    await caller.ask("other")
    assert len(caller.ledger) == 1


@pytest.mark.parametrize("options", [{"max_entries": 3}, {"max_answer_bytes": 3}])
async def test_a_full_ledger_forgets_only_what_is_older_than_an_hour(options, caplog):
    caller = Caller(**options)
    for key in "abc":
        await caller.ask(key)
        caller.clock.advance(60)
    with pytest.raises(RateLimited) as caught:
        await caller.ask("d")
    assert caught.value.retry_after == HOUR - 180
    assert caller.acts == 3
    assert await caller.ask("a") == ("1", True)

    caller.clock.advance(HOUR - 180)
    with caplog.at_level(logging.WARNING):
        assert await caller.ask("d") == ("4", False)
        with pytest.raises(RateLimited):
            await caller.ask("e")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "idempotency ledger is full"
    ]
    assert await caller.ask("b") == ("2", True)
    caller.clock.advance(60)
    assert await caller.ask("a") == ("5", False)


async def test_requests_under_way_take_room_as_well():
    caller = Caller(max_entries=1)
    let = asyncio.Event()

    async def slow():
        await let.wait()
        return await caller.act()

    first = asyncio.create_task(caller.ask("a", act=slow))
    await asyncio.sleep(0)
    with pytest.raises(RateLimited):
        await caller.ask("b")
    let.set()
    assert await first == ("1", False)


async def test_the_bounds_hold_what_they_promise():
    """A day of keys, a thousand times faster: never more than the bounds, never one too young."""
    caller = Caller(max_entries=50)
    for number in range(200):
        await caller.ask(str(number))
        assert len(caller.ledger) <= 50
        caller.clock.advance(100)
    newest = [await caller.ask(str(number)) for number in range(164, 200)]
    assert newest == [(str(number + 1), True) for number in range(164, 200)]


# -- the header ----------------------------------------------------------------------------------


def sending(*values):
    headers = CIMultiDict([(idempotency.HEADER, value) for value in values])
    return make_mocked_request("POST", "/", headers=headers)


@pytest.mark.parametrize("key", ["a", "a b", '"quoted"', "~" * 255])
def test_usable_keys(key):
    assert idempotency_key(sending(key)) == key


def test_no_key():
    assert idempotency_key(sending()) is None


@pytest.mark.parametrize("values", [("",), ("a" * 256,), ("é",), ("a\tb",), ("a", "a")])
def test_unusable_keys(values):
    with pytest.raises(MalformedRequest) as caught:
        idempotency_key(sending(*values))
    assert caught.value.code == "invalid_idempotency_key"
