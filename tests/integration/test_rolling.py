"""Daemons that take each other's place under load: nobody sees an error, nothing is lost or twice.

Unlike browsers and the clients of this project, these subscribers and publishers forgive nothing: a
status other than 200, a reset or a connection that ends before its answer fails the test.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.daemon import START_SECONDS, Daemon
from tests.support.nginx import Nginx
from tests.support.program import free_port
from tests.support.redis_server import RedisServer

KEY = "k" * 32
CHANNELS = ("/rolling/a", "/rolling/b")
EACH = 4  # clients of each kind
# How many messages are published before, between and after what is tried.
MESSAGES = 40
# Long enough that every connection that is kept is used once, also on a loaded machine.
DELAY = 1.5
INTERVAL = 1.0


class Load:
    """Subscribers of all kinds and publishers, until `stop`."""

    def __init__(self, url: str, publish_url: str) -> None:
        self.url = url
        self.publish_url = publish_url
        self.published = dict.fromkeys(CHANNELS, 0)
        self.got: list[dict[str, list[int]]] = []
        self.errors: list[str] = []
        self._is_stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._publish(each)) for each in CHANNELS]
        for kind, number in itertools.product(("stream", "long", "at-once"), range(EACH)):
            tasks.append(asyncio.create_task(self._subscribe(kind, f"{kind}-{number}")))
        try:
            await self.goes_on()
            yield
            await self.goes_on()
            self._is_stopping = True
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert self.errors == []
        for got in self.got:
            assert got == {each: list(range(1, self.published[each] + 1)) for each in CHANNELS}

    async def goes_on(self) -> None:
        """Wait for some more messages."""
        target = {each: count + MESSAGES for each, count in self.published.items()}
        async with asyncio.timeout(60):
            while any(self.published[each] < target[each] for each in CHANNELS):
                assert self.errors == []
                await asyncio.sleep(0.02)

    async def _publish(self, channel: str) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while not self._is_stopping:
                body = {"channel": channel, "data": self.published[channel] + 1}
                url = f"{self.publish_url}/api/v1/publish"
                try:
                    async with session.post(url, json=body) as answer:
                        await self._expect_200("publish", answer)
                except (aiohttp.ClientError, OSError) as error:
                    self.errors.append(f"publish: {error!r}")
                self.published[channel] += 1
                await asyncio.sleep(0.01)

    async def _subscribe(self, kind: str, client_id: str) -> None:
        got: dict[str, list[int]] = {each: [] for each in CHANNELS}
        self.got.append(got)
        positions = dict.fromkeys(CHANNELS, 0)
        query = "?dlp=t" if kind == "at-once" else ""
        headers = {"Dont-Chunk": "1"} if kind == "long" else {}
        async with aiohttp.ClientSession(headers=headers) as session:
            for seq in itertools.count(1):
                url = f"{self.url}/message-bus/{client_id}/poll{query}"
                try:
                    async with session.post(url, json={**positions, "__seq": seq}) as answer:
                        await self._expect_200(client_id, answer)
                        text = await answer.text()
                except (aiohttp.ClientError, OSError) as error:
                    self.errors.append(f"{client_id}: {error!r}")
                    return
                for array in text.split("\r\n|\r\n"):
                    for message in json.loads(array or "[]"):
                        if message["channel"] == "/__status":
                            positions.update(message["data"])
                        else:
                            positions[message["channel"]] = message["message_id"]
                            got[message["channel"]].append(message["data"])
                if self._is_stopping and positions == self.published:
                    return
                await asyncio.sleep(0.01)

    async def _expect_200(self, who: str, answer: aiohttp.ClientResponse) -> None:
        if answer.status != 200:
            self.errors.append(f"{who}: {answer.status} {await answer.text()}")


@pytest.fixture
def settings(redis_server: RedisServer) -> dict[str, Any]:
    redis_server.flush()
    return {
        "server": {"shutdown_delay": DELAY},
        "poll": {"long_polling_interval": INTERVAL, "client_rate": "0"},
        "backend": {"kind": "redis", "redis": {"url": redis_server.url}},
    }


def _with_server(settings: dict[str, Any], **server: Any) -> dict[str, Any]:
    return {**settings, "server": {**settings["server"], **server}}


class _Node(Daemon):
    """A daemon with the key that all of them have."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir()
        super().__init__(folder, config)
        self._config["api"] = {"key": KEY}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_successor_on_the_same_port(
    tmp_path: Path, settings: dict[str, Any], workers: int
) -> None:
    """SO_REUSEPORT: the new daemon begins, then the old one is stopped."""
    address = f"127.0.0.1:{free_port()}"
    config = _with_server(settings, listen=address, reuse_port=True, workers=workers)
    load = Load(f"http://{address}", f"http://{address}")
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(_Node(tmp_path / "1", config))
        async with load.running():
            for number in ("2", "3"):
                new = await stack.enter_async_context(_Node(tmp_path / number, config))
                assert await old.stop() == 0
                assert "polls ended before" not in old.output()
                old = new


async def test_a_successor_with_the_same_sockets(tmp_path: Path, settings: dict[str, Any]) -> None:
    """What systemd does with a socket that several instances of a service share."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        load = Load(url, url)
        async with AsyncExitStack() as stack:

            async def launch(number: str) -> Callable[[], Awaitable[int]]:
                return await stack.enter_async_context(
                    _launched(tmp_path / number, settings, listening)
                )

            stop = await launch("1")
            async with load.running():
                for number in ("2", "3"):
                    stop_next = await launch(number)
                    assert await stop() == 0
                    stop = stop_next


@asynccontextmanager
async def _launched(
    folder: Path, settings: dict[str, Any], listening: socket.socket
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """A daemon that inherits a socket; how to stop it."""
    node = _Node(folder, _with_server(settings, listen=f"fd:{listening.fileno()}"))
    path = node.configure()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "messagebusd", "serve", "--config", str(path)),
        env={each: value for each, value in os.environ.items() if "MESSAGEBUSD_" not in each},
        cwd=folder,
        pass_fds=[listening.fileno()],
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    reading: asyncio.Task[bytes] | None = None

    async def stop() -> int:
        process.send_signal(signal.SIGTERM)
        return await process.wait()

    try:
        async with asyncio.timeout(START_SECONDS):
            while b'"ready"' not in await process.stderr.readline():
                assert process.returncode is None
        reading = asyncio.create_task(process.stderr.read())
        yield stop
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading


async def test_two_nodes_behind_nginx(tmp_path: Path, settings: dict[str, Any]) -> None:
    """One after the other is restarted; what publishes is a third one."""
    ports = [free_port(), free_port()]
    both = " ".join(f"127.0.0.1:{each}" for each in ports)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                _Node(tmp_path / str(port), _with_server(settings, listen=f"127.0.0.1:{port}"))
            )
            for port in ports
        ]
        publisher = await stack.enter_async_context(
            _Node(tmp_path / "publisher", {**settings, "poll": {"enabled": False}})
        )
        (tmp_path / "nginx").mkdir()
        nginx = await stack.enter_async_context(Nginx(both, tmp_path / "nginx"))
        load = Load(nginx.url, publisher.url)
        async with load.running():
            for node in nodes:
                assert await node.stop() == 0
                await node.start()
