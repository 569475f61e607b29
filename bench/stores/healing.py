"""How long after a break until everything is there that was missed."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from threading import Thread

from bench.errors import BenchError
from bench.load import WAIT_SECONDS, Tally
from bench.scenarios import Figure
from bench.stores.places import Place
from bench.stores.publishing import DATA, Unheard, opened
from messagebusd.backends import open_backend
from messagebusd.backends.base import Backend
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication
from tests.support.fault_proxy import FaultProxy

LOOK_SECONDS = 0.0005
# What was not announced until then never will be.
HEAL_SECONDS = 10.0


class _Way:
    """A proxy in a thread, with a loop of its own: it does not work on uvloop's."""

    def __init__(self, port: int) -> None:
        self.proxy = FaultProxy(port)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="proxy")

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[_Way]:
        way = cls(port)
        way._thread.start()
        try:
            await way.run(way.proxy.accept())
            try:
                yield way
            finally:
                await way.run(way.proxy.__aexit__(None, None, None))
        finally:
            way._loop.call_soon_threadsafe(way._loop.stop)
            way._thread.join()
            way._loop.close()

    async def run(self, call: Coroutine[None, None, object]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    async def cut(self) -> None:
        self.proxy.refuse()
        self.proxy.reset()


class Watcher(Unheard):
    """Must not miss anything of these channels."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self.heard = Tally("messages announced")

    def dispatch(self, messages: Sequence[Message]) -> None:
        self.heard.add(sum(message.channel in self._names for message in messages))

    def channels(self) -> Collection[str]:
        return self._names


async def heal(place: Place, watched: int) -> list[Figure]:
    """Breaks in which one channel got a message, two in five, and all of them.

    From the first new connection on: how long a store waits before it tries again is not in it.
    The time is infinite if messages got lost.
    """
    names = [f"/watched/{number}" for number in range(watched)]
    watcher = Watcher(names)
    async with _Way.to(place.port) as way, opened(place) as publisher:
        settings = place.settings(place.through(way.proxy.port))
        backend = open_backend(settings, watcher)
        backend.subscribe(watcher)
        await backend.open()
        try:
            await _publish(publisher, names[:1])
            await watcher.heard.reach(1)
            figures = []
            for missed in (names[:1], names[: len(names) * 2 // 5], names):
                seconds = await _break(way, publisher, watcher, missed)
                name = (
                    f"{place.name}, {watched:,} channels watched, messages missed: {len(missed):,}"
                )
                figures.append(Figure(name, "ms", 1e3 * seconds, "less"))
            return figures
        finally:
            await backend.close()


async def _break(way: _Way, publisher: Backend, watcher: Watcher, missed: Sequence[str]) -> float:
    expected = watcher.heard.count + len(missed)
    await way.run(way.cut())
    await _publish(publisher, missed)
    if watcher.heard.count != expected - len(missed):
        raise BenchError("what was to be missed was announced")
    before = way.proxy.connections
    await way.run(way.proxy.accept())
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if way.proxy.connections > before:
                break
    connected = time.perf_counter()
    try:
        async with asyncio.timeout(HEAL_SECONDS):
            await watcher.heard.reach(expected)
    except TimeoutError:
        heard = watcher.heard.count - expected + len(missed)
        print(f"announced after a break: {heard} of {len(missed)}", file=sys.stderr)
        return math.inf
    return time.perf_counter() - connected


async def _publish(publisher: Backend, channels: Sequence[str]) -> None:
    await asyncio.gather(*(publisher.publish(Publication(each, DATA)) for each in channels))
