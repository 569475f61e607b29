"""What the doctor finds, and how it is told: to people a line a check, to machines as JSON.

Nothing here may hold a secret. Checks say what they found in words of their own and never quote a
URL, a password or what a message holds.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field


class Level(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, what was found, and what to do about it."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:<8} {self.check}: {self.found}{advice}"


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """It works, but somebody should know or change something."""
    return Finding(check, Level.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """It does not work, or it will lose something."""
    return Finding(check, Level.PROBLEM, found, advice)


@dataclass(slots=True)
class Report:
    """All findings, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, *findings: Finding) -> None:
        """Take note."""
        self.findings += findings

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take note of several."""
        self.findings += findings

    @property
    def level(self) -> Level:
        """The worst of them."""
        levels = {finding.level for finding in self.findings}
        return next((each for each in reversed(Level) if each in levels), Level.OK)

    @property
    def has_problem(self) -> bool:
        """Whether something does not work."""
        return self.level is Level.PROBLEM

    def lines(self) -> Sequence[str]:
        """A line for each check."""
        return [str(finding) for finding in self.findings]

    def as_json(self) -> str:
        """The same for machines: ``{"status":…,"checks":[{"check","level","found","advice"}]}``."""
        checks = [asdict(finding) for finding in self.findings]
        return json.dumps({"status": self.level, "checks": checks}, indent=2)


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
