"""``python -m bench.limits``: what bounds a fan-out.

The same connections of this process are written to in three ways, which take turns: by a loop in C
around ``send``, by a loop in Python around uvloop's ``transport.write``, and by the daemon's hub.
Nobody reads meanwhile, and only this process' CPU time counts, so that other work on the machine is
hardly in the figures. LIMITS.md says what follows from them.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, cast

import uvloop

from bench.crowds import compiled
from bench.dialects import PAYLOAD
from bench.load import WAIT_SECONDS
from bench.machine import reserve_descriptors
from messagebusd.connection import CloseReason, Connection
from messagebusd.delivery import Delivery
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire
from messagebusd.protocol.message import Message
from messagebusd.protocol.requests import Mode

SOURCE = Path(__file__).with_name("limits.c")
# Both ends of a connection are here: the largest one fits into 20,000 descriptors.
SIZES = (1_000, 5_000, 9_000)
ROUNDS = 12
CHANNEL = "/crowd"
# Longer than a TCP receiver takes for a break.
BREAK_SECONDS = 0.5
AFTER_BREAK = 24

Way = Callable[[], Awaitable[object]]


class Pair(NamedTuple):
    """A parked poll and its client."""

    connection: Connection
    client: socket.socket


def message(number: int) -> Message:
    return Message(number, number, CHANNEL, CHANNEL, None, b'"%b"' % PAYLOAD.encode())


class Ended:
    """Tells when a delivery has come to everybody."""

    def __init__(self) -> None:
        self.delivery = asyncio.Event()

    def poll_ended(self, mode: Mode, reason: CloseReason) -> None:
        pass

    def dispatched(self, delivery: Delivery) -> None:
        self.delivery.set()


class Crowd:
    """Parked polls on real connections, and the ways to write to them."""

    def __init__(self, hub: Hub, ended: Ended, pairs: Sequence[Pair]) -> None:
        self._hub = hub
        self._ended = ended
        self._clients = [each.client for each in pairs]
        transports = [each.connection.transport for each in pairs]
        self._transports = cast(list[asyncio.Transport], transports)
        sockets = [each.get_extra_info("socket").fileno() for each in self._transports]
        self._sockets = (ctypes.c_int * len(sockets))(*sockets)
        self._frame = wire.frame(wire.array([message(10**6).encoded]))
        self._send = ctypes.CDLL(str(compiled(SOURCE, "-shared", "-fPIC"))).fan_out
        self._number = 0

    @classmethod
    async def of(cls, size: int) -> Crowd:
        loop = asyncio.get_running_loop()
        ended = Ended()
        hub = Hub(loop, ended, interval=3600, max_active_clients=size, max_client_buffer=1 << 18)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        pairs = []
        for number in range(size):
            client = socket.create_connection(listener.getsockname())
            client.settimeout(WAIT_SECONDS)
            server, _ = listener.accept()
            channels = (CHANNEL,)
            poll = Connection(
                hub, Identity(number + 1), f"{number:032x}", 0, Mode.STREAM, channels, ()
            )
            transport, _ = await loop.connect_accepted_socket(lambda poll=poll: poll, server)
            hub.add(poll)
            poll.settle({CHANNEL: 0})
            poll.park(transport, loop.time())
            hub.park(poll)
            pairs.append(Pair(poll, client))
        listener.close()
        return cls(hub, ended, pairs)

    async def in_c(self) -> None:
        self._send(self._sockets, len(self._sockets), self._frame, len(self._frame))

    async def bare(self) -> None:
        frame = self._frame
        for transport in self._transports:
            transport.write(frame)

    async def daemon(self) -> None:
        self._number += 1
        self._ended.delivery.clear()
        self._hub.dispatch([message(self._number)])
        await self._ended.delivery.wait()

    async def microseconds(self, way: Way) -> float:
        """What a delivery takes of this process; then let the clients read."""
        started = time.process_time()
        await way()
        spent = time.process_time() - started
        for client in self._clients:
            client.recv(1 << 16)
        return spent / len(self._clients) * 1e6

    def close(self) -> None:
        self._hub.abort()
        for transport in self._transports:
            transport.abort()
        for client in self._clients:
            client.close()


async def ways(crowd: Crowd) -> str:
    """The three of them, and their ratios within a round."""
    found: dict[Way, list[float]] = {crowd.in_c: [], crowd.bare: [], crowd.daemon: []}
    for number in range(ROUNDS):
        for way in found if number % 2 else reversed(found):
            found[way].append(await crowd.microseconds(way))
    in_c, bare, daemon = found.values()
    pairs = (zip(bare, in_c, strict=True), zip(daemon, bare, strict=True))
    ratios = [median(one / other for one, other in each) for each in pairs]
    return " | ".join(f"{each:.2f}" for each in (min(in_c), min(bare), min(daemon), *ratios))


async def after_a_break(crowd: Crowd) -> str:
    """A delivery by the loop in C, of the first 16 messages after a break and of the next ones."""
    await asyncio.sleep(BREAK_SECONDS)
    costs = [await crowd.microseconds(crowd.in_c) for _ in range(AFTER_BREAK)]
    return f"{median(costs[:16]):.2f} | {median(costs[16:]):.2f}"


async def measure() -> None:
    print(
        "| connections | C | bare | daemon | bare ÷ C | daemon ÷ bare | C, after a break | later |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in SIZES:
        crowd = await Crowd.of(size)
        gc.collect()
        gc.freeze()
        print(f"| {size:,} | {await ways(crowd)} | {await after_a_break(crowd)} |", flush=True)
        crowd.close()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    reserve_descriptors(2 * max(SIZES) + 100)
    uvloop.run(measure())
