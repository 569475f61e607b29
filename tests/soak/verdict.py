"""The judgement: what grew, and whether anything was not as it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tests.soak.samples import Sample

# Memory may seem to grow by so much over the samples that are looked at: an allocator keeps what a
# burst needed. In an hour that shows a leak of 200 bytes for each of 8 messages a second, in ten
# minutes one of 2,000.
MAX_GROWTH_BYTES = 4 * 2**20
MAX_GROWTH_FILES = 8
MAX_GROWTH_THREADS = 1
# Growth is judged only over at least so many seconds and samples.
MIN_SPAN_SECONDS = 120.0
MIN_SAMPLES = 12
# The first part of a daemon's life is left out: caches fill, and so does the store in memory.
WARM_UP_SECONDS = 180.0
WARM_UP_PART = 0.2
# What an idempotency key takes in the memory store, for 24 hours (`backends/ledger.py`).
KEY_BYTES = 450


@dataclass(frozen=True, slots=True)
class Trend:
    """The line of least squares through a daemon's samples. ``growth`` is over ``span`` seconds."""

    first: float
    last: float
    growth: float
    span: float
    samples: int

    @property
    def per_hour(self) -> float:
        return self.growth / self.span * 3600 if self.span else 0.0

    @property
    def is_telling(self) -> bool:
        """Whether there is enough of it to be judged."""
        return self.span >= MIN_SPAN_SECONDS and self.samples >= MIN_SAMPLES


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """The trend of values over time, each a pair of seconds and value."""
    if len(points) < 2:
        value = points[0][1] if points else 0.0
        return Trend(value, value, 0.0, 0.0, len(points))
    middle_at = sum(at for at, _ in points) / len(points)
    middle = sum(value for _, value in points) / len(points)
    spread = sum((at - middle_at) ** 2 for at, _ in points)
    together = sum((at - middle_at) * (value - middle) for at, value in points)
    slope = together / spread if spread else 0.0
    span = points[-1][0] - points[0][0]
    first = middle + slope * (points[0][0] - middle_at)
    return Trend(first, first + slope * span, slope * span, span, len(points))


@dataclass(frozen=True, slots=True)
class Growth:
    """How one daemon did over its longest life, outside of faults and after its warm-up."""

    daemon: str
    rss: Trend
    pss: Trend
    files: Trend
    threads: Trend

    def findings(self, allowance: float = 0.0) -> list[str]:
        """What grew too much. ``allowance``: bytes that are meant to be kept."""
        bounds: list[tuple[str, Trend, float]] = [
            ("rss", self.rss, MAX_GROWTH_BYTES + allowance),
            ("pss", self.pss, MAX_GROWTH_BYTES + allowance),
            ("files", self.files, MAX_GROWTH_FILES),
            ("threads", self.threads, MAX_GROWTH_THREADS),
        ]
        return [
            f"{self.daemon}: {name} grew by {each.growth:,.0f} in {each.span:.0f} s, "
            f"{bound:,.0f} at most"
            for name, each, bound in bounds
            if each.is_telling and each.growth > bound
        ]


def growths(samples: Iterable[Sample], warm_at: float = 0.0) -> list[Growth]:
    """The growth of each daemon, once it is warm: it has lived for some time, and each fault has
    been, of which every one leaves the heap a little larger the first time; at ``warm_at``.
    """

    def by_daemon(each: Sample) -> str:
        return each.daemon

    found = []
    for daemon, group in groupby(sorted(samples, key=by_daemon), key=by_daemon):
        lives: dict[int, list[Sample]] = {}
        for each in group:
            lives.setdefault(each.life, []).append(each)
        longest = max(lives.values(), key=lambda life: life[-1].at - life[0].at)
        length = longest[-1].at - longest[0].at
        begin = max(longest[0].at + max(WARM_UP_SECONDS, WARM_UP_PART * length), warm_at)
        steady = [each for each in longest if each.is_quiet and each.at >= begin]

        def of(value: Callable[[Sample], float], steady: Sequence[Sample] = steady) -> Trend:
            return trend([(each.at, value(each)) for each in steady])

        found.append(
            Growth(
                daemon,
                of(lambda each: each.rss),
                of(lambda each: each.pss),
                of(lambda each: each.files),
                of(lambda each: each.threads),
            )
        )
    return found


@dataclass(slots=True)
class Outcome:
    """All that is known of one installation at the end of a run."""

    kind: str
    wrongs: Mapping[str, int]
    wrong_examples: Sequence[str]
    unexcused: Mapping[str, int]
    unexcused_examples: Sequence[str]
    growths: Sequence[Growth]
    kept_keys: int = 0
    findings: list[str] = field(default_factory=list)
    """What else was found: counts that do not agree, descriptors that stayed open."""

    def all_findings(self) -> list[str]:
        """Everything that is not as it should be, in words; none, and the run has passed."""
        found = [f"messages: {count} {kind}" for kind, count in self.wrongs.items()]
        found += [f"unexcused: {count} {what}" for what, count in self.unexcused.items()]
        for growth in self.growths:
            found += growth.findings(self.kept_keys * KEY_BYTES)
        return [f"{self.kind}: {each}" for each in [*found, *self.findings]]


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """The growth of all daemons, as lines of text."""
    lines = [
        f"{'daemon':<12} {'seconds':>8} {'samples':>8} {'rss MB':>16} {'MB/h':>7} "
        f"{'pss MB/h':>9} {'files':>11} {'/h':>6} {'threads':>9}"
    ]
    for growth in (each for outcome in outcomes for each in outcome.growths):
        rss, files, threads = growth.rss, growth.files, growth.threads
        lines.append(
            f"{growth.daemon:<12} {rss.span:>8.0f} {rss.samples:>8} "
            f"{rss.first / 1e6:>7.1f} → {rss.last / 1e6:>6.1f} {rss.per_hour / 1e6:>7.2f} "
            f"{growth.pss.per_hour / 1e6:>9.2f} {files.first:>4.0f} → {files.last:>4.0f} "
            f"{files.per_hour:>6.1f} {threads.first:>3.0f} → {threads.last:>3.0f}"
        )
    return lines
