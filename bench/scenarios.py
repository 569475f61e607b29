"""What is measured. Each scenario is about a second of work for a server, and yields figures.

They run in the order of `SCENARIOS`: those with the largest crowd come first, so that it is opened
once for each server. A few operations before the clock starts warm everything up.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any, Literal, NamedTuple

from bench.crowds import Crowd, Herd
from bench.dialects import MARK, PAYLOAD, batch_request, get_request, poll_request
from bench.errors import BenchError
from bench.load import Caller
from bench.machine import Span, Stopwatch
from bench.servers import Server

BATCH = 100
POLLERS = 16
NEWS = 10
SATURATING_PUBLISHERS = 8
BURST = 5
# Ten of these are more than a connection's buffers in the kernel take for a reader that is away.
LARGE = PAYLOAD + "x" * 32_000
STEADY_RATE = 10
# Streams that are there before memory is measured: what is imported or allocated once is there too.
FIRST_STREAMS = 50
# Rounds of everything that is measured one by one, however slow.
AT_LEAST = 3
# Messages to each stream before it counts. A TCP receiver that has heard nothing for longer than a
# retransmission timeout acknowledges the next 16 segments at once, and on loopback the sender's
# core does that, too: see LIMITS.md.
WARM_UP = 17
# What does not grow at all differs by noise, also below zero, and ratios want a number.
LEAST_EXPONENT = 0.01

_MESSAGE_ID = re.compile(rb'"message_id": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it: sizes of crowds, and the seconds of a scenario."""

    small: int
    medium: int
    large: int
    seconds: float


FULL = Scale(small=1_000, medium=5_000, large=10_000, seconds=0.8)
QUICK = Scale(small=100, medium=200, large=400, seconds=0.1)


@dataclass(frozen=True, slots=True)
class Figure:
    """One result. What it took is known where something was done so and so often.

    ``server_cpu`` are the server's seconds on its core for one operation. ``generator`` is the part
    of the time that the load generator was busy, ``waited`` the part that one of both was ready to
    run and others had its core.
    """

    name: str
    unit: str
    value: float
    better: Literal["more", "less"] = "more"
    server_cpu: float | None = None
    generator: float | None = None
    waited: float | None = None


class Bench:
    """A server under test, and what the scenarios share."""

    def __init__(self, server: Server, scale: Scale, control: Caller, crowd: Crowd) -> None:
        self.server = server
        self.scale = scale
        self.control = control
        self.crowd = crowd

    @classmethod
    @asynccontextmanager
    async def of(cls, server: Server, scale: Scale) -> AsyncIterator[Bench]:
        """For a running server."""
        control = await Caller.open(server)
        try:
            async with Crowd.of(server, control) as crowd:
                yield cls(server, scale, control, crowd)
        finally:
            control.close()

    def watch(self) -> Stopwatch:
        return Stopwatch(self.server.pid, self.crowd.pid)

    def publish(self, channel: str, **options: Any) -> bytes:
        """A request that publishes a message."""
        return self.server.dialect.publish(self.server.key, channel, **options)

    @asynccontextmanager
    async def callers(self, count: int) -> AsyncIterator[list[Caller]]:
        callers = [await Caller.open(self.server) for _ in range(count)]
        try:
            yield callers
        finally:
            for caller in callers:
                caller.close()

    async def hammer(self, name: str, request: bytes, connections: int, each: int = 1) -> Figure:
        """Repeat a request on some connections; ``each`` is what one of them counts for."""
        async with self.callers(connections) as callers:
            await self.repeat(callers, request, self.scale.seconds / 10)
            watch = self.watch()
            operations = each * await self.repeat(callers, request, self.scale.seconds)
            return rate(name, operations, watch.stop())

    async def repeat(self, callers: Sequence[Caller], request: bytes, seconds: float) -> int:
        """Let all of them repeat a request for so long; how many answers there were."""
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(each.repeat(request, until) for each in callers)))

    async def to_crowd(self, request: bytes, recipients: int) -> float:
        """Publish to the crowd, of which so many receive it; the seconds until the last one has."""
        started = time.perf_counter()
        await self.control.call(request)
        return await self.crowd.receive(recipients) - started

    async def warm_up(self, request: bytes, recipients: int) -> None:
        """Publish to the crowd until it costs the same from one time to the next."""
        for _ in range(WARM_UP):
            await self.to_crowd(request, recipients)


def rate(name: str, operations: int, span: Span) -> Figure:
    return Figure(
        name,
        "/s",
        operations / span.seconds,
        server_cpu=span.server_cpu / operations,
        generator=span.generator_cpu / span.seconds,
        waited=span.waited / span.seconds,
    )


