"""The daemon on a store: publishes over HTTP, and polls."""

from __future__ import annotations

from bench.scenarios import Bench, Figure, Scale, empty_polls, percentiles, polls_with_news, rate
from bench.servers import running
from bench.stores.places import Place
from bench.stores.publishing import CHANNEL, title


async def serve(
    place: Place, scale: Scale, publishers: tuple[int, ...], core: int
) -> tuple[list[Figure], list[Figure]]:
    """A daemon of its own for this; its publishes, and its polls."""
    async with running(place.peer(), core) as server, Bench.of(server, scale) as bench:
        published = [
            figure for count in publishers for figure in await _publishes(bench, place, count)
        ]
        return published, [*await empty_polls(bench), *await polls_with_news(bench)]


async def _publishes(bench: Bench, place: Place, publishers: int) -> list[Figure]:
    request = bench.publish(CHANNEL)
    name = title(place, publishers)
    async with bench.callers(publishers) as callers:
        await bench.repeat(callers, request, bench.scale.seconds / 10)
        latencies: list[float] = []
        for caller in callers:
            caller.latencies = latencies
        watch = bench.watch()
        count = await bench.repeat(callers, request, bench.scale.seconds)
        return [rate(name, count, watch.stop()), *percentiles(name, latencies)]
