"""How far away a server is, in milliseconds and by its clock: the same for every kind of store."""

from __future__ import annotations

from collections.abc import Sequence

from messagebusd.doctor.report import Finding, ok, warning

CLOCK_SECONDS = 2.0
# Parts of the configured timeout that a usual and a slow round trip may take.
USUAL_PART, SLOW_PART = 0.1, 0.5
# Round trips that are measured.
ROUND_TRIPS = 20


def latency(check: str, seconds: Sequence[float], timeout: float, setting: str) -> Finding:
    """Whether answers come soon enough."""
    ordered = sorted(seconds)
    median, longest = ordered[len(ordered) // 2], ordered[-1]
    found = f"round trip {median * 1000:.1f} ms, at most {longest * 1000:.1f} ms"
    if median > USUAL_PART * timeout or longest > SLOW_PART * timeout:
        return warning(
            check,
            f"{found}; {setting} is {timeout:g} s",
            f"run the daemon nearer to the server, look for what keeps it busy, or raise {setting}",
        )
    return ok(check, found)


def clock(check: str, difference: float, round_trip: float) -> Finding:
    """Whether the server's clock and ours agree; ``difference`` is theirs minus ours."""
    # The answer may have been made at any moment of the round trip.
    certain = max(0.0, abs(difference) - round_trip / 2)
    if certain > CLOCK_SECONDS:
        side = "ahead of" if difference > 0 else "behind"
        return warning(
            check,
            f"the server's clock is {certain:.1f} s {side} ours",
            "run an NTP client (chrony, systemd-timesyncd) on both machines",
        )
    return ok(check, f"differs by less than {CLOCK_SECONDS:g} s")