def percentiles(name: str, seconds: list[float]) -> list[Figure]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return [
        Figure(f"{name}, p{part}", "ms", 1e3 * ordered[len(ordered) * part // 100], "less")
        for part in (50, 99)
    ]


async def park(bench: Bench) -> list[Figure]:
    """What a parked stream takes, and how fast they come."""
    crowd, scale = bench.crowd, bench.scale
    await crowd.resize(FIRST_STREAMS)
    first = bench.server.memory()
    await crowd.resize(scale.small)
    small = bench.server.memory()
    watch = bench.watch()
    await crowd.resize(scale.large)
    span = watch.stop()
    large = bench.server.memory()
    early, late = scale.small - FIRST_STREAMS, scale.large - scale.small
    few, many = f"the first {scale.small:,}", f"{scale.small:,} to {scale.large:,}"
    return [
        Figure(f"parked stream, resident, {few}", "B", (small.rss - first.rss) / early, "less"),
        Figure(f"parked stream, resident, {many}", "B", (large.rss - small.rss) / late, "less"),
        Figure(f"parked stream, proportional, {many}", "B", (large.pss - small.pss) / late, "less"),
        rate("connect and park", late, span),
    ]


async def fan_out(bench: Bench, size: int) -> list[Figure]:
    """One message at a time to everybody."""
    await bench.crowd.resize(size)
    request = bench.publish(bench.crowd.channel)
    await bench.warm_up(request, size)
    latencies: list[float] = []
    watch = bench.watch()
    while watch.seconds < bench.scale.seconds or len(latencies) < AT_LEAST:
        latencies.append(await bench.to_crowd(request, size))
    name = f"fan-out to {size:,}"
    deliveries = rate(f"{name}, deliveries", size * len(latencies), watch.stop())
    return [deliveries, *percentiles(f"{name}, last one", latencies)]


async def fairness(bench: Bench, size: int) -> list[Figure]:
    """How long others wait while publishers never pause and a message goes to everybody."""
    await bench.crowd.resize(size)
    crowd = bench.crowd
    asked = {
        "poll": poll_request(size + 1, "/elsewhere=0", immediate=True),
        "publish": bench.publish("/elsewhere"),
        "/metrics": get_request("/metrics"),
        "/readyz": get_request("/readyz"),
    }
    longest: dict[str, list[float]] = {name: [] for name in asked}
    async with bench.callers(len(asked)) as callers:
        request = bench.publish(crowd.channel)
        await bench.to_crowd(request, size)
        watch = bench.watch()
        while watch.seconds < bench.scale.seconds or not longest["poll"]:
            burst = asyncio.create_task(_burst(bench, request, size))
            waits = await asyncio.gather(
                *(
                    _ask_until(burst, caller, each)
                    for caller, each in zip(callers, asked.values(), strict=True)
                )
            )
            await burst
            for name, wait in zip(asked, waits, strict=True):
                longest[name].append(wait)
    return [
        Figure(
            f"longest wait during a burst to {size:,}: {name}", "ms", 1e3 * median(waits), "less"
        )
        for name, waits in longest.items()
    ]


async def _burst(bench: Bench, request: bytes, size: int) -> None:
    """Some messages one behind the other, until everybody has all of them."""
    for _ in range(BURST):
        await bench.control.call(request)
    await bench.crowd.receive(BURST * size)


async def _ask_until(done: asyncio.Task[None], caller: Caller, request: bytes) -> float:
    """Ask again and again, at least once; the longest wait for an answer, in seconds."""
    longest = 0.0
    while not done.done() or not longest:
        asked = time.perf_counter()
        await caller.call(request)
        longest = max(longest, time.perf_counter() - asked)
    return longest


async def slow_readers(bench: Bench, size: int) -> list[Figure]:
    """What a fan-out of large messages costs, alone and beside streams that nobody reads."""
    await bench.crowd.resize(size)
    request = bench.publish(bench.crowd.channel, data=LARGE)
    figures = []
    for idle in (0, size // 10):
        await bench.crowd.idle(idle)
        operations = await repeated(bench, request, size)
        name = f"fan-out of {len(LARGE) // 1000} kB to {size:,}"
        if idle:
            name += f" beside {idle:,} that do not read"
        figures.append(rate(f"{name}, deliveries", size * operations.count, operations.span))
    await bench.crowd.idle(0)
    return figures


async def targeted(bench: Bench, size: int) -> list[Figure]:
    """One message at a time to one of many."""
    await bench.crowd.resize(size)
    users = Random(size).sample(range(1, size + 1), 64)
    requests = [bench.publish(bench.crowd.channel, user_ids=[user]) for user in users]
    await bench.to_crowd(requests[0], 1)
    latencies: list[float] = []
    watch = bench.watch()
    while watch.seconds < bench.scale.seconds or len(latencies) < AT_LEAST:
        latencies.append(await bench.to_crowd(requests[len(latencies) % len(requests)], 1))
    return [rate(f"to one of {size:,}", len(latencies), watch.stop())]


async def chosen(bench: Bench, size: int) -> list[Figure]:
    """One message at a time to users that it names: all of the crowd, and a hundredth of it."""
    await bench.crowd.resize(size)
    figures = []
    for count in (size, size // 100):
        users = list(range(1, count + 1))
        request = bench.publish(bench.crowd.channel, user_ids=users)
        operations = await repeated(bench, request, count)
        name = f"to {count:,} named of {size:,}, deliveries"
        figures.append(rate(name, count * operations.count, operations.span))
    return figures


async def growth(bench: Bench, small: int, large: int) -> list[Figure]:
    """How the server's work grows with the crowd: the exponent, 0 is constant and 1 is linear."""
    spent: dict[str, list[float]] = {}
    for size in (large, small):
        await bench.crowd.resize(size)
        for name, recipients, audience in (
            ("a message to everybody", size, {}),
            ("a message to one", 1, {"user_ids": [size // 2]}),
        ):
            request = bench.publish(bench.crowd.channel, **audience)
            operations = await repeated(bench, request, recipients)
            spent.setdefault(name, []).append(operations.span.server_cpu / operations.count)
        for name, request in (
            ("a message to nobody", bench.publish("/unheard")),
            ("an empty poll", poll_request(size + 1, "/elsewhere=0", immediate=True)),
        ):
            figure = await bench.hammer(name, request, 1)
            assert figure.server_cpu is not None
            spent.setdefault(name, []).append(figure.server_cpu)
    sizes = f"{small:,} to {large:,} parked"
    return [
        exponent(f"{name}, growth from {sizes}", large / small, *of) for name, of in spent.items()
    ]


async def poll_growth(bench: Bench) -> list[Figure]:
    """The same for a poll that is up to date, with the backlog and with the number of channels."""
    await bench.crowd.resize(0)
    few, many = 10, 1000
    spent = []
    for count in (many, few):
        name = f"/backlog/{count}"
        last_id = 0
        for _ in range(count // 10):
            answer = await bench.control.call(batch_request(bench.server.key, name, 10))
            last_id = int(_MESSAGE_ID.findall(answer)[-1])
        request = poll_request(1, f"{name}={last_id}", immediate=True)
        figure = await bench.hammer(name, request, 1)
        assert figure.server_cpu is not None
        spent.append(figure.server_cpu)
    name = f"an empty poll, growth from {few} to {many:,} messages in the backlog"
    return [exponent(name, many / few, *spent)]


def exponent(name: str, times: float, large: float, small: float) -> Figure:
    """How a cost grows, by what it is at a size and at one that is so many times smaller."""
    value = max(LEAST_EXPONENT, math.log(large / small) / math.log(times))
    return Figure(name, "exponent", value, "less")


class Operations(NamedTuple):
    """How often something was done, and what that took."""

    count: int
    span: Span


async def repeated(bench: Bench, request: bytes, recipients: int) -> Operations:
    """Publish to the crowd one message at a time, each when the one before has arrived."""
    await bench.warm_up(request, recipients)
    count = 0
    watch = bench.watch()
    while watch.seconds < bench.scale.seconds or count < AT_LEAST:
        await bench.to_crowd(request, recipients)
        count += 1
    return Operations(count, watch.stop())


async def unheard(bench: Bench, size: int) -> list[Figure]:
    """Publish what nobody listens to, while many listen to something else."""
    await bench.crowd.resize(size)
    request = bench.publish("/unheard")
    return [await bench.hammer(f"publish to nobody, {size:,} parked", request, 1)]


async def saturated(bench: Bench, size: int) -> list[Figure]:
    """Publishers that never pause, everybody receives everything."""
    crowd = bench.crowd
    await crowd.resize(size)
    request = bench.publish(crowd.channel)
    await bench.to_crowd(request, size)
    async with bench.callers(SATURATING_PUBLISHERS) as publishers:
        watch = bench.watch()
        deliveries = size * await bench.repeat(publishers, request, bench.scale.seconds)
        await crowd.receive(deliveries)
        span = watch.stop()
    name = f"{SATURATING_PUBLISHERS} publishers to {size:,}, deliveries"
    return [rate(name, deliveries, span)]


async def steady(bench: Bench, size: int) -> list[Figure]:
    """A calm site: how long a delivery takes."""
    crowd = bench.crowd
    await crowd.resize(size)
    request = bench.publish(crowd.channel)
    await bench.to_crowd(request, size)
    latencies: list[float] = []
    watch = bench.watch()
    for turn in range(max(AT_LEAST, int(2.5 * bench.scale.seconds * STEADY_RATE))):
        await asyncio.sleep(turn / STEADY_RATE - watch.seconds)
        async with crowd.receiving(size) as arrivals:
            sent = time.perf_counter()
            await bench.control.call(request)
        latencies += [arrival - sent for arrival in arrivals]
    return percentiles(f"{STEADY_RATE} publishes/s to {size:,}, deliveries", latencies)


async def empty_polls(bench: Bench) -> list[Figure]:
    """Polls that are up to date and answered at once."""
    await bench.crowd.resize(0)
    request = poll_request(1, "/polled=0", immediate=True)
    return [await bench.hammer("empty poll", request, POLLERS)]


async def polls_with_news(bench: Bench) -> list[Figure]:
    """Polls that are answered with some messages."""
    await bench.crowd.resize(0)
    answer = await bench.control.call(batch_request(bench.server.key, "/news", BATCH))
    last_id = int(_MESSAGE_ID.findall(answer)[-1])
    request = poll_request(1, f"/news={last_id - NEWS}", immediate=True)
    if (await bench.control.call(request)).count(MARK) != NEWS:
        raise BenchError(f"a poll was not answered with {NEWS} messages")
    return [await bench.hammer(f"poll with {NEWS} messages", request, POLLERS)]


async def long_polls(bench: Bench, size: int) -> list[Figure]:
    """A herd of long polls: all answered by a message, all back and parked for the next one."""
    await bench.crowd.resize(0)
    request = bench.publish(Herd.channel)
    herd = Herd(bench.server, size)
    try:
        await herd.poll(0)
        await bench.control.parked(bench.server, "long_poll", size)
        rounds = 0
        watch = bench.watch()
        while watch.seconds < bench.scale.seconds or rounds < AT_LEAST:
            rounds += 1
            answer = await bench.control.call(request)
            await herd.messages.reach(rounds * size)
            await herd.poll(int(_MESSAGE_ID.findall(answer)[0]))
            await bench.control.parked(bench.server, "long_poll", size)
        return [rate("long poll and re-poll", rounds * size, watch.stop())]
    finally:
        herd.close()


async def publishes(bench: Bench) -> list[Figure]:
    """Publishes, with nobody parked."""
    await bench.crowd.resize(0)
    request = bench.publish("/published")
    return [
        await bench.hammer(f"publish, {count} at a time", request, count) for count in (1, 16, 64)
    ]


async def batches(bench: Bench) -> list[Figure]:
    """Many messages in one publish."""
    batch = batch_request(bench.server.key, "/published", BATCH)
    return [await bench.hammer(f"publish in batches of {BATCH}", batch, 1, BATCH)]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario by the name under which it can be asked for; several may share one."""

    name: str
    run: Callable[[Bench], Awaitable[list[Figure]]]


SCENARIOS = (
    Scenario("park", park),
    Scenario("fan-out", lambda bench: fan_out(bench, bench.scale.large)),
    Scenario("fairness", lambda bench: fairness(bench, bench.scale.large)),
    Scenario("targeted", lambda bench: targeted(bench, bench.scale.large)),
    Scenario("chosen", lambda bench: chosen(bench, bench.scale.large)),
    Scenario("unheard", lambda bench: unheard(bench, bench.scale.large)),
    Scenario("fan-out", lambda bench: fan_out(bench, bench.scale.medium)),
    Scenario("fan-out", lambda bench: fan_out(bench, bench.scale.small)),
    Scenario("targeted", lambda bench: targeted(bench, bench.scale.small)),
    Scenario("growth", lambda bench: growth(bench, bench.scale.small, bench.scale.large)),
    Scenario("growth", poll_growth),
    Scenario("saturated", lambda bench: saturated(bench, bench.scale.small)),
    Scenario("slow-readers", lambda bench: slow_readers(bench, bench.scale.small)),
    Scenario("steady", lambda bench: steady(bench, bench.scale.small)),
    Scenario("polls", empty_polls),
    Scenario("news", polls_with_news),
    Scenario("long-polls", lambda bench: long_polls(bench, bench.scale.small)),
    Scenario("publish", publishes),
    Scenario("batches", batches),
)
NAMES = tuple(dict.fromkeys(scenario.name for scenario in SCENARIOS))
