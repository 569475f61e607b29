"""The servers and the proxy that other tests rely on do what they say."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
import redis
import redis.asyncio

from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PgBouncer, PostgresServer
from tests.support.program import find_program
from tests.support.redis_server import RedisServer, Sentinel


def test_a_missing_program_says_what_to_install():
    with pytest.raises(RuntimeError, match="apt-get install nothing-server"):
        find_program("no-such-program", "nothing-server")


def test_redis_keeps_its_data_over_a_restart_until_it_is_wiped(tmp_path):
    with RedisServer(tmp_path, {"appendonly": "yes", "appendfsync": "always"}) as server:
        server.control.set("a", "1")
        server.kill()
        server.start()
        assert server.control.get("a") == "1"
        server.stop()
        server.wipe()
        server.start()
        assert server.control.get("a") is None


async def test_redis_over_tls(tmp_path):
    with RedisServer(tmp_path, tls=True) as server:
        client = redis.asyncio.Redis.from_url(server.url, ssl_ca_certs=str(server.ca_file))
        assert await client.ping()
        await client.aclose()


def test_sentinel_promotes_a_replica(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "sentinel")]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as master, RedisServer(folders[1]) as replica:
        replica.replica_of(master)
        with Sentinel(folders[2], master, down_after=0.5) as sentinel:
            asked = redis.Redis(port=int(sentinel.address.partition(":")[2]))
            assert asked.sentinel_get_master_addr_by_name("mymaster")[1] == master.port
            asked.close()


def test_databases_are_separate_and_data_survives_a_crash(postgres_server):
    one, two = postgres_server.create_database(), postgres_server.create_database()
    postgres_server.sql("CREATE TABLE a (b int)", one)
    with pytest.raises(RuntimeError, match="does not exist"):
        postgres_server.sql("SELECT * FROM a", two)
    for name in (one, two):
        postgres_server.drop_database(name)


def test_a_killed_postgres_starts_again():
    with (
        tempfile.TemporaryDirectory() as folder,
        PostgresServer(Path(folder), {"fsync": "on", "synchronous_commit": "on"}) as server,
    ):
        server.sql("CREATE TABLE a AS SELECT 1 AS b")
        server.kill()
        server.start()
        assert server.sql("SELECT b FROM a") == "1"


async def test_pgbouncer_hands_on(postgres_server):
    database = postgres_server.create_database()
    with tempfile.TemporaryDirectory() as folder, PgBouncer(Path(folder), postgres_server) as pool:
        connection = await asyncpg.connect(pool.url(database), statement_cache_size=0)
        assert await connection.fetchval("SELECT current_database()") == database
        await connection.close()
    postgres_server.drop_database(database)


@pytest.fixture
async def echo():
    """A server that answers each line with itself; what it was sent."""
    received: list[bytes] = []

    async def connected(reader, writer):
        with suppress(ConnectionError):
            while line := await reader.readline():
                received.append(line)
                writer.write(line)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy, received
    server.close()


@asynccontextmanager
async def connected(proxy):
    """A connection that has been greeted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(b"hello\n")
        async with asyncio.timeout(5):
            assert await reader.readline() == b"hello\n"
        yield reader, writer
    finally:
        writer.close()


async def test_the_proxy_forwards_and_resets(echo):
    proxy, _ = echo
    async with connected(proxy) as (reader, _):
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readline()
    async with connected(proxy):
        assert proxy.connections == 2


async def test_the_proxy_swallows_until_it_is_mended(echo):
    proxy, received = echo
    async with connected(proxy) as (reader, writer):
        proxy.blackhole()
        writer.write(b"later\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readline()
        assert received == [b"hello\n"]
        proxy.restore()
        assert await reader.readline() == b"later\n"


async def test_the_proxy_refuses_and_accepts_again(echo):
    proxy, _ = echo
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.accept()
    async with connected(proxy):
        pass


async def test_the_proxy_cuts_between_request_and_answer(echo):
    proxy, received = echo
    async with connected(proxy) as (reader, writer):
        proxy.cut_after(b"fatal")
        writer.write(b"fatal\n")
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        assert received == [b"hello\n", b"fatal\n"]
