"""The shipped systemd units, as far as they can be tried where systemd does not rule."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from messagebusd.settings import load_settings
from tests.support.program import START_SECONDS, Program, accepts, find_program, free_port
from tests.support.shipped import DEPLOY, adapted

MESSAGEBUSD = Path(sys.executable).with_name("messagebusd")
# 0 to 10. What is left is what the daemon is for: the network, and sockets for workers.
EXPOSURE = 1.6


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the units, for which the program is installed here."""
    folder = tmp_path_factory.mktemp("units")
    for kind in ("service", "socket"):
        name = f"messagebusd.{kind}"
        text = adapted(name, {})
        text = text.replace("/opt/messagebusd/bin/messagebusd ", f"{MESSAGEBUSD} ")
        (folder / name).write_text(text)
    return folder


def _analyze(*arguments: str, units: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_program("systemd-analyze", "systemd"), *arguments],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
    )


def test_systemd_understands_every_line(units: Path) -> None:
    """It only warns of keys that it does not know, with the file's name."""
    paths = [str(units / f"messagebusd.{kind}") for kind in ("service", "socket")]
    verified = _analyze("verify", "--man=no", *paths, units=units)
    assert verified.returncode == 0, verified.stderr
    assert "messagebusd." not in verified.stderr


def test_the_service_may_do_little(units: Path) -> None:
    limit = f"--threshold={EXPOSURE * 10:.0f}"
    path = str(units / "messagebusd.service")
    judged = _analyze("security", "--offline=true", "--no-pager", limit, path, units=units)
    assert judged.returncode == 0, judged.stdout[-400:]


def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    program = find_program("systemd-sysusers", "systemd")
    subprocess.run([program, f"--root={tmp_path}", DEPLOY / "messagebusd.sysusers"], check=True)
    [line] = (tmp_path / "etc/passwd").read_text().splitlines()
    assert line.startswith("messagebusd:")
    service = (DEPLOY / "messagebusd.service").read_text()
    assert "\nUser=messagebusd\nGroup=messagebusd\n" in service


def test_it_has_longer_to_stop_than_it_takes() -> None:
    unit = (DEPLOY / "messagebusd.service").read_text()
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    [files] = re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    settings = load_settings(None, {}, {}).settings
    assert int(stop) > settings.server.shutdown_timeout
    assert int(files) > settings.poll.max_active_clients


async def test_sockets_come_from_systemd(tmp_path: Path) -> None:
    """In the order in which the socket unit lists them, by systemd's own tool."""
    unit = (DEPLOY / "messagebusd.socket").read_text()
    assert re.findall(r"^ListenStream=(.+)$", unit, re.MULTILINE) == [
        "127.0.0.1:8090",
        "127.0.0.1:8091",
    ]
    public, internal = free_port(), free_port()
    settings = {
        "MESSAGEBUSD_SERVER__LISTEN": "fd:3",
        "MESSAGEBUSD_SERVER__INTERNAL_LISTEN": "fd:4",
        "MESSAGEBUSD_API__KEY": "k" * 32,
    }
    program = Program(
        tmp_path,
        [
            find_program("systemd-socket-activate", "systemd"),
            *("--listen", f"127.0.0.1:{public}", "--listen", f"127.0.0.1:{internal}"),
            *(f"--setenv={name}={value}" for name, value in settings.items()),
            *(str(MESSAGEBUSD), "serve"),
        ],
        lambda: accepts(internal),
    )
    program.start()
    try:
        async with httpx.AsyncClient(timeout=START_SECONDS) as client:
            ready = await client.get(f"http://127.0.0.1:{internal}/readyz")
            assert ready.status_code == 200
            poll = f"http://127.0.0.1:{public}/message-bus/c1/poll?dlp=t"
            assert (await client.post(poll, data={"/a": "0"})).json() == []
            assert (await client.get(f"http://127.0.0.1:{public}/readyz")).status_code == 404
    finally:
        program.stop()


@asynccontextmanager
async def _daemon(
    listening: socket.socket, folder: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(str(MESSAGEBUSD), "serve", "--listen", f"fd:{listening.fileno()}"),
        env={**os.environ, "MESSAGEBUSD_API__KEY": "k" * 32, **(environ or {})},
        cwd=folder,
        pass_fds=[listening.fileno()],
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_nobody_is_refused_while_it_restarts(tmp_path: Path) -> None:
    """The socket is kept, as systemd keeps it; who comes between the two daemons waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        poll = "/message-bus/c1/poll?dlp=t"
        async with httpx.AsyncClient(base_url=base, timeout=START_SECONDS) as client:
            async with _daemon(listening, tmp_path) as first:
                assert (await client.post(poll)).status_code == 200
                first.send_signal(signal.SIGTERM)
                assert await first.wait() == 0
            async with httpx.AsyncClient(base_url=base, timeout=START_SECONDS) as other:
                waiting = asyncio.create_task(other.post(poll))
                async with _daemon(listening, tmp_path):
                    assert (await waiting).status_code == 200


async def test_the_manager_is_told_what_the_unit_waits_for(tmp_path: Path) -> None:
    """The unit waits for ``READY=1``, and replaces what feeds its watchdog no more."""
    unit = (DEPLOY / "messagebusd.service").read_text()
    assert "\nType=notify\n" in unit
    assert "\nExecReload=/bin/kill -HUP $MAINPID\n" in unit
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        loop = asyncio.get_running_loop()
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        async with _daemon(listening, tmp_path, told) as process, asyncio.timeout(START_SECONDS):
            assert (await loop.sock_recv(manager, 1000)).startswith(b"READY=1\n")
            for _ in range(2):
                assert await loop.sock_recv(manager, 1000) == b"WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            while not (await loop.sock_recv(manager, 1000)).startswith(b"STOPPING=1\n"):
                pass
            assert await process.wait() == 0
