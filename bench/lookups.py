"""``python -m bench.lookups``: what it costs a poll to find out who it is, in each mode.

Polls that are answered at once, by as many users as there are connections. Modes take turns, so
that ratios are of one run. The application that is asked is here, beside the load: what the daemon
takes is its own CPU time, and what the application is spared is the number of its calls.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import jwt
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.dialects import poll_request
from bench.errors import BenchError
from bench.load import Caller
from bench.machine import Cores, Stopwatch
from bench.servers import daemon_asking, running

ROUNDS = 5
SECONDS = 2.0
CONNECTIONS = 16
USERS, POLLS_OF_EACH = 1_000, 10
SECRET = "a-secret-of-the-benchmark-and-nothing-else"
CONNECTION = b"\r\nContent-Length"


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to find out; ``cache_ttl`` is what the application answers."""

    name: str
    lookup: str
    cache_ttl: int = 0

    def request(self, user: int) -> bytes:
        """A poll of this user, as whom it proves to be."""
        request = poll_request(user, f"/polled/{user}=0", immediate=True)
        proof = f"\r\nX-Proof: {user}"
        if self.name == "jwt":
            claims = {"sub": user, "groups": [10, 11], "exp": int(time.time()) + 3600}
            proof = f"\r\nAuthorization: Bearer {jwt.encode(claims, SECRET)}"
        return request.replace(CONNECTION, proof.encode() + CONNECTION)


_WEBHOOK = (
    '[lookup]\nmode = "webhook"\n'
    '[lookup.webhook]\nurl = "{url}"\nforward_headers = ["cookie", "x-proof"]\n'
)
MODES = (
    Mode("none", '[lookup]\nmode = "none"'),
    Mode("headers", '[lookup]\nmode = "headers"'),
    Mode("jwt", f'[lookup]\nmode = "jwt"\n[lookup.jwt]\nsecret = "{SECRET}"'),
    Mode("webhook, cached", _WEBHOOK, cache_ttl=60),
    Mode("webhook, asked each time", _WEBHOOK),
)


class Application:
    """The host application; it knows everybody."""

    def __init__(self) -> None:
        self.calls = 0
        self.cache_ttl = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        user = int((await request.json())["headers"]["x-proof"])
        return web.json_response(
            {"user_id": user, "group_ids": [10, 11], "cache_ttl": self.cache_ttl}
        )

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Serve it; where it is."""
        app = web.Application()
        app.router.add_post("/lookup", self.answer)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/lookup"))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one mode in one round: the daemon's CPU time for a poll, polls a second, and how often the
    application was asked for `USERS` times `POLLS_OF_EACH` polls."""

    seconds: float
    rate: float
    calls: int


async def measure(mode: Mode, application: Application, url: str, cores: Cores) -> Cost:
    """One round of one mode, on a daemon of its own."""
    application.cache_ttl = mode.cache_ttl
    async with AsyncExitStack() as stack:
        peer = daemon_asking(mode.lookup.format(url=url))
        server = await stack.enter_async_context(running(peer, cores.server))
        callers = [await Caller.open(server) for _ in range(CONNECTIONS)]
        for caller in callers:
            stack.callback(caller.close)
        application.calls = 0
        await asyncio.gather(*(_many(mode, *each) for each in enumerate(callers)))
        calls = application.calls
        watch, until = Stopwatch(server.pid), time.perf_counter() + SECONDS
        polls = sum(
            await asyncio.gather(
                *(each.repeat(mode.request(user), until) for user, each in enumerate(callers, 1))
            )
        )
        span = watch.stop()
        return Cost(span.server_cpu / polls, polls / span.seconds, calls)


async def _many(mode: Mode, part: int, caller: Caller) -> None:
    """One connection's part of the polls of all users."""
    for user in range(1 + part, USERS + 1, CONNECTIONS):
        request = mode.request(user)
        for _ in range(POLLS_OF_EACH):
            await caller.call(request)


async def run(rounds: int, cores: Cores) -> dict[str, list[Cost]]:
    """All rounds of all modes."""
    found: dict[str, list[Cost]] = {mode.name: [] for mode in MODES}
    application = Application()
    async with application.served() as url:
        for number in range(rounds):
            for mode in MODES[:: 1 if number % 2 == 0 else -1]:
                found[mode.name].append(await measure(mode, application, url, cores))
    return found


def table(found: dict[str, list[Cost]]) -> str:
    """The medians, as Markdown."""
    lines = [
        "| lookup | CPU µs a poll | × none | polls /s | calls for 10,000 polls of 1,000 users |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, costs in found.items():
        rounds = zip(costs, found["none"], strict=True)
        ratios = [mine.seconds / none.seconds for mine, none in rounds]
        lines.append(
            f"| {name} | {1e6 * statistics.median(each.seconds for each in costs):.0f} "
            f"| {statistics.median(ratios):.2f} "
            f"| {statistics.median(each.rate for each in costs):,.0f} "
            f"| {statistics.median(each.calls for each in costs):,.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the process' exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.lookups", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    cores = Cores.choose()
    os.sched_setaffinity(0, {cores.generator})
    try:
        print(table(uvloop.run(run(options.rounds, cores))))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
