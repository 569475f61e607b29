"""How long an answer may be used, and that nothing outlives an invalidation."""

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.identity import cache as cache_module
from messagebusd.identity.base import Identity
from messagebusd.identity.cache import ENTRY_BYTES, AnswerCache, Entry, Refusal
from tests.support.clock import FakeClock

REFUSAL = Refusal(403, b"no", ())


class World:
    def __init__(self, **options):
        self.clock = FakeClock(0.0)
        self.cache = AnswerCache(self.clock, **options)

    def entry(self, said, key=b"k", ttl=30, stale=300, **fields):
        fresh = self.clock.now + ttl
        moment = fields.pop("moment", None) or self.cache.next_moment()
        return Entry(key, said, moment, True, fresh, fresh + stale, **fields)

    def put(self, said, key=b"k", **fields):
        entry = self.entry(said, key, **fields)
        self.cache.put(entry)
        return entry


def test_an_answer_is_kept_until_it_is_too_old_even_for_a_failure():
    world = World()
    entry = world.put(Identity(1))
    world.clock.advance(329)
    assert world.cache.get(b"k") is entry
    world.clock.advance(1)
    assert world.cache.get(b"k") is None
    assert len(world.cache) == 0


def test_of_two_answers_that_of_the_later_call_stays():
    world = World()
    old = world.entry(Identity(1))
    new = world.put(REFUSAL)
    world.cache.put(old)
    assert world.cache.get(b"k") is new


def test_a_refusal_stands_against_what_was_asked_before_it():
    world = World()
    old, refusal = world.entry(Identity(1)), world.entry(REFUSAL)
    world.cache.forget(99, None)
    world.cache.put(refusal)
    world.cache.put(old)
    assert world.cache.get(b"k") is refusal


def test_it_is_bounded_in_bytes_and_forgets_what_is_used_least():
    world = World(max_bytes=3 * (ENTRY_BYTES + 100))
    for key in (b"a", b"b", b"c"):
        world.put(Identity(1), key, size=100)
    assert world.cache.get(b"a")
    world.put(Identity(1), b"d", size=100)
    assert [bool(world.cache.get(key)) for key in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    world.put(Identity(1), b"e", size=10_000)  # larger than all there is room for
    assert len(world.cache) == 0
    world.put(Identity(1), b"a", size=100)
    world.put(Identity(1), b"a", size=100)
    assert len(world.cache) == 1


@pytest.mark.parametrize(
    ("user_id", "site_id", "forgotten"),
    [
        (1, None, True),
        (1, "s", True),
        (1, "t", False),
        (2, None, False),
        ("1", None, False),
        (None, "s", True),
        (None, "t", False),
        (None, None, True),
    ],
)
def test_whom_an_invalidation_is_about(user_id, site_id, forgotten):
    world = World()
    world.put(Identity(1, site_id="s"))
    world.cache.forget(user_id, site_id)
    assert (world.cache.get(b"k") is None) is forgotten
    fresh = world.put(Identity(1, site_id="s"))
    assert world.cache.get(b"k") is fresh


def test_an_identity_without_a_site_may_be_at_any():
    world = World()
    world.put(Identity(1))
    world.cache.forget(1, "s")
    assert world.cache.get(b"k") is None
    world.put(Identity())
    world.cache.forget(1, "s")
    assert world.cache.get(b"k") is not None
    world.cache.forget(None, "s")
    assert world.cache.get(b"k") is None


def test_a_refusal_may_be_about_whoever_was_invalidated():
    world = World()
    refusal = world.put(REFUSAL)
    assert world.cache.is_fresh(refusal)
    world.cache.forget(7, "s")
    assert not world.cache.is_fresh(refusal)


users = st.sampled_from([None, 1, 2, "1"])
sites = st.sampled_from([None, "s", "t"])


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "forget"]), users, sites), max_size=40),
    st.integers(1, 6),
)
def test_nothing_that_was_invalidated_is_valid(steps, room):
    """Against the plain rule, however few invalidations there is room for."""
    cache_module.MAX_INVALIDATIONS, usual = room, cache_module.MAX_INVALIDATIONS
    try:
        world = World()
        asked = []
        for op, user_id, site_id in steps:
            if op == "ask":
                asked.append((world.entry(Identity(user_id, site_id=site_id)), []))
            else:
                world.cache.forget(user_id, site_id)
                for entry, forgotten in asked:
                    said = entry.said
                    forgotten.append(
                        (user_id is None or _same(user_id, said.user_id))
                        and (site_id is None or said.site_id in (None, site_id))
                    )
        for entry, forgotten in asked:
            if any(forgotten):
                assert not world.cache.is_valid(entry)
            elif len(forgotten) * 2 <= room:  # else what came first may have gone with all
                assert world.cache.is_valid(entry)
    finally:
        cache_module.MAX_INVALIDATIONS = usual


def _same(one, other):
    return type(one) is type(other) and one == other


def test_an_entry_takes_what_is_reckoned_for_it():
    world = World()
    entry = replace(world.put(Identity(1)), key=bytes(16))
    parts = [entry, entry.key, entry.said, entry.fresh_until, entry.stale_until, entry.moment]
    assert sum(map(sys.getsizeof, parts)) < ENTRY_BYTES
