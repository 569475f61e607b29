"""A listener stops: who has come is served, who comes later finds it closed."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from messagebusd.accepting import Listener
from messagebusd.listeners import LISTEN_BACKLOG

HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)
        self._transport.close()


def bound(host: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    opened.bind((host, 0))
    return opened


def come(place: tuple[str, int], count: int) -> list[socket.socket]:
    """Connect and ask while the loop stands still."""
    clients = [socket.create_connection(place) for _ in range(count)]
    for each in clients:
        each.sendall(b"hello")
        each.setblocking(False)
    return clients


@HOSTS
async def test_who_waits_in_the_queue_is_served(host: str) -> None:
    opened = bound(host)
    place = opened.getsockname()[:2]
    listener = Listener(Echo, is_shared=False)
    await listener.open([opened])
    clients = come(place, 20)
    await listener.close()
    loop = asyncio.get_running_loop()
    for each in clients:
        with each:
            assert await loop.sock_recv(each, 100) == b"hello"
            assert await loop.sock_recv(each, 100) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)
    await listener.close()


@HOSTS
async def test_who_begins_to_connect_meanwhile_is_ignored_and_not_reset(host: str) -> None:
    opened = bound(host)
    place = opened.getsockname()[:2]
    listener = Listener(Echo, is_shared=False)
    await listener.open([opened])
    closing = asyncio.create_task(listener.close())
    await asyncio.sleep(0)
    with socket.socket(opened.family) as late:
        late.setblocking(False)
        connecting = asyncio.create_task(asyncio.get_running_loop().sock_connect(late, place))
        await closing
        assert not connecting.done()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)


async def test_the_queue_of_a_socket_that_others_have_is_left_to_them() -> None:
    opened = bound("127.0.0.1")
    with opened.dup() as theirs:
        listener = Listener(Echo, is_shared=True)
        await listener.open([opened])
        [client] = come(opened.getsockname(), 1)
        await listener.close()
        theirs.settimeout(5)
        with client, theirs.accept()[0] as accepted:
            assert accepted.recv(100) == b"hello"


async def test_it_ends_while_others_come_without_an_end(tmp_path: Path) -> None:
    path = str(tmp_path / "bus.sock")
    opened = socket.socket(socket.AF_UNIX)
    opened.bind(path)
    came = 0

    def come_again() -> Echo:
        nonlocal came
        came += 1
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        return Echo()

    listener = Listener(come_again, is_shared=False)
    await listener.open([opened])
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(path)
        await asyncio.wait_for(listener.close(), 10)
    assert came >= LISTEN_BACKLOG
