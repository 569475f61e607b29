"""The stream of the Redis door (``ingest.redis``): does anybody read it, is anything left over?"""

from __future__ import annotations

from messagebusd.doctor.redis_probe import Probe
from messagebusd.doctor.report import Finding, ok, problem, warning

# An entry that waits for so long is not only on its way.
STUCK_SECONDS = 30.0


async def examine(probe: Probe, stream: str) -> list[Finding]:
    """All that is known of the stream. Raises as `Probe.ask` does."""
    dead = f"{stream}:dead"
    for key in (stream, dead):
        kind = (await probe.ask("TYPE", key)).decode()
        if kind not in ("stream", "none"):
            return [
                problem(
                    "inbox.stream",
                    f"the key {key!r} is a {kind}, not a stream",
                    "DEL it, or set ingest.redis.stream to another key",
                )
            ]
    return [await _stream(probe, stream), await _dead(probe, dead)]


async def _stream(probe: Probe, stream: str) -> Finding:
    check = "inbox.stream"
    has_reader = await probe.ask("EXISTS", f"{stream}:reader")
    reader = "a daemon reads it" if has_reader else "no daemon reads it at the moment"
    # It holds what is not published yet, oldest first.
    if not (oldest := await probe.ask("XRANGE", stream, "-", "+", "COUNT", 1)):
        return ok(check, f"nothing waits in {stream!r}; {reader}")
    waiting = await probe.ask("XLEN", stream)
    now, _ = await probe.ask("TIME")
    age = int(now) - int(oldest[0][0].partition(b"-")[0]) // 1000
    found = f"{waiting} entries wait in {stream!r}, the oldest for {age} s; {reader}"
    if not has_reader:
        return warning(check, found, "start a daemon with ingest.redis.enabled")
    if age > STUCK_SECONDS:
        advice = "look at /readyz and the daemon's log: the store may be away, or too slow"
        return warning(check, found, advice)
    return ok(check, found)


async def _dead(probe: Probe, dead: str) -> Finding:
    if not (count := await probe.ask("XLEN", dead)):
        return ok("inbox.dead", "no dead letters")
    return warning(
        "inbox.dead",
        f"{count} entries could not be published and are in {dead!r}",
        f"redis-cli XRANGE {dead} - + COUNT 10 shows them with the reason; delete them afterwards",
    )
