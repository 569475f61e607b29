"""The soak's verdict: leaks are found, noise is not, and faults excuse what they excuse."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from tests.soak.samples import Metrics, Sample
from tests.soak.verdict import Outcome, growths, table, trend
from tests.soak.windows import GRACE_SECONDS, LOG_GRACE_SECONDS, SETTLE_SECONDS, Windows
from tests.support.clock import FakeClock

MB = 2**20
HOUR = 3600.0


def life(
    *,
    seconds: float = 600,
    rss: Callable[[float], float] = lambda at: 75 * MB,
    files: Callable[[float], float] = lambda at: 100,
    threads: Callable[[float], float] = lambda at: 5,
    quiet: Callable[[float], bool] = lambda at: True,
    number: int = 1,
    begin: float = 0,
) -> list[Sample]:
    """A daemon's samples, one every five seconds."""
    return [
        Sample(
            daemon="redis 1",
            life=number,
            at=at,
            is_quiet=quiet(at),
            rss=int(rss(at)),
            pss=int(rss(at) * 0.9),
            files=int(files(at)),
            threads=int(threads(at)),
            parked=50,
        )
        for at in (begin + step for step in range(0, int(seconds), 5))
    ]


def findings(samples: Sequence[Sample], kept_keys: int = 0) -> list[str]:
    return Outcome("redis", {}, [], {}, [], growths(samples), kept_keys).all_findings()


# -- the trend


def test_the_trend_of_a_line() -> None:
    found = trend([(10, 5), (20, 7), (30, 9)])
    assert (found.first, found.last, found.growth, found.span) == (5, 9, 4, 20)
    assert found.per_hour == pytest.approx(720)


@pytest.mark.parametrize("points", [[], [(1.0, 5.0)], [(1.0, 5.0), (1.0, 7.0)]])
def test_the_trend_of_too_little(points: list[tuple[float, float]]) -> None:
    assert trend(points).per_hour == 0


# -- memory and descriptors


def test_noise_is_no_leak() -> None:
    pick = random.Random(1)
    noisy = life(
        rss=lambda at: (75 + pick.uniform(-1, 1)) * MB,
        files=lambda at: 100 + pick.randrange(-20, 20),
    )
    assert findings(noisy) == []


@pytest.mark.parametrize(("seconds", "per_hour"), [(600, 60), (3600, 7)])
def test_a_leak_of_memory(seconds: float, per_hour: float) -> None:
    pick = random.Random(2)
    leaking = life(
        seconds=seconds, rss=lambda at: (75 + pick.uniform(-1, 1) + per_hour * at / HOUR) * MB
    )
    found = findings(leaking)
    assert len(found) == 2
    assert "redis 1: rss grew" in found[0]
    assert "redis 1: pss grew" in found[1]


def test_a_leak_of_descriptors_and_threads() -> None:
    leaking = life(files=lambda at: 100 + at / 30, threads=lambda at: 5 + at / 120)
    assert [each.split(" grew")[0] for each in findings(leaking)] == [
        "redis: redis 1: files",
        "redis: redis 1: threads",
    ]


def test_what_is_taken_while_it_warms_up_is_no_leak() -> None:
    assert findings(life(rss=lambda at: (60 + min(at, 150) / 5) * MB)) == []


def test_what_is_taken_during_faults_is_no_leak() -> None:
    def is_quiet(at: float) -> bool:
        return at < 400 or at % 100 < 50

    samples = life(rss=lambda at: (75 if is_quiet(at) else 200) * MB, quiet=is_quiet)
    assert findings(samples) == []


def test_a_leak_is_found_around_faults() -> None:
    samples = life(rss=lambda at: (75 + at / 60) * MB, quiet=lambda at: at % 100 < 50)
    assert findings(samples)


def test_of_several_lives_the_longest_is_looked_at() -> None:
    short = life(seconds=100, rss=lambda at: 70 * MB)
    long = life(seconds=700, rss=lambda at: (75 + at / 60) * MB, number=2, begin=100)
    [growth] = growths([*short, *long])
    assert growth.rss.first > 75 * MB
    assert findings([*short, *long])


