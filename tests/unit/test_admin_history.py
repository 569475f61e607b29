"""What the plots of the admin page are made of."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from messagebusd.connection import CloseReason
from messagebusd.http.admin.history import (
    COLUMNS,
    INTERVAL_SECONDS,
    KEPT_SECONDS,
    History,
    Sample,
    combine,
    quantile,
)
from messagebusd.metrics import LATENCIES, Metrics
from messagebusd.protocol.requests import Mode

START = 1_000_000.0


class Worker:
    """A worker's metrics and history, on a clock that the test turns."""

    def __init__(self) -> None:
        self.now = START
        self.metrics = Metrics()
        self.history = History(self.metrics, lambda: self.now)

    def turn(self, seconds: float = 1.0, lag: float = 0.0) -> None:
        self.now += seconds
        self.history.observe(lag)

    def rows(self, after: int = 0) -> list[dict[str, Any]]:
        """What has been noted, after a while in which it became complete."""
        self.turn(2 * INTERVAL_SECONDS)
        return [dict(zip(COLUMNS, row, strict=True)) for row in combine(self.history.since(after))]


def test_what_happens_is_told_by_the_second() -> None:
    worker = Worker()
    worker.metrics.published("http", 6)
    worker.metrics.poll_ended(Mode.STREAM, CloseReason.SLOW)
    worker.turn(2)
    [row, *_] = worker.rows()
    assert row["at"] == START
    assert row["publishes"] == 3.0
    assert row["polls"] == row["slow"] == 0.5
    assert row["delivery_p50"] is None
    assert row["lag"] == 0.0


def test_every_name_is_that_of_a_metric() -> None:
    worker = Worker()
    metrics = worker.metrics
    metrics.watch_parked(lambda: {Mode.STREAM: 3, Mode.LONG_POLL: 2})
    metrics.published("redis")
    metrics.refused("api", "forbidden")
    metrics.poll_ended(Mode.STREAM, CloseReason.SLOW)
    for outcome in ("identified", "refused", "unavailable"):
        metrics.looked_up(outcome, 0.02)
    for outcome in ("hit", "miss", "shared", "stale", "bypass"):
        metrics.lookup_cached(outcome)
    metrics.lookup_paused(True)
    metrics.first_frame(0.3)
    metrics.waiting_messages.set(4)
    metrics._deliveries.inc()
    metrics._withheld.inc()
    metrics._delivery_seconds.observe(0.2)
    metrics._store_errors.labels("read").inc()
    with metrics.store_operation("publish"):
        pass
    metrics.store_reconnected()
    metrics.store_gap(1)
    metrics.store_replayed(1)
    worker.turn(2, lag=0.01)
    [row, *_] = worker.rows()
    assert [name for name, value in row.items() if not value] == []
    assert (row["stream"], row["long_poll"]) == (3, 2)
    assert 0.01 < row["lookup_p50"] <= 0.025
    assert 0.25 < row["first_frame_p99"] <= 0.5


def test_the_worst_lag_of_an_interval_counts() -> None:
    worker = Worker()
    for lag in (0.5, 0.1, 0.2, 0.0):
        worker.turn(1, lag)
    assert [row["lag"] for row in worker.rows()][:2] == [0.5, 0.2]


def test_only_what_is_complete_on_every_worker_is_told() -> None:
    worker = Worker()
    worker.turn(2)
    assert worker.history.since(0) == []  # another worker may not have looked at its clock yet
    worker.turn(1)
    assert worker.history.since(0) == []
    worker.turn(1)
    [sample] = worker.history.since(0)
    assert worker.history.since(sample.tick) == []


def test_a_clock_that_is_set_back_gives_no_time_twice() -> None:
    worker = Worker()
    for _ in range(6):
        worker.turn(2)
    worker.now -= 6
    for _ in range(6):
        worker.turn(2)
    ticks = [row["at"] for row in worker.rows()]
    assert ticks == sorted(set(ticks))


def test_it_keeps_ten_minutes() -> None:
    worker = Worker()
    for _ in range(KEPT_SECONDS):
        worker.turn(2)
    assert len(worker.rows()) <= KEPT_SECONDS / INTERVAL_SECONDS


def test_workers_add_up() -> None:
    """What one worker sends to another is added; of lags the worst counts."""
    one, two = Worker(), Worker()
    for worker, count, seconds in ((one, 4, 0.004), (two, 8, 0.2)):
        worker.metrics.watch_parked(lambda: {Mode.STREAM: 5})
        worker.metrics.published("http", count)
        worker.metrics.first_frame(seconds)
        worker.turn(2, lag=seconds)
        worker.turn(4)
    samples = [
        msgspec.convert(each, Sample)
        for worker in (one, two)
        for each in msgspec.json.decode(msgspec.json.encode(worker.history.since(0)))
    ]
    row = dict(zip(COLUMNS, combine(samples)[0], strict=True))
    assert row["publishes"] == 6.0
    assert row["stream"] == 10
    assert row["first_frame_p50"] == 0.005
    assert 0.1 < (row["first_frame_p99"] or 0) < 0.25
    assert row["lag"] == 0.2


@pytest.mark.parametrize(
    ("counts", "part", "guess"),
    [
        ([], 0.5, None),
        ([0.0] * (len(LATENCIES) + 1), 0.5, None),
        ([10.0], 0.5, 0.0005),
        ([0.0, 10.0], 1.0, 0.0025),
        ([5.0, 5.0], 0.75, 0.00175),
        ([0.0] * len(LATENCIES) + [3.0], 0.5, LATENCIES[-1]),
    ],
)
def test_quantiles(counts: list[float], part: float, guess: float | None) -> None:
    assert quantile(counts, part) == (guess if guess is None else pytest.approx(guess))
