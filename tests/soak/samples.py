"""What the daemons take, looked at every few seconds, and what they say. Linux: it is in /proc."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from bench.machine import Memory
from tests.soak.windows import Windows
from tests.support.daemon import Daemon

MAX_LINES = 5000

_LINE = re.compile(r"^(messagebusd_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One daemon at one moment. ``life`` counts its starts, sizes are bytes, ``at`` is seconds
    since the start of the run. ``is_quiet`` is whether nothing was being done to its installation.
    """

    daemon: str
    life: int
    at: float
    is_quiet: bool
    rss: int
    pss: int
    files: int
    threads: int
    parked: float


class Metrics:
    """A daemon's metrics as they were."""

    def __init__(self, text: str) -> None:
        self._values: list[tuple[str, str, float]] = [
            (found[1], found[2] or "", float(found[3])) for found in _LINE.finditer(text)
        ]

    def sum(self, name: str, label: str = "") -> float:
        """The sum of a metric over its labels, or over those that have this text in them."""
        return sum(
            value for each, labels, value in self._values if each == name and label in labels
        )


async def scrape(session: aiohttp.ClientSession, daemon: Daemon) -> Metrics:
    """The metrics of a daemon now."""
    async with session.get(f"{daemon.internal_url}/metrics") as answer:
        return Metrics(await answer.text())


def files_of(pid: int) -> int:
    """How many file descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads_of(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


class Sampler:
    """Watches the daemons of one installation."""

    def __init__(self, kind: str, daemons: Sequence[Daemon], windows: Windows) -> None:
        self.samples: list[Sample] = []
        self.warnings: Counter[str] = Counter()
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        """The latest lines of their logs that are not information."""
        self.slow: dict[int, float] = {}
        """How many slow readers each process has ended."""
        self._kind = kind
        self._daemons = daemons
        self._windows = windows
        self._pids = [0] * len(daemons)
        self._lives = [0] * len(daemons)
        self._read = [0] * len(daemons)

    def name(self, index: int) -> str:
        return f"{self._kind} {index + 1}"

    async def sample(self, session: aiohttp.ClientSession, at: float) -> None:
        """Take one sample of each daemon that runs."""
        for index, daemon in enumerate(self._daemons):
            try:
                metrics = await scrape(session, daemon)
                pid = daemon.pid
                memory = Memory.of(pid)
                files, threads = files_of(pid), threads_of(pid)
            except (aiohttp.ClientError, OSError):
                continue  # it is being restarted
            if pid != self._pids[index]:
                self._pids[index] = pid
                self._lives[index] += 1
            self.slow[pid] = metrics.sum("messagebusd_polls_total", 'outcome="slow"')
            self.samples.append(
                Sample(
                    daemon=self.name(index),
                    life=self._lives[index],
                    at=round(at, 1),
                    is_quiet=self._windows.is_quiet,
                    rss=memory.rss,
                    pss=memory.pss,
                    files=files,
                    threads=threads,
                    parked=metrics.sum("messagebusd_parked_polls"),
                )
            )

    def read_logs(self) -> None:
        """Look at what the daemons have logged since the last time."""
        for index, daemon in enumerate(self._daemons):
            lines = daemon.stderr[self._read[index] :]
            self._read[index] += len(lines)
            for line in lines:
                self._judge(self.name(index), line)

    def _judge(self, name: str, line: str) -> None:
        try:
            record = json.loads(line)
            level, message = record["level"], record["message"]
        except (ValueError, TypeError, KeyError):
            self._windows.met("log noise", f"{name}: {line[:500]}")
            return
        if level not in ("debug", "info"):
            self.lines.append(f"{name}: {line[:1000]}")
        if level == "warning":
            self.warnings[message] += 1
            self._windows.met("log warning", f"{name}: {line[:500]}")
        elif level not in ("debug", "info"):
            self._windows.met(f"log {level}", f"{name}: {line[:2000]}")


def as_json(samples: Sequence[Sample]) -> list[Mapping[str, object]]:
    return [asdict(each) for each in samples]
