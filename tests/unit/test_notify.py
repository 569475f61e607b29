"""What a service manager is told, and that nothing depends on it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from messagebusd.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket and what the environment calls it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        if request.param == "path":
            address = str(tmp_path / "notify")
            listening.bind(address)
        else:
            address = f"@messagebusd-test-{os.getpid()}"
            listening.bind(f"\0{address[1:]}")
        listening.settimeout(5)
        yield listening, address


def test_it_tells_the_socket_that_the_environment_names(
    manager: tuple[socket.socket, str],
) -> None:
    listening, address = manager
    environ = {"NOTIFY_SOCKET": address, "OTHER": "1"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"OTHER": "1"}  # those that we start are not meant
    notifier.ready()
    notifier.stopping()
    notifier.alive()
    assert [listening.recv(1000) for _ in range(3)] == [
        b"READY=1\nSTATUS=serving",
        b"STOPPING=1\nSTATUS=draining",
        b"WATCHDOG=1",
    ]
    notifier.close()
    notifier.ready()


@pytest.mark.parametrize("address", ["", "nonsense", "vsock:2:1234", "/no/such/socket", "@nobody"])
def test_nobody_who_listens_is_no_reason_to_fail(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.reloading()
    notifier.ready()
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_where_the_manager_watches_us(
    variables: dict[str, str], seconds: float | None
) -> None:
    environ = {"NOTIFY_SOCKET": "/no/such/socket", **variables}
    notifier = Notifier.from_environment(environ)
    assert notifier.watchdog_seconds == seconds
    assert list(environ) == []
    notifier.close()
    assert Notifier.from_environment(dict(variables)).watchdog_seconds is None


async def test_it_is_fed_as_long_as_the_loop_turns(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        notifier = Notifier(str(tmp_path / "notify"), 0.02)
        feeding = asyncio.create_task(notifier.keep_alive())
        loop = asyncio.get_running_loop()
        for _ in range(3):
            assert await loop.sock_recv(listening, 100) == b"WATCHDOG=1"
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        notifier.close()
    await Notifier().keep_alive()  # nobody watches


def test_what_is_told_once_is_told_to_a_manager_that_is_busy(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        notifier = Notifier(address)
        for _ in range(2000):  # more than wait for it
            notifier.alive()
        listening = threading.Timer(0.1, lambda: [manager.recv(100) for _ in range(5)])
        listening.start()
        notifier.ready()
        listening.join()
        manager.setblocking(False)
        heard = b""
        with suppress(BlockingIOError):
            while True:
                heard = manager.recv(100)
        assert heard.startswith(b"READY=1")
        notifier.close()