def test_what_the_first_of_each_fault_takes_is_no_leak() -> None:
    samples = life(rss=lambda at: (75 if at < 300 else 95) * MB)
    [growth] = growths(samples, warm_at=300)
    assert growth.rss.growth == 0
    assert Outcome("redis", {}, [], {}, [], growths(samples)).all_findings()


def test_too_short_a_life_says_nothing() -> None:
    assert findings(life(seconds=290, rss=lambda at: (75 + at) * MB)) == []


def test_idempotency_keys_are_meant_to_be_kept() -> None:
    samples = life(seconds=3600, rss=lambda at: (75 + 8 * at / HOUR) * MB)
    assert findings(samples)
    assert findings(samples, kept_keys=20_000) == []


def test_the_table_names_every_daemon() -> None:
    outcome = Outcome("redis", {}, [], {}, [], growths(life()))
    assert [line.split("  ")[0] for line in table([outcome])] == ["daemon", "redis 1"]


# -- everything else


def test_whatever_is_wrong_is_a_finding() -> None:
    outcome = Outcome("redis", {"lost": 2}, [], {"poll 502": 3}, [], [], findings=["a count"])
    assert outcome.all_findings() == [
        "redis: messages: 2 lost",
        "redis: unexcused: 3 poll 502",
        "redis: a count",
    ]


def test_a_metric_by_its_labels() -> None:
    metrics = Metrics(
        "# HELP messagebusd_polls_total Polls\n# TYPE messagebusd_polls_total counter\n"
        'messagebusd_polls_total{mode="stream",outcome="slow"} 2.0\n'
        'messagebusd_polls_total{mode="poll",outcome="answered"} 3.0\n'
        "messagebusd_polls_total_other 7.0\nmessagebusd_subscriptions 1.0\n"
    )
    assert metrics.sum("messagebusd_polls_total") == 5
    assert metrics.sum("messagebusd_polls_total", 'outcome="slow"') == 2
    assert metrics.sum("messagebusd_subscriptions") == 1


# -- what a fault excuses


def test_a_fault_excuses_its_errors_and_a_moment_longer() -> None:
    clock = FakeClock()
    windows = Windows(clock)
    windows.met("poll 429")
    with windows.open("store stops", frozenset({"poll 429"})):
        windows.met("poll 429")
        windows.met("poll 502", "client 1")
        assert not windows.is_quiet
    clock.advance(GRACE_SECONDS)
    windows.met("poll 429")
    clock.advance(0.1)
    windows.met("poll 429")
    assert windows.excused == {"poll 429": 2}
    assert windows.unexcused == {"poll 429": 2, "poll 502": 1}
    assert windows.examples[1] == "at 0.0 s, store stops: poll 502 client 1"
    assert windows.done == {"store stops": 1}


def test_a_log_may_be_late_longer() -> None:
    clock = FakeClock()
    windows = Windows(clock)
    with windows.open("store stops", frozenset({"log warning"})):
        pass
    clock.advance(LOG_GRACE_SECONDS)
    windows.met("log warning")
    clock.advance(0.1)
    windows.met("log warning")
    assert (windows.excused, windows.unexcused) == ({"log warning": 1}, {"log warning": 1})


def test_it_is_quiet_only_some_time_after_a_fault() -> None:
    clock = FakeClock()
    windows = Windows(clock)
    assert windows.is_quiet
    with windows.open("links reset", frozenset()):
        pass
    clock.advance(SETTLE_SECONDS)
    assert not windows.is_quiet
    clock.advance(0.1)
    assert windows.is_quiet


def test_two_faults_at_once() -> None:
    windows = Windows(FakeClock())
    with windows.open("a", frozenset({"x"})), windows.open("b", frozenset({"y"})):
        windows.met("x")
        windows.met("y")
    assert windows.unexcused == {}
