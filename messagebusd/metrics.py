"""Every metric, in one list.

Names and labels are an interface: dashboards are built on them. Labels have few values, known
here; they are resolved once. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from messagebusd.connection import CloseReason, Delivery
from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.requests import Mode

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# A second sample for each counter, with the time of its first increment, that nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class _ParkedPolls(Collector):
    """Counts parked polls when it is asked, so that parking costs nothing."""

    def __init__(self, count: Callable[[], dict[Mode, int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "messagebusd_parked_polls", "Polls that are held right now", labels=["mode"]
        )
        counts = self._count()
        for mode in (Mode.LONG_POLL, Mode.STREAM):
            family.add_metric([mode.value], counts.get(mode, 0))
        yield family


class Metrics:
    """The metrics of one worker, on a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"messagebusd_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"messagebusd_{name}", text, labels, buckets=_LATENCIES, registry=self.registry
            )

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"messagebusd_{name}", text, registry=self.registry)

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
        self._delivery_seconds = histogram(
            "delivery_seconds", "From the publish of a message to its last write"
        )
        self._first_frame_seconds = histogram(
            "first_frame_seconds", "From the request's body to the first bytes of its answer"
        )
        self._lookup_seconds = histogram("lookup_seconds", "Identity lookups by outcome", "outcome")
        self._store_seconds = histogram("store_seconds", "Store operations", "operation")
        self._store_errors = counter("store_errors", "Failed store operations", "operation")
        self.loop_lag = gauge("event_loop_lag_seconds", "How late the loop came to its last check")
        self.backlog_bytes = gauge("backlog_bytes", "What the memory store takes")
        self.feeds = gauge("subscriptions", "Open server-side subscriptions")
        self._poll_ends = {
            (mode, reason): self._polls.labels(mode.value, reason.value)
            for mode in Mode
            for reason in CloseReason
        }
        self._doors = {door: self._publishes.labels(door) for door in ("http", "broadcast")}
        self._lookups = {
            outcome: self._lookup_seconds.labels(outcome)
            for outcome in ("identified", "refused", "unavailable")
        }
        self._stores = {
            name: (self._store_seconds.labels(name), self._store_errors.labels(name))
            for name in ("publish", "read", "check")
        }

    def watch_parked(self, count: Callable[[], dict[Mode, int]]) -> None:
        """Ask this function for the number of parked polls."""
        self.registry.register(_ParkedPolls(count))

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

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

    # -- the store ---------------------------------------------------------------------------

    @contextmanager
    def store_operation(self, name: str) -> Iterator[None]:
        """Measure what happens inside; count it if the store fails."""
        seconds, errors = self._stores[name]
        started = self._clock()
        try:
            yield
        except StoreUnavailable:
            errors.inc()
            raise
        finally:
            seconds.observe(self._clock() - started)
