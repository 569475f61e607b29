"""When to try again, and when to poll next: pure functions of what happened.

Waits are jittered over their full length, so that thousands of clients of one server that restarts
do not come back in the same moment. The rules of polls are those of every client of messagebusd:
clients/vectors/README.md. Times are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Random = Callable[[], float]
"""A number from 0 up to 1, 1 excluded."""

# Retry-After counts whole seconds: this spreads those who were told the same.
_RETRY_AFTER_SPREAD = 1.0
# A server that says more is not obeyed to the letter.
_MAX_RETRY_AFTER = 3600.0
_POLL_RETRY_AFTER = 15.0
_POLL_FIRST_BACKOFF = 1.0


def backoff(attempt: int, base: float, limit: float, random: Random) -> float:
    """Seconds to wait after the failure number ``attempt``, from 0: full jitter, doubling."""
    return random() * min(limit, base * 2.0 ** min(attempt, 64))


def after_refusal(
    attempt: int, retry_after: float | None, base: float, limit: float, random: Random
) -> float:
    """The same, but never before the server wants to be asked again."""
    if retry_after is None:
        return backoff(attempt, base, limit, random)
    return retry_after + random() * _RETRY_AFTER_SPREAD


def retry_after_seconds(value: str | None) -> float | None:
    """What a Retry-After header says, if it counts seconds, as messagebusd's does."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return min(seconds, _MAX_RETRY_AFTER) if math.isfinite(seconds) and seconds >= 0 else None


@dataclass(frozen=True, slots=True)
class Intervals:
    """The settings of a poller: polls start ``callback`` apart, ``background`` without long
    polling; at least ``minimum`` and, after failures, at most ``maximum`` passes between."""

    minimum: float
    maximum: float
    callback: float
    background: float


@dataclass(frozen=True, slots=True)
class Changed:
    """The poll was given up: something else has to be asked for."""


@dataclass(frozen=True, slots=True)
class Answered:
    """It ended as it should. ``got_data``: it was a JSON array, no stream, and had messages."""

    got_data: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """``failures`` in a row, this one included."""

    failures: int
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class RateLimited:
    """Status 429."""

    retry_after: float | None = None


Outcome: TypeAlias = Changed | Answered | Failed | RateLimited


def next_poll(
    outcome: Outcome, intervals: Intervals, *, long_polling: bool, elapsed: float, random: float
) -> float:
    """Seconds to wait now; ``elapsed`` have passed since the last poll was sent."""
    # Without long polling never faster than this, whatever comes.
    least = 0.0 if long_polling else intervals.background - elapsed
    match outcome:
        case Changed():
            return max(0.0, intervals.minimum - elapsed)
        case Answered(got_data):
            if long_polling and not got_data:
                least = intervals.callback - elapsed
            return max(intervals.minimum, least)
        case Failed(failures, retry_after):
            longest = min(
                _POLL_FIRST_BACKOFF * 2.0 ** min(failures - 1, 64),
                intervals.callback * failures,
                intervals.maximum,
            )
            delay = intervals.minimum + random * max(0.0, longest - intervals.minimum)
            return max(delay, min(retry_after or 0.0, _MAX_RETRY_AFTER), least)
        case RateLimited(retry_after):
            asked = _POLL_RETRY_AFTER if retry_after is None else retry_after
            delay = max(1.0, min(asked, _MAX_RETRY_AFTER)) * (1 + random / 4)
            return max(intervals.minimum, delay, least)
