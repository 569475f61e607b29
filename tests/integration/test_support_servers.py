"""Traits of the tests' servers and proxy that a fault test would silently go wrong without."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PostgresServer
from tests.support.program import find_program
from tests.support.redis_server import RedisServer, Sentinel

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Long enough for what must not happen to happen.
A_WHILE = 0.2


# -- Redis


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something of a server's is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not become so"
        time.sleep(0.02)


def test_redis_forgets_over_a_restart_unless_it_was_told_to_keep(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.control.set("a", "1")
        port = server.port
        server.stop()
        with pytest.raises(redis.ConnectionError):
            server.control.ping()
        server.start()
        assert (server.port, server.control.get("a")) == (port, None)


async def test_redis_with_tls_speaks_nothing_else(tmp_path: Path) -> None:
    with RedisServer(tmp_path, tls=True) as server:
        assert server.url.startswith("rediss://")
        async with redis.asyncio.Redis(port=server.port) as plain:
            with pytest.raises(redis.ConnectionError):
                await plain.ping()
        async with redis.asyncio.Redis.from_url(server.url) as distrustful:
            with pytest.raises(redis.ConnectionError, match="certificate"):
                await distrustful.ping()


async def test_redis_wants_the_password_that_it_was_given(tmp_path: Path) -> None:
    with RedisServer(tmp_path, {"requirepass": "secret"}) as server:
        async with server.client(retry=Retry(NoBackoff(), 0)) as client:
            with pytest.raises(redis.ConnectionError, match="authenticated"):
                await client.ping()
        async with server.client(password="secret") as client:
            assert await client.ping()


def test_sentinel_promotes_the_replica_of_a_killed_master(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "sentinel")]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as master, RedisServer(folders[1]) as replica:
        replica.replica_of(master)
        eventually(lambda: replica.control.info()["master_link_status"] == "up")
        with Sentinel(folders[2], master, down_after=0.5) as sentinel:
            port = int(sentinel.address.partition(":")[2])
            with redis.Redis(port=port, decode_responses=True) as asked:
                eventually(lambda: len(asked.sentinel_slaves("mymaster")) == 1)
                master.kill()
                eventually(
                    lambda: (
                        asked.sentinel_get_master_addr_by_name("mymaster")
                        == ("127.0.0.1", replica.port)
                    )
                )
        eventually(lambda: replica.control.role()[0] == "master")


# -- PostgreSQL


def test_a_killed_postgres_leaves_no_busy_backend() -> None:
    # It computes for a minute, and looks at nothing meanwhile.
    busy = "DO $$ BEGIN FOR i IN 1..2000000000 LOOP END LOOP; END $$"
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'"
    with tempfile.TemporaryDirectory() as folder, PostgresServer(Path(folder)) as server:
        program = find_program("psql", "postgresql-client")
        client = subprocess.Popen([program, "-Xqc", busy, server.url()], stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: server.sql(active) == "1")
            server.kill()
            assert client.wait(10) != 0
        finally:
            client.kill()
            client.wait()
        server.start()  # refused while a backend has the shared memory
        assert server.sql(active) == "0"


async def test_terminated_backends_say_so(postgres_server: PostgresServer) -> None:
    database = postgres_server.create_database()
    idle = await postgres_server.connect(database)
    listener = await postgres_server.connect(database)
    await idle.fetchval("SELECT 1")
    await listener.execute("LISTEN a")
    assert postgres_server.terminate(database, "LISTEN%") == 1
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
        await listener.fetchval("SELECT 1")
    assert await idle.fetchval("SELECT 1") == 1
    assert postgres_server.terminate(database) == 1
    idle.terminate()
    postgres_server.drop_database(database)


# -- the proxy


@asynccontextmanager
async def proxied(handler: Handler) -> AsyncIterator[tuple[FaultProxy, Streams]]:
    """A proxy before a server that handles connections so, and a connection through it."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server, FaultProxy(server.sockets[0].getsockname()[1]) as proxy:
        streams = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            yield proxy, streams
        finally:
            streams[1].close()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)


async def nothing_arrives(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(A_WHILE):
            await reader.read(1)


async def test_the_proxy_passes_an_orderly_end_on_after_all_data() -> None:
    size = 5_000_000

    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"x" * size)
        await writer.drain()

    async with proxied(answer_and_close) as (_, (reader, writer)):
        writer.write(b"all\n")
        received = 0
        while data := await reader.read(65536):
            received += len(data)
            await asyncio.sleep(0)  # slower than the server
        assert received == size


async def test_a_blackhole_hides_the_servers_end_until_it_is_mended() -> None:
    crash = asyncio.Event()

    async def answer_and_crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await crash.wait()

    async with proxied(answer_and_crash) as (proxy, (reader, writer)):
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        proxy.blackhole()
        crash.set()
        await nothing_arrives(reader)
        proxy.restore()
        assert await reader.read() == b""


async def test_a_blackhole_hides_the_clients_end_until_it_is_mended() -> None:
    ended = asyncio.Event()

    async def notice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        assert await reader.read() == b"late"
        ended.set()

    async with proxied(notice) as (proxy, (reader, writer)):
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        proxy.blackhole()
        writer.write(b"late")
        writer.close()
        await writer.wait_closed()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_WHILE):
                await ended.wait()
        proxy.restore()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_a_blackhole_hides_that_nobody_listens() -> None:
    async with FaultProxy(1) as proxy:
        proxy.blackhole()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await nothing_arrives(reader)
        proxy.restore()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_bytes_keep_their_order_when_a_delay_ends() -> None:
    async with proxied(echo) as (proxy, (reader, writer)):
        proxy.delay = 60.0
        writer.write(b"1\n")
        await nothing_arrives(reader)
        proxy.restore()
        writer.write(b"2\n")
        async with asyncio.timeout(10):
            assert [await reader.readline() for _ in range(2)] == [b"1\n", b"2\n"]


async def test_a_delay_holds_back_either_way() -> None:
    async with proxied(echo) as (proxy, (reader, writer)):
        proxy.delay = 0.1
        before = time.monotonic()
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"
        assert time.monotonic() - before >= 0.2


async def test_a_request_was_carried_out_when_its_connection_is_cut() -> None:
    carried_out: list[bytes] = []

    async def slow_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(0.3)
            carried_out.append(line)
            writer.write(line)

    async with proxied(slow_echo) as (proxy, (reader, writer)):
        proxy.cut_after(b"fatal")
        writer.write(b"fatal\n")
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        assert carried_out == [b"fatal\n"]


async def test_the_proxy_turns_to_another_server() -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"other\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(other, "127.0.0.1", 0)
    async with server, proxied(echo) as (proxy, (reader, writer)):
        writer.write(b"a\n")
        assert await reader.readline() == b"a\n"
        proxy.retarget(server.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await reader.read() == b"other\n"
        writer.close()


async def test_nothing_of_the_proxy_is_left() -> None:
    # A listener whose queue is full leaves a connection attempt without an answer.
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        before = asyncio.all_tasks()
        async with FaultProxy(full.getsockname()[1]) as proxy:
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            async with asyncio.timeout(10):
                while not proxy.connections:
                    await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        writer.close()
