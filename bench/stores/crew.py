"""Several workers and one, on Redis, with the same load. All cores are everybody's."""

from __future__ import annotations

from bench.load import Caller, publish_request
from bench.scenarios import FIRST_STREAMS, Bench, Figure, Scale, fan_out, rate
from bench.servers import running
from bench.stores.places import Place

PUBLISHERS = 64


async def crew(place: Place, scale: Scale, workers: int, *cores: int) -> list[Figure]:
    async with running(place.peer(workers), *cores) as server:
        control = await Caller.open(server)
        bench = Bench(server, scale, control)
        try:
            figures = [await _park(bench)]
            figures += await fan_out(bench, scale.small)
            await bench.crowd.resize(0)
            request = publish_request(server, "/published")
            figures.append(
                await bench.hammer(f"publish, {PUBLISHERS} at a time", request, PUBLISHERS)
            )
            return figures
        finally:
            bench.crowd.close()
            control.close()


async def _park(bench: Bench) -> Figure:
    crowd, scale = bench.crowd, bench.scale
    await crowd.resize(FIRST_STREAMS)
    watch = bench.watch()
    await crowd.resize(scale.medium)
    return rate("connect and park", scale.medium - FIRST_STREAMS, watch.stop())
