"""Several workers and one, on Redis, with the same load. All cores are everybody's."""

from __future__ import annotations

from bench.scenarios import FIRST_STREAMS, Bench, Figure, Scale, fan_out, rate
from bench.servers import running
from bench.stores.places import Place

PUBLISHERS = 64


async def crew(place: Place, scale: Scale, workers: int, *cores: int) -> list[Figure]:
    peer = place.peer(workers)
    async with running(peer, *cores) as server, Bench.of(server, scale) as bench:
        figures = [await _park(bench)]
        figures += await fan_out(bench, scale.small)
        await bench.crowd.resize(0)
        request = bench.publish("/published")
        figures.append(await bench.hammer(f"publish, {PUBLISHERS} at a time", request, PUBLISHERS))
        return figures


async def _park(bench: Bench) -> Figure:
    crowd, scale = bench.crowd, bench.scale
    await crowd.resize(FIRST_STREAMS)
    watch = bench.watch()
    await crowd.resize(scale.medium)
    return rate("connect and park", scale.medium - FIRST_STREAMS, watch.stop())
