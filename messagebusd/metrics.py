"""Every metric, in one list.

Names and labels are an interface: dashboards are built on them. Labels have few values, known
here; they are resolved once. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from messagebusd.connection import CloseReason
from messagebusd.delivery import Delivery
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.requests import Mode

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A second sample for each counter, with the time of its first increment, that nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class _Gauge(Gauge):
    """A gauge that can have a function in files, too: `Metrics.refresh` asks it."""

    function: Callable[[], float] | None = None

    def set_function(self, f: Callable[[], float]) -> None:
        super().set_function(f)
        self.function = f


class _Observed:
    """A histogram's observations since it was last flushed: its own way to take one is slow.

    It knows of prometheus_client how a histogram keeps them.
    """

    __slots__ = ("_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._counts = [0] * (len(LATENCIES) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Take one."""
        self._counts[bisect_left(LATENCIES, seconds)] += 1
        self._sum += seconds

    def observe_together(self, seconds: float, count: int) -> None:
        """Take so many that lasted so long together."""
        self._counts[bisect_left(LATENCIES, seconds / count)] += count
        self._sum += seconds

    def flush(self) -> None:
        """Put all where others can read them."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        for bucket, count in zip(self._histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._sum)
        self._sum = 0.0


class _Operation:
    """Store operations that are being measured together."""

    __slots__ = ("_clock", "_count", "_errors", "_seconds", "_started")

    def __init__(
        self, seconds: _Observed, errors: Counter, clock: Callable[[], float], count: int
    ) -> None:
        self._seconds = seconds
        self._errors = errors
        self._clock = clock
        self._count = count

    def failed(self, error: BaseException) -> None:
        """One of them raised this; said of an error that does not leave the block."""
        if isinstance(error, StoreUnavailable):
            self._errors.inc()

    def __enter__(self) -> Self:
        self._started = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seconds.observe_together(self._clock() - self._started, self._count)
        if error is not None:
            self.failed(error)


class Metrics:
    """The metrics of one process, on a registry of their own; or of all workers, see `shared`."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, folder: Path | None = None
    ) -> None:
        self._clock = clock
        self._folder = folder
        self._count_parked: Callable[[], Mapping[Mode, int]] = dict
        self._gauges: list[_Gauge] = []
        self._observed: list[_Observed] = []
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"messagebusd_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"messagebusd_{name}", text, labels, buckets=LATENCIES, registry=self.registry
            )

        def observed(histogram: Histogram) -> _Observed:
            self._observed.append(made := _Observed(histogram))
            return made

        def gauge(
            name: str,
            text: str,
            *labels: str,
            of_workers: Literal["livesum", "livemax"] = "livesum",
        ) -> _Gauge:
            made = _Gauge(
                f"messagebusd_{name}",
                text,
                labels,
                registry=self.registry,
                multiprocess_mode=of_workers,
            )
            self._gauges.append(made)
            return made

        self._polls = counter(
            "polls", "Polls by how they were asked for and how they ended", "mode", "outcome"
        )
        self._refusals = counter("refusals", "Refused requests by door and code", "door", "code")
        self._ignored = counter("ignored_keys", "Keys of polls whose value was no position")
        self._publishes = counter("publishes", "Published messages by door", "door")
        self._deliveries = counter("deliveries", "Messages written to subscribers")
        self._withheld = counter(
            "withheld", "Messages kept from parked subscribers by audience or filters"
        )
        self._filter_errors = counter("filter_errors", "Filters that failed, and so withheld")
        self._delivery_seconds = observed(
            histogram("delivery_seconds", "From the publish of a message to its last write")
        )
        self._first_frame_seconds = observed(
            histogram(
                "first_frame_seconds", "From the request's body to the first bytes of its answer"
            )
        )
        lookup_seconds = histogram("lookup_seconds", "Identity lookups by outcome", "outcome")
        self._lookup_cache = counter(
            "lookup_cache",
            "Identity lookups by what the cache did: hit, miss, shared, stale, bypass",
            "outcome",
        )
        self._lookup_paused = gauge(
            "lookup_paused", "Workers that leave the application alone, because it fails"
        )
        store_seconds = histogram("store_seconds", "Store operations", "operation")
        self._store_errors = counter("store_errors", "Failed store operations", "operation")
        self._reloads = counter(
            "config_reloads", "Attempts to read the settings again: done, refused", "outcome"
        )
        self.config_read_at = gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the settings in effect were read",
            of_workers="livemax",
        )
        self.loop_lag = gauge(
            "event_loop_lag_seconds",
            "How late the loop came to its last check",
            of_workers="livemax",
        )
        parked = gauge("parked_polls", "Polls that are held right now", "mode")
        self._parked = {mode: parked.labels(mode.value) for mode in (Mode.LONG_POLL, Mode.STREAM)}
        self.backlog_bytes = gauge("backlog_bytes", "What the memory store takes")
        self.feeds = gauge("subscriptions", "Open server-side subscriptions")
        self.waiting_messages = gauge(
            "waiting_messages", "Messages that wait in memory for the store to come back"
        )
        self.inbox_entries = gauge("inbox_entries", "Entries of the Redis inbox, as last seen")
        self._store_reconnects = counter(
            "store_reconnects", "Breaks after which the store's announcements are heard again"
        )
        self._store_gaps = counter("store_gap_messages", "Global ids that were not announced")
        self._store_replays = counter(
            "store_replayed_messages", "Messages announced from backlogs after a break or gap"
        )
        self._store_ignored = counter(
            "store_ignored_announcements", "Announcements that were no use, by reason", "reason"
        )
        self._poll_ends = {
            (mode, reason): self._polls.labels(mode.value, reason.value)
            for mode in Mode
            for reason in CloseReason
        }
        self._reload_outcomes = {each: self._reloads.labels(each) for each in ("done", "refused")}
        self._doors = {
            door: self._publishes.labels(door) for door in ("http", "redis", "broadcast")
        }
        self._lookups = {
            outcome: observed(lookup_seconds.labels(outcome))
            for outcome in ("identified", "refused", "unavailable")
        }
        self._lookup_caches = {
            outcome: self._lookup_cache.labels(outcome)
            for outcome in ("hit", "miss", "shared", "stale", "bypass")
        }
        self._stores = {
            name: (observed(store_seconds.labels(name)), self._store_errors.labels(name))
            for name in ("publish", "read", "check")
        }

    @classmethod
    def shared(cls, folder: Path, worker: int) -> Self:
        """Metrics of which each worker renders those of all.

        Their values live in files in this folder, where those of a worker that died stay: whoever
        has its number next counts on. This is for the whole process, and before any other Metrics.
        """
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]
        return cls(folder=folder)

    def watch_parked(self, count: Callable[[], Mapping[Mode, int]]) -> None:
        """Ask this function for the number of parked polls."""
        self._count_parked = count

    def refresh(self) -> None:
        """Ask for what is asked for only now and then, so that parking costs nothing; and hand on
        what was measured meanwhile."""
        for observed in self._observed:
            observed.flush()
        counts = self._count_parked()
        for mode, parked in self._parked.items():
            parked.set(counts.get(mode, 0))
        for gauge in self._gauges:
            if gauge.function is not None:
                gauge.set(gauge.function())

    def render(self) -> bytes:
        """All of it in Prometheus' text format. Other workers' gauges and histograms may be a
        second old."""
        self.refresh()
        if self._folder is None:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    # -- polls -------------------------------------------------------------------------------

    def poll_ended(self, mode: Mode, reason: CloseReason) -> None:
        """A poll has been answered to its end."""
        self._poll_ends[mode, reason].inc()

    def first_frame(self, seconds: float) -> None:
        """A poll's first bytes have been written."""
        self._first_frame_seconds.observe(seconds)

    def ignored(self, keys: int) -> None:
        """A poll had keys that mean nothing."""
        self._ignored.inc(keys)

    def refused(self, door: str, code: str) -> None:
        """A request was refused."""
        self._refusals.labels(door, code).inc()

    def looked_up(self, outcome: str, seconds: float) -> None:
        """An identity lookup ended as ``identified``, ``refused`` or ``unavailable``."""
        self._lookups[outcome].observe(seconds)

    def lookup_cached(self, outcome: str) -> None:
        """See `identity.base.LookupObserver`, also for the following."""
        self._lookup_caches[outcome].inc()

    def lookup_paused(self, paused: bool) -> None:
        self._lookup_paused.set(paused)

    # -- messages ----------------------------------------------------------------------------

    def published(self, door: str, messages: int = 1) -> None:
        """Messages came in by a door."""
        self._doors[door].inc(messages)

    def dispatched(self, delivery: Delivery) -> None:
        """One channel's news went to everybody who waits for it."""
        if delivery.written:
            self._deliveries.inc(delivery.written)
            now = self._clock()
            for message in delivery.messages:
                if message.published_at:
                    self._delivery_seconds.observe(now - message.published_at)
        if delivery.withheld:
            self._withheld.inc(delivery.withheld)

    def filter_failed(self) -> None:
        """A message filter raised."""
        self._filter_errors.inc()

    # -- the daemon itself -------------------------------------------------------------------

    def config_reloaded(self, outcome: str) -> None:
        """The settings were read again: ``done`` or ``refused``."""
        self._reload_outcomes[outcome].inc()
        if outcome == "done":
            self.config_read_at.set(time.time())

    # -- the store ---------------------------------------------------------------------------

    def store_operation(self, name: str, count: int = 1) -> _Operation:
        """Measure what happens inside, one operation or several; count it if the store fails."""
        return _Operation(*self._stores[name], self._clock, count)

    def store_reconnected(self) -> None:
        """See `backends.base.Observer`, also for the following."""
        self._store_reconnects.inc()

    def store_gap(self, messages: int) -> None:
        self._store_gaps.inc(messages)

    def store_replayed(self, messages: int) -> None:
        self._store_replays.inc(messages)

    def store_ignored(self, reason: str) -> None:
        self._store_ignored.labels(reason).inc()


def forget_worker(folder: Path, worker: int) -> None:
    """Drop what a dead worker held at its end; what it counted stays."""
    mark_process_dead(worker, str(folder))  # type: ignore[no-untyped-call]
