"""``python -m bench.requests``: what a request takes of a core, and what of it is whose.

Three servers of this process answer the same requests on real connections, and take turns: one that
reads and writes ready-made bytes (``bare``), one that also parses (``parsed``, with the parser of
aiohttp that the daemon uses), and the daemon. Only this process' CPU time counts, and of each the
least of many rounds, so that other work on the machine is hardly in the figures. The sending and
receiving of the clients is in all three.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import uvloop

from bench.dialects import BUS, batch_request, poll_request
from bench.load import WAIT_SECONDS, answer_end
from bench.servers import config
from messagebusd.http.plain import plain_parser
from messagebusd.server import Server
from messagebusd.settings import load_settings

CONNECTIONS = 16
TURNS = 100
ROUNDS = 30
NEWS = 10
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


class Bare(asyncio.Protocol):
    """Answers whatever comes in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(_ANSWER)


class Parsed(Bare):
    """Looks at it first."""

    def __init__(self) -> None:
        self._parser = plain_parser(asyncio.get_running_loop())

    def data_received(self, data: bytes) -> None:
        [(message, _)], _, _ = self._parser.feed_data(data)
        assert message.headers["Content-Length"]
        self._parser.message_consumed()
        super().data_received(data)


@asynccontextmanager
async def serving(key: str) -> AsyncIterator[dict[str, int]]:
    """All three; their ports."""
    loop = asyncio.get_running_loop()
    logging.disable()  # the daemon's is on, and of no interest
    with tempfile.TemporaryDirectory(prefix="messagebusd-bench-") as folder:
        file = Path(folder) / "bus.toml"
        file.write_text(config(key))
        daemon = Server(load_settings(file, {}, {}).settings)
        await daemon.start()
        servers = {
            "bare": await loop.create_server(Bare, "127.0.0.1", 0),
            "parsed": await loop.create_server(Parsed, "127.0.0.1", 0),
        }
        ports = {name: each.sockets[0].getsockname()[1] for name, each in servers.items()}
        [address] = daemon.addresses.values()
        yield ports | {"daemon": int(str(address).rpartition(":")[2])}
        for each in servers.values():
            each.close()
        await daemon.drain(asyncio.Event())


class Clients:
    """Connections that are asked together, without a protocol of their own."""

    def __init__(self, port: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
        for each in self._sockets:
            each.setblocking(False)

    async def ask(self, request: bytes) -> bytes:
        """Ask on each; one of the answers."""
        for each in self._sockets:
            each.send(request)
        answer = b""
        give_up = time.monotonic() + WAIT_SECONDS
        for each in self._sockets:
            answer = b""
            while not answer_end(answer):
                assert time.monotonic() < give_up, "no answer"
                await asyncio.sleep(0)
                try:
                    answer += each.recv(1 << 16)
                except BlockingIOError:
                    continue
        return answer

    async def microseconds(self, request: bytes) -> float:
        started = time.process_time()
        for _ in range(TURNS):
            await self.ask(request)
        return (time.process_time() - started) / TURNS / CONNECTIONS * 1e6

    def close(self) -> None:
        for each in self._sockets:
            each.close()


async def measure() -> None:
    key = secrets.token_urlsafe(24)
    async with serving(key) as ports:
        clients = {name: Clients(port) for name, port in ports.items()}
        published = await clients["daemon"].ask(batch_request(key, "/news", 2 * NEWS))
        last_id = int(re.findall(rb'"message_id": ?(\d+)', published)[-1])
        requests = {
            "empty poll": poll_request(1, "/polled=0", immediate=True),
            f"poll with {NEWS} messages": poll_request(
                1, f"/news={last_id - NEWS}", immediate=True
            ),
            "publish": BUS.publish(key, "/published"),
        }
        print("| CPU µs | bare | parsed | daemon |\n| --- | ---: | ---: | ---: |")
        for name, request in requests.items():
            print(f"| {name} | {row(await least(clients, request))} |", flush=True)
        for each in clients.values():
            each.close()


async def least(clients: Mapping[str, Clients], request: bytes) -> list[float]:
    """Of each server the least of its rounds."""
    found: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, each in clients.items():
            found[name].append(await each.microseconds(request))
    return [min(each) for each in found.values()]


def row(values: list[float]) -> str:
    return " | ".join(f"{each:.1f}" for each in values)


if __name__ == "__main__":
    uvloop.run(measure())
