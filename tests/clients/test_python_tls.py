"""The Python client over TLS, where streams are broken in other ways."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from messagebus_client import AsyncClient, AsyncPoller, Client, ConnectionFailed
from tests.clients.conftest import Host
from tests.support.daemon import Daemon
from tests.support.program import find_program

WAIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of nobody's authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    path, key = folder / "certificate", folder / "key"
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -keyout {key} -out {path}"
    openssl = find_program("openssl", "openssl")
    subprocess.run(
        [openssl, *command.split(), "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return path, key


@pytest.fixture
def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture
async def daemon(host: Host) -> Daemon:
    return await host()


@pytest.fixture
async def url(daemon: Daemon, certificate: tuple[Path, Path]) -> AsyncIterator[str]:
    """A proxy that ends TLS before the daemon."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    port = int(daemon.url.rpartition(":")[2])
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_certificate_must_be_trusted(
    daemon: Daemon, url: str, trusting: ssl.SSLContext
) -> None:
    with Client(url, daemon.key, ssl_context=trusting) as bus:
        assert (await asyncio.to_thread(bus.publish, "/a", 1)).message_id == 1
    with Client(url, daemon.key, retry_for=0) as bus, pytest.raises(ConnectionFailed, match="CERT"):
        await asyncio.to_thread(bus.publish, "/a", 1)
    async with AsyncClient(url, daemon.key, ssl_context=trusting) as bus:
        assert await bus.last_id("/a") == 1


async def test_a_subscription_is_closed_from_another_thread(
    daemon: Daemon, url: str, trusting: ssl.SSLContext
) -> None:
    received: list[int] = []
    with Client(url, daemon.key, ssl_context=trusting) as bus:
        messages = bus.subscribe({"/a": 0})
        thread = threading.Thread(target=lambda: received.extend(each.data for each in messages))
        thread.start()
        await daemon.publish("/a", 1)
        async with asyncio.timeout(WAIT_SECONDS):
            while messages.positions != {"/a": 1}:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(messages.close)
        await asyncio.to_thread(thread.join, WAIT_SECONDS)
        assert not thread.is_alive()
    assert received == [1]


async def test_a_page_is_served(daemon: Daemon, url: str, trusting: ssl.SSLContext) -> None:
    await daemon.publish("/a", 1)
    seen = asyncio.Event()
    async with AsyncPoller(url, ssl_context=trusting) as poller:
        poller.subscribe("/a", lambda *call: seen.set(), 0)
        async with asyncio.timeout(WAIT_SECONDS):
            await seen.wait()
