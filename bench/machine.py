"""What is measured on, and what the processes take of it. Linux only: everything is in /proc."""

from __future__ import annotations

import os
import platform
import re
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.errors import BenchError

PACKAGES = ("messagebusd", "aiohttp", "uvloop", "msgspec")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; the same core twice if there is only one."""

    server: int
    generator: int

    @classmethod
    def choose(cls) -> Cores:
        """The first and the last core that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(server=allowed[0], generator=allowed[-1])


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has had so far, in seconds: of a core, and of waiting for its turn on it."""

    cpu: float
    waited: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        cpu = waited = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            running, waiting, _ = (task / "schedstat").read_text().split()
            cpu += int(running)
            waited += int(waiting)
        return cls(cpu / 1e9, waited / 1e9)

    @classmethod
    def of_family(cls, pid: int) -> Usage:
        """With the processes that it has started, and those that they have."""
        own = cls.of(pid)
        cpu, waited = own.cpu, own.waited
        for child in _children(pid):
            try:
                usage = cls.of_family(child)
            except (FileNotFoundError, ProcessLookupError):
                continue  # has just ended
            cpu += usage.cpu
            waited += usage.waited
        return cls(cpu, waited)

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.cpu - earlier.cpu, self.waited - earlier.waited)


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process takes, in bytes: resident, and proportional (shared pages divided)."""

    rss: int
    pss: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = dict(re.findall(r"^(Rss|Pss): +(\d+) kB$", text, re.MULTILINE))
        return cls(int(found["Rss"]) * 1024, int(found["Pss"]) * 1024)

    @classmethod
    def of_family(cls, pid: int) -> Memory:
        """With the processes that it has started."""
        every = [cls.of(pid), *(cls.of_family(child) for child in _children(pid))]
        return cls(sum(each.rss for each in every), sum(each.pss for each in every))


@dataclass(frozen=True, slots=True)
class Span:
    """What some stretch of time took. ``waited`` is the longer wait of both processes."""

    seconds: float
    server_cpu: float
    generator_cpu: float
    waited: float


class Stopwatch:
    """Measures a span from its making on: a server's, and that of the load generator.

    That is this process, and maybe a ``helper`` on the same core.
    """

    def __init__(self, pid: int, helper: int | None = None) -> None:
        self._pid = pid
        self._helper = helper
        self._server, self._own = Usage.of_family(pid), Usage.of(os.getpid())
        self._helped = self._help()
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def stop(self) -> Span:
        seconds = self.seconds
        server = Usage.of_family(self._pid) - self._server
        own = Usage.of(os.getpid()) - self._own
        helped = self._help() - self._helped
        # The two wait for each other, which is no disturbance.
        mutual = 2 * min(own.cpu, helped.cpu)
        waited = max(0.0, own.waited + helped.waited - mutual)
        return Span(seconds, server.cpu, own.cpu + helped.cpu, max(server.waited, waited))

    def _help(self) -> Usage:
        return Usage(0.0, 0.0) if self._helper is None else Usage.of(self._helper)


@contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Let this process, and what it starts, run on these cores meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def reserve_descriptors(wanted: int) -> None:
    """Raise the limit for this process and those it starts. BenchError when it cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(
            f"{wanted} file descriptors are needed, the hard limit is {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe(cores: Cores, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The machine and the software, as it stands above the figures."""
    own = cores.server != cores.generator
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "cores": "server and load generator on one each"
        if own
        else "server and load generator share the only one: read ratios, not figures",
        "load": f"{os.getloadavg()[0]:.1f} before the start",
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^(?:model name|Model)\s*: (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
