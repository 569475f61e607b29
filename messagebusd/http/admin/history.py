"""The last minutes of a daemon in numbers, for the plots of the admin page.

Every worker notes every other second how its own metrics have changed, on a grid that all workers
share because it is made of the time of day. So what several have noted can be added up, and who
opens the page sees what happened before. Names are those of the page; the metrics that they are
made of are an interface already (``metrics.py``).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from messagebusd.metrics import LATENCIES, Metrics

INTERVAL_SECONDS = 2
KEPT_SECONDS = 600
# Workers look at the clock once a second: only what is older is known to be complete.
_SETTLED_SECONDS = 1.5
_LAG = "lag"


class _Source(NamedTuple):
    """Samples of a metric, without its prefix: those with this label, or all of them."""

    metric: str
    label: str = ""
    value: str = ""


def _labelled(metric: str, label: str, *values: str) -> dict[str, _Source]:
    stem = metric.removesuffix("_seconds_count").removesuffix("_total")
    return {f"{stem}_{value}": _Source(metric, label, value) for value in values}


# What is so at the moment.
LEVELS = {
    "stream": _Source("parked_polls", "mode", "stream"),
    "long_poll": _Source("parked_polls", "mode", "long_poll"),
    "waiting_messages": _Source("waiting_messages"),
    "lookup_paused": _Source("lookup_paused"),
}
# What happens, in a second.
RATES = {
    "deliveries": _Source("deliveries_total"),
    "withheld": _Source("withheld_total"),
    "publishes": _Source("publishes_total"),
    "polls": _Source("polls_total"),
    "slow": _Source("polls_total", "outcome", "slow"),
    "refusals": _Source("refusals_total"),
    **_labelled("lookup_seconds_count", "outcome", "identified", "refused", "unavailable"),
    **_labelled("lookup_cache_total", "outcome", "hit", "miss", "shared", "stale", "bypass"),
    "store_errors": _Source("store_errors_total"),
    "store_reconnects": _Source("store_reconnects_total"),
    "store_gaps": _Source("store_gap_messages_total"),
    "store_replays": _Source("store_replayed_messages_total"),
}
# How long it takes.
TIMES = {
    "delivery": "delivery_seconds_bucket",
    "first_frame": "first_frame_seconds_bucket",
    "lookup": "lookup_seconds_bucket",
    "store": "store_seconds_bucket",
}
QUANTILES = {"p50": 0.5, "p99": 0.99}
COLUMNS = (
    "at",
    *LEVELS,
    *RATES,
    *(f"{name}_{quantile}" for name in TIMES for quantile in QUANTILES),
    _LAG,
)

_Found = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]


class Sample(msgspec.Struct, array_like=True):
    """One worker's numbers of one interval, the ``tick``-th since the epoch.

    ``times`` has, for each histogram, how many were seen up to each of `LATENCIES` but not up to
    the one before, and last how many were slower than all of them.
    """

    tick: int
    levels: list[float]
    rates: list[float]
    times: list[list[float]]
    lag: float


class History:
    """What this worker has noted. ``wall`` is the time of day, in seconds since the epoch."""

    def __init__(self, metrics: Metrics, wall: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._wall = wall
        self._samples: deque[Sample] = deque(maxlen=KEPT_SECONDS // INTERVAL_SECONDS)
        self._lag = 0.0
        self._seen_at = wall()
        self._seen = self._read()

    def observe(self, lag: float) -> None:
        """Look at the clock, about once a second; ``lag`` is how late that is, in seconds."""
        self._lag = max(self._lag, lag)
        now = self._wall()
        elapsed = now - self._seen_at
        tick = int(self._seen_at // INTERVAL_SECONDS)
        if int(now // INTERVAL_SECONDS) == tick:
            return
        before, self._seen, self._seen_at = self._seen, self._read(), now
        if elapsed > 0 and (not self._samples or tick > self._samples[-1].tick):
            self._samples.append(_difference(tick, before, self._seen, elapsed, self._lag))
        self._lag = 0.0

    def since(self, tick: int) -> list[Sample]:
        """What was noted after this tick, as far as every worker has had the time to do so."""
        settled = (self._wall() - _SETTLED_SECONDS) // INTERVAL_SECONDS
        return [each for each in self._samples if tick < each.tick < settled]

    def _read(self) -> _Found:
        self._metrics.refresh()
        found = defaultdict(list)
        for family in self._metrics.registry.collect():
            for sample in family.samples:
                name = sample.name.removeprefix("messagebusd_")
                found[name].append((sample.labels, sample.value))
        return found


def combine(samples: Iterable[Sample]) -> list[list[float | None]]:
    """Samples of any number of workers as rows of `COLUMNS`, one for each interval.

    None stands for a time where nothing took any.
    """
    by_tick: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_tick[sample.tick].append(sample)
    return [_row(tick, by_tick[tick]) for tick in sorted(by_tick)]


def quantile(counts: Sequence[float], part: float) -> float | None:
    """A time that this part of all stayed below, guessed from how many each bucket has.

    What was slower than the last bound is said to have taken that long.
    """
    total = sum(counts)
    if total <= 0:
        return None
    wanted, seen, lower = part * total, 0.0, 0.0
    for bound, count in zip(LATENCIES, counts, strict=False):
        if count and seen + count >= wanted:
            return lower + (bound - lower) * (wanted - seen) / count
        seen, lower = seen + count, bound
    return lower


def _row(tick: int, samples: Sequence[Sample]) -> list[float | None]:
    row: list[float | None] = [tick * INTERVAL_SECONDS]
    row += [sum(each) for each in zip(*(sample.levels for sample in samples), strict=True)]
    row += [round(sum(each), 3) for each in zip(*(one.rates for one in samples), strict=True)]
    for histograms in zip(*(sample.times for sample in samples), strict=True):
        counts = [sum(each) for each in zip(*histograms, strict=True)]
        guesses = (quantile(counts, part) for part in QUANTILES.values())
        row += [None if guess is None else round(guess, 6) for guess in guesses]
    return [*row, round(max(each.lag for each in samples), 6)]


def _difference(tick: int, before: _Found, after: _Found, seconds: float, lag: float) -> Sample:
    return Sample(
        tick,
        [_sum(after, source) for source in LEVELS.values()],
        [(_sum(after, each) - _sum(before, each)) / seconds for each in RATES.values()],
        [
            [
                now - then
                for now, then in zip(_buckets(after, each), _buckets(before, each), strict=True)
            ]
            for each in TIMES.values()
        ],
        lag,
    )


def _sum(found: _Found, source: _Source) -> float:
    return sum(
        value
        for labels, value in found.get(source.metric, ())
        if not source.label or labels[source.label] == source.value
    )


def _buckets(found: _Found, metric: str) -> list[float]:
    """How many each bucket of a histogram has by itself, whatever its other labels."""
    cumulative = dict.fromkeys((*LATENCIES, math.inf), 0.0)
    for labels, value in found.get(metric, ()):
        cumulative[float(labels["le"])] += value
    counts = list(cumulative.values())
    return [upper - lower for lower, upper in pairwise([0.0, *counts])]
