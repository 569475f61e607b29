"""Allowances: how much passes, when there is room again, and what they take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.ratelimit import Bucket, Buckets
from tests.support.clock import FakeClock


def taken(bucket: Bucket, most: int = 1000) -> int:
    """How much can be had at once."""
    count = 0
    while count < most and bucket.take() == 0.0:
        count += 1
    return count


def test_all_of_it_at_once_then_evenly() -> None:
    clock = FakeClock()
    bucket = Bucket(10, 20.0, clock)
    assert taken(bucket) == 10
    assert bucket.take() == pytest.approx(2.0)
    clock.advance(1.5)
    assert bucket.take() == pytest.approx(0.5)
    clock.advance(0.5)
    assert taken(bucket) == 1
    clock.advance(7.0)
    assert taken(bucket) == 3
    clock.advance(1000.0)
    assert taken(bucket) == 10


def test_a_refusal_takes_nothing() -> None:
    clock = FakeClock()
    bucket = Bucket(1, 10.0, clock)
    assert bucket.take() == 0.0
    for _ in range(100):
        assert bucket.take() == pytest.approx(10.0)
    clock.advance(10.0)
    assert bucket.take() == 0.0


def test_what_is_given_back_can_be_had_again_and_no_more() -> None:
    clock = FakeClock()
    bucket = Bucket(3, 30.0, clock)
    for _ in range(100):
        assert bucket.take() == 0.0
        bucket.give_back()
    assert taken(bucket) == 3
    bucket.give_back()
    assert taken(bucket) == 1
    clock.advance(1000.0)
    bucket.give_back()  # of something taken long ago: it had come back by itself
    assert taken(bucket) == 3


def test_several_are_taken_together_or_not_at_all() -> None:
    clock = FakeClock()
    bucket = Bucket(10, 10.0, clock)
    assert bucket.take(7) == 0.0
    assert bucket.take(5) == pytest.approx(2.0)
    assert bucket.take(3) == 0.0
    clock.advance(5.0)
    assert bucket.take(5) == 0.0


def test_more_than_it_holds_is_owed() -> None:
    clock = FakeClock()
    bucket = Bucket(10, 10.0, clock)
    assert bucket.take() == 0.0
    assert bucket.take(25) == pytest.approx(1.0)  # only from a full one
    clock.advance(1.0)
    assert bucket.take(25) == 0.0
    assert bucket.take() == pytest.approx(16.0)
    clock.advance(16.0)
    assert taken(bucket) == 1


@given(
    amount=st.integers(1, 50),
    seconds=st.floats(0.1, 100.0),
    steps=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 5)), max_size=60),
)
def test_no_more_than_promised_passes(
    amount: int, seconds: float, steps: list[tuple[float, int]]
) -> None:
    clock = FakeClock()
    bucket = Bucket(amount, seconds, clock)
    passed: list[tuple[float, int]] = []
    for pause, count in steps:
        clock.advance(pause)
        wait = bucket.take(min(count, amount))
        if wait == 0.0:
            passed.append((clock.now, min(count, amount)))
        else:  # and it is true how long that takes
            clock.advance(wait + 1e-9)
            assert bucket.take(min(count, amount)) == 0.0
            passed.append((clock.now, min(count, amount)))
    for start, (begun, _) in enumerate(passed):
        sum_ = 0
        for at, count in passed[start:]:
            sum_ += count
            assert sum_ <= amount + (at - begun) * amount / seconds + 1e-6


# -- many keys


def test_each_key_has_its_own() -> None:
    buckets = Buckets(2, 10.0, FakeClock())
    assert taken(buckets.of("a")) == 2
    assert taken(buckets.of("b")) == 2
    assert taken(buckets.of("a")) == 0
    assert len(buckets) == 2


def test_only_recent_traffic_takes_memory() -> None:
    """Names without end, each used once: what is kept are those of the last moment."""
    clock = FakeClock()
    buckets = Buckets(100, 20.0, clock, max_buckets=50_000)
    most = 0
    for number in range(20_000):
        clock.now += 0.0001  # ten thousand polls a second, each missed for 0.2 seconds
        buckets.of(number).take()
        most = max(most, len(buckets))
    assert most <= 4_002


def test_a_flood_of_names_frees_nobody_and_locks_out_nobody() -> None:
    """Even where nothing fills up in between."""
    clock = FakeClock()
    buckets = Buckets(5, 1e6, clock, max_buckets=2_000)
    assert taken(buckets.of("storm")) == 5
    for number in range(20_000):
        clock.now += 0.0001
        assert buckets.of(number).take() == 0.0
        assert len(buckets) <= 2_000
    assert taken(buckets.of("storm")) == 0  # still refused
    assert buckets.of("somebody new").take() == 0.0  # and not because of the others
    clock.advance(1e6)
    # Once there is room again, newcomers are counted again.
    assert taken(buckets.of("later")) == 5
    assert taken(buckets.of("later")) == 0


# -- other settings


@pytest.mark.parametrize(
    ("used", "amount", "seconds", "left"),
    [(0, 10, 20.0, 10), (3, 10, 20.0, 7), (3, 5, 20.0, 2), (5, 5, 10.0, 0), (8, 5, 20.0, 0)],
)
def test_what_was_used_of_an_allowance_counts_for_another(
    used: int, amount: int, seconds: float, left: int
) -> None:
    clock = FakeClock()
    buckets = Buckets(8, 8.0, clock)
    bucket = buckets.of("a")
    for _ in range(used):
        assert bucket.take() == 0.0
    buckets.change(amount, seconds)
    assert taken(buckets.of("a")) == left
    assert taken(buckets.of("newcomer")) == amount
    assert bucket is buckets.of("a") or not used  # whoever holds it can give back
    clock.advance(seconds)  # and never is it more than all of it that is missing
    assert taken(buckets.of("a")) == amount


def test_what_is_owed_stays_owed_where_nothing_changes() -> None:
    clock = FakeClock()
    bucket = Bucket(10, 60.0, clock)
    assert bucket.take(1000) == 0.0
    owed = bucket.take()
    bucket.change(10, 60.0)
    assert bucket.take() == owed
