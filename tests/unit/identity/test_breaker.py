"""The pause after failures: when it begins, how it grows, and that it always ends."""

from hypothesis import given
from hypothesis import strategies as st

from messagebusd.identity.breaker import (
    FAILURES,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    CircuitBreaker,
)
from tests.support.clock import FakeClock


class World:
    def __init__(self):
        self.clock = FakeClock()
        self.told = []
        self.breaker = CircuitBreaker(self.clock, self.told.append, jitter=lambda: 1.0)

    def fail(self, times=1):
        for _ in range(times):
            assert self.breaker.admit()
            self.breaker.failed()


def test_only_failures_in_a_row_make_a_pause():
    world = World()
    for _ in range(3):
        world.fail(FAILURES - 1)
        assert world.breaker.admit()
        world.breaker.succeeded()
    assert world.told == []
    world.fail(FAILURES)
    assert world.breaker.is_open
    assert not world.breaker.admit()
    assert world.told == [True]


def test_after_the_pause_one_trial_decides():
    world = World()
    world.fail(FAILURES)
    world.clock.advance(FIRST_PAUSE_SECONDS)
    assert not world.breaker.is_open
    assert world.breaker.admit()
    assert not world.breaker.admit()
    world.breaker.succeeded()
    assert world.breaker.admit()
    assert world.breaker.admit()
    assert world.told == [True, False]


def test_a_trial_that_nobody_waits_for_leaves_its_place_to_the_next():
    world = World()
    world.fail(FAILURES)
    world.clock.advance(FIRST_PAUSE_SECONDS)
    assert world.breaker.admit()
    world.breaker.abandoned()
    assert world.breaker.admit()


def test_the_pause_grows_to_a_limit_and_begins_small_again():
    world = World()
    world.fail(FAILURES)
    pauses = []
    for _ in range(8):
        begun = world.clock.now
        while world.breaker.is_open:
            world.clock.advance(0.25)
        pauses.append(world.clock.now - begun)
        world.fail()
    assert pauses[:4] == [1, 2, 4, 8]
    assert set(pauses[4:]) == {LONGEST_PAUSE_SECONDS}
    world.clock.advance(LONGEST_PAUSE_SECONDS)
    assert world.breaker.admit()
    world.breaker.succeeded()
    world.fail(FAILURES)
    world.clock.advance(FIRST_PAUSE_SECONDS)
    assert not world.breaker.is_open


def test_answers_from_before_the_pause_end_it_but_do_not_lengthen_it():
    world = World()
    for _ in range(FAILURES + 5):
        assert world.breaker.admit()
    for _ in range(FAILURES + 4):
        world.breaker.failed()
    assert world.breaker.is_open
    world.clock.advance(FIRST_PAUSE_SECONDS)
    assert not world.breaker.is_open
    world.fail()
    assert world.breaker.is_open
    world.breaker.succeeded()
    assert not world.breaker.is_open


@given(st.lists(st.sampled_from(["ask", "succeed", "fail", "abandon", "wait"])))
def test_whatever_happened_an_application_that_answers_is_asked_again(steps):
    world = World()
    under_way = 0
    for step in steps:
        if step == "ask":
            under_way += world.breaker.admit()
        elif step == "wait":
            world.clock.advance(0.7)
        elif under_way:
            under_way -= 1
            call = {"succeed": "succeeded", "fail": "failed", "abandon": "abandoned"}[step]
            getattr(world.breaker, call)()
    for _ in range(under_way):
        world.breaker.abandoned()
    world.clock.advance(LONGEST_PAUSE_SECONDS)
    assert world.breaker.admit()
    world.breaker.succeeded()
    assert world.breaker.admit()
