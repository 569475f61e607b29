"""The Redis door (SPEC 4), with real daemons and a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
import redis.asyncio

from tests.conftest import StartDaemon
from tests.faults.traffic import Subscriber
from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy
from tests.support.postgres_server import PostgresServer
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.redis_server import RedisServer

STREAM = "messagebusd:publish"
DEAD = f"{STREAM}:dead"
READER = f"{STREAM}:reader"

Config = dict[str, Any]


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """A Redis for stream and store, empty."""
    redis_server.flush()
    return redis_server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """What a publisher has."""
    async with server.client(decode_responses=True) as opened:
        yield opened


def with_memory(server: RedisServer, **inbox: Any) -> Config:
    return {"ingest": {"redis": {"enabled": True, "url": server.url, **inbox}}}


def with_redis(server: RedisServer, **inbox: Any) -> Config:
    """Stream and store on one Redis, whose address is given once."""
    store = {"kind": "redis", "max_backlog_size": 100_000, "redis": {"url": server.url}}
    return {"backend": store, "ingest": {"redis": {"enabled": True, **inbox}}}


async def until(is_done: Callable[[], Any], what: str, within: float = 20) -> None:
    """Wait for a condition, which may be a coroutine's."""
    try:
        async with asyncio.timeout(within):
            while True:
                done = is_done()
                if await done if asyncio.iscoroutine(done) else done:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {within} s") from None


async def drained(client: redis.asyncio.Redis, within: float = 20) -> None:
    """Wait until the stream is empty."""

    async def is_empty() -> bool:
        return await client.xlen(STREAM) == 0

    await until(is_empty, "an empty stream", within)


async def backlog(daemon: Daemon, channel: str, **query: str) -> list[dict[str, Any]]:
    """All that a channel has."""
    messages: list[dict[str, Any]] = []
    more = True
    while more:
        after = messages[-1]["message_id"] if messages else 0
        options = {"channel": channel, "last_id": after, "limit": 500, **query}
        answer = await daemon.api("GET", "backlog", query=options)
        messages += answer["messages"]
        more = answer["more"]
    return messages


async def numbers(daemon: Daemon, channel: str) -> list[int]:
    """The numbers published to a channel, in order of their ids."""
    messages = await backlog(daemon, channel)
    ids = [each["message_id"] for each in messages]
    assert ids == sorted(set(ids))
    return [each["data"]["n"] for each in messages]


async def get(daemon: Daemon, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(daemon.url + path) as answer:
        return answer.status, await answer.text()


async def counted(daemon: Daemon, sample: str) -> float:
    """The value of a metric, 0 if it is not there."""
    _, text = await get(daemon, "/metrics")
    found = re.search(rf"^messagebusd_{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


async def inbox_status(daemon: Daemon) -> tuple[int, str]:
    status, text = await get(daemon, "/readyz")
    return status, json.loads(text)["checks"]["inbox"]


def entry(channel: str, data: Any, **fields: Any) -> dict[str, str]:
    """An entry as publishers write it."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    return {"channel": channel, "data": json.dumps(data), **texts}


async def add_numbers(
    client: redis.asyncio.Redis, channel: str, wanted: Sequence[int], at_once: int = 50
) -> None:
    for start in range(0, len(wanted), at_once):
        async with client.pipeline(transaction=False) as pipeline:
            for n in wanted[start : start + at_once]:
                pipeline.xadd(STREAM, entry(channel, {"n": n}))
            await pipeline.execute()


# -- publishing


@pytest.mark.parametrize("configure", [with_memory, with_redis])
async def test_a_parked_poll_gets_what_is_added(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    configure: Callable[[RedisServer], Config],
) -> None:
    daemon = await start_daemon(configure(server))
    body = json.dumps({"/foo": 0}).encode()
    headers = {"Content-Type": "application/json"}
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(
            encode_request("POST", "/message-bus/c/poll", headers=headers, body=body)
        )
        await until(lambda: is_parked(daemon), "a parked poll")
        await client.xadd(STREAM, {"channel": "/foo", "data": '{"a": 1.50}'})
        await stream.chunk_count(2)  # after the empty frame that opens it
        assert b'"data":{"a":1.50}' in stream.chunks[1].data
    await drained(client)
    assert await counted(daemon, 'publishes_total{door="redis"}') == 1
    assert await counted(daemon, 'publishes_total{door="http"}') == 0
    assert await inbox_status(daemon) == (200, "ok")


async def is_parked(daemon: Daemon) -> bool:
    return await counted(daemon, 'parked_polls{mode="stream"}') == 1


async def test_every_field_counts(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_memory(server))
    await client.xadd(
        STREAM,
        entry("/foo", "é", site_id="forum", user_ids=[1, "2"], group_ids=[3], client_ids=["c"]),
    )
    for n in (1, 2, 3):
        await client.xadd(STREAM, entry("/small", n, max_backlog_size="2"))
    await client.xadd(STREAM, entry("/gone", 1, max_backlog_age="0"))
    await drained(client)
    (message,) = await backlog(daemon, "/foo", site_id="forum")
    assert message["data"] == "é"
    assert message["user_ids"] == [1, "2"]
    assert message["group_ids"] == [3]
    assert message["client_ids"] == ["c"]
    assert [each["data"] for each in await backlog(daemon, "/small")] == [2, 3]
    assert await backlog(daemon, "/gone") == []
    assert await backlog(daemon, "/foo") == []


async def test_what_breaks_the_rules_becomes_a_dead_letter(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_memory(server))
    refused = {
        "invalid_audience": entry("/foo", 1, user_ids=[]),
        "restricted_global": entry("/global/foo", 1, user_ids=[1]),
        "reserved_channel": entry("/__status", 1),
        "invalid_json": {"channel": "/foo", "data": "hush"},
        "unknown_field": {b"channel": b"/foo", b"data": b"1", b"\xff\x00": b"\xfe"},
        "invalid_request": {"channel": "/foo"},
    }
    ids = {}
    for code, fields in refused.items():
        ids[code] = await client.xadd(STREAM, fields)
        await client.xadd(STREAM, entry("/foo", {"n": len(ids)}))
    many = {f"f{number}": "x" for number in range(5000)}
    await client.xadd(STREAM, many)
    await client.execute_command("XADD", STREAM, "*", *("channel", "/a") * 2, "data", "1")
    await drained(client)
    assert await numbers(daemon, "/foo") == [1, 2, 3, 4, 5, 6]

    async with server.client() as raw:
        dead = [fields for _, fields in await raw.xrange(DEAD)]
    assert [each[b"dead_code"].decode() for each in dead] == [
        *refused,
        "unknown_field",
        "invalid_request",
    ]
    for (code, fields), letter in zip(refused.items(), dead, strict=False):
        assert letter.pop(b"dead_id").decode() == ids[code]
        assert letter.pop(b"dead_reason")
        del letter[b"dead_code"]
        assert letter == {_bytes(name): _bytes(value) for name, value in fields.items()}
    assert len(dead[-2]) == 100 + 3
    assert dead[-1][b"dead_reason"] == b"a field is given twice"
    assert await counted(daemon, 'refusals_total{code="unknown_field",door="redis"}') == 2
    assert await counted(daemon, 'publishes_total{door="redis"}') == 6
    assert "inbox entries cannot be published" in [each["message"] for each in daemon.log]
    assert "hush" not in daemon.output()


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def test_dead_letters_are_bounded(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    await start_daemon(with_memory(server, max_dead=3))
    for number in range(10):
        await client.xadd(STREAM, {"channel": f"/{number}"})
    await drained(client)
    assert [fields["channel"] for _, fields in await client.xrange(DEAD)] == ["/7", "/8", "/9"]


async def test_entries_that_are_too_large_never_reach_the_daemon(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_memory(server, stream="waits"))
    before = peak_memory(daemon.pid)
    assert await daemon.stop() == 0
    huge = "x" * (8 << 20)
    for _ in range(20):
        await client.xadd(STREAM, {"channel": "/foo", "data": huge})
    await client.xadd(STREAM, entry("/foo", {"n": 1}))
    daemon = await start_daemon(with_memory(server, max_dead=5))
    await drained(client)
    assert await numbers(daemon, "/foo") == [1]
    assert await client.xlen(DEAD) == 5
    ((_, letter),) = await client.xrange(DEAD, count=1)
    assert letter["dead_code"] == "payload_too_large"
    assert letter["data"] == huge
    assert peak_memory(daemon.pid) < before + (32 << 20)


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) << 10


async def test_large_entries_pass_in_small_pages(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    data = "x" * 1_000_000
    for n in range(10):
        await client.xadd(STREAM, entry("/foo", {"n": n, "x": data}))
    daemon = await start_daemon(with_memory(server))
    await drained(client)
    assert await numbers(daemon, "/foo") == list(range(10))


# -- once


async def test_an_idempotency_key_counts_once(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_redis(server))
    for _ in range(3):
        await client.xadd(STREAM, entry("/foo", {"n": 1}, idempotency_key="k"))
    await client.xadd(STREAM, entry("/foo", {"n": 2}, idempotency_key="k"))
    for _ in range(2):  # without one, each is news
        await client.xadd(STREAM, entry("/foo", {"n": 3}))
    await drained(client)
    assert await numbers(daemon, "/foo") == [1, 3, 3]
    ((_, letter),) = await client.xrange(DEAD)
    assert letter["dead_code"] == "idempotency_conflict"
    assert letter["data"] == '{"n": 2}'
    assert await counted(daemon, 'publishes_total{door="redis"}') == 3


async def test_an_entry_that_is_met_again_is_not_published_again(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    """As after a crash between publish and deletion; but an id alone is no proof."""
    daemon = await start_daemon(with_redis(server))
    for n in (1, 1, 2):
        await client.xadd(STREAM, entry("/foo", {"n": n}), id="5-1")
        await drained(client)
        await client.delete(STREAM)
    assert await numbers(daemon, "/foo") == [1, 2]


# -- signatures


def signed(fields: Mapping[str, str], secret: str) -> dict[str, str]:
    text = b"".join(
        b"%b %d\n%b\n" % (name.encode(), len(value.encode()), value.encode())
        for name, value in sorted(fields.items())
    )
    made = hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
    return {**fields, "signature": made}


async def test_only_signed_entries_are_published_where_there_is_a_secret(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    daemon = await start_daemon(with_memory(server, secret_file=str(file)))
    right = signed(entry("/foo", {"n": 1}, user_ids=["é"]), "s3cret")
    altered = {**signed(entry("/foo", {"n": 2}), "s3cret"), "user_ids": "[1]"}
    for fields in (
        right,
        altered,
        entry("/foo", {"n": 3}),
        signed(entry("/foo", {"n": 4}), "another"),
        signed(entry("/foo", {"n": 5}), "s3cret"),
    ):
        await client.xadd(STREAM, fields)
    await drained(client)
    assert await numbers(daemon, "/foo") == [1, 5]
    dead = [fields for _, fields in await client.xrange(DEAD)]
    assert [each["dead_code"] for each in dead] == ["unauthorized"] * 3
    assert [each["data"] for each in dead] == ['{"n": 2}', '{"n": 3}', '{"n": 4}']
    assert "s3cret" not in daemon.output()


# -- order, and who reads


async def test_order_is_kept_with_several_writers(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_redis(server))
    channels = [f"/{writer}" for writer in range(5)]
    await asyncio.gather(*(add_numbers(client, each, range(1000)) for each in channels))
    await drained(client, within=40)
    for channel in channels:
        assert await numbers(daemon, channel) == list(range(1000))


async def test_what_is_added_while_the_daemon_is_down_is_published_when_it_is_back(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    await add_numbers(client, "/foo", range(300))
    daemon = await start_daemon(with_redis(server))
    await drained(client)
    assert await daemon.stop() == 0
    assert not await client.exists(READER)
    await add_numbers(client, "/foo", range(300, 600))
    await daemon.restart()
    await drained(client)
    assert await numbers(daemon, "/foo") == list(range(600))


class Writers:
    """Add numbers to a few channels all the time, within ``async with``."""

    def __init__(self, client: redis.asyncio.Redis, channels: Sequence[str]) -> None:
        self.channels = channels
        self.added = 0
        self._client = client
        self._is_stopping = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Add nothing more."""
        self._is_stopping = True
        await self._task

    async def _run(self) -> None:
        while not self._is_stopping:
            for channel in self.channels:
                await self._client.xadd(STREAM, entry(channel, {"n": self.added}))
            self.added += 1
            await asyncio.sleep(0.002)


@asynccontextmanager
async def polling(
    daemon: Daemon, channels: Sequence[str], count: int
) -> AsyncIterator[list[Subscriber]]:
    """Subscribers that poll all the time."""
    watching = [Subscriber([daemon.url], f"c{n}", channels, 1, 7) for n in range(count)]
    tasks = [asyncio.create_task(each.run()) for each in watching]
    try:
        yield watching
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.timeout(150)
async def test_nothing_is_lost_or_doubled_when_the_daemon_is_killed(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_redis(server))
    channels = ["/a", "/b", "/c"]
    async with polling(daemon, channels, 3) as watching, Writers(client, channels) as writers:
        for _ in range(3):
            await until(lambda: seen(watching[0]) > 30, "a few messages")
            await daemon.kill()
            # As after some seconds: the dead one's lease has run out.
            await client.delete(READER)
            before = seen(watching[0])
            await daemon.restart()
            await until(lambda before=before: seen(watching[0]) > before + 30, "some more")
        await writers.stop()
        await drained(client, within=40)
        total = writers.added * len(channels)
        await until(lambda: all(seen(each) >= total for each in watching), "everything")
    expected = list(range(writers.added))
    for channel in channels:
        assert await numbers(daemon, channel) == expected
        for each in watching:
            assert each.got[channel] == expected
    assert await client.xlen(DEAD) == 0


def seen(subscriber: Subscriber) -> int:
    return sum(map(len, subscriber.got.values()))


@pytest.mark.timeout(150)
async def test_one_of_two_daemons_reads_and_the_other_takes_over(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    config = {**with_redis(server), "server": {"workers": 2}}
    daemons = [await start_daemon(config), await start_daemon(with_redis(server))]

    async def published(daemon: Daemon) -> float:
        return await counted(daemon, 'publishes_total{door="redis"}')

    async with Writers(client, ["/a", "/b"]) as writers:
        await until(lambda: writers.added > 200, "some entries")
        counts = [await published(each) for each in daemons]
        reading = daemons[0] if counts[0] else daemons[1]
        other = daemons[1] if counts[0] else daemons[0]
        assert min(counts) == 0 < max(counts)
        # Politely: at once. Not so: when the lease has run out.
        assert await reading.stop() == 0

        async def has_taken_over() -> bool:
            return await published(other) > 0

        await until(has_taken_over, "the other to read", within=5)
        await reading.restart()
        await other.kill()

        async def has_taken_over_again() -> bool:
            return await published(reading) > 0

        await until(has_taken_over_again, "the first to read again")
    await drained(client, within=40)
    for channel in writers.channels:
        assert await numbers(reading, channel) == list(range(writers.added))


async def test_even_two_readers_keep_order_and_publish_once(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    """The lease spares work; it is not what order depends on."""
    daemons = [await start_daemon(with_redis(server)) for _ in range(2)]

    async def has_read(daemon: Daemon, count: float) -> bool:
        return await counted(daemon, 'publishes_total{door="redis"}') > count

    async with Writers(client, ["/a", "/b"]) as writers:
        await until(lambda: client.exists(READER), "a reader")
        await until(lambda: writers.added > 50, "some entries")
        first = 0 if await has_read(daemons[0], 0) else 1
        for turn in range(3):
            reading, other = daemons[(first + turn) % 2], daemons[(first + turn + 1) % 2]
            before = await counted(other, 'publishes_total{door="redis"}')
            # In the middle of a page; it learns only later that the lease is no longer its own.
            reading.signal(signal.SIGSTOP)
            try:
                await client.delete(READER)
                await until(
                    lambda other=other, before=before: has_read(other, before + 20), "the other"
                )
            finally:
                reading.signal(signal.SIGCONT)
    await drained(client)
    for channel in writers.channels:
        assert await numbers(daemons[0], channel) == list(range(writers.added))


async def test_who_has_lost_the_lease_stops_reading(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_memory(server))
    await client.xadd(STREAM, entry("/foo", {"n": 1}))
    await drained(client)
    await client.set(READER, "another")
    await client.xadd(STREAM, entry("/foo", {"n": 2}))

    async def asked() -> int:
        return int((await client.info("commandstats"))["cmdstat_eval"]["calls"])

    before = await asked()

    async def has_asked_often() -> bool:
        return await asked() >= before + 3

    await until(has_asked_often, "the daemon to ask for the lease")
    assert await numbers(daemon, "/foo") == [1]
    assert await client.get(READER) == "another"
    assert await inbox_status(daemon) == (200, "ok")
    assert await counted(daemon, "inbox_entries") == 0
    await client.delete(READER)
    await drained(client)
    assert await numbers(daemon, "/foo") == [1, 2]


@pytest.mark.timeout(150)
async def test_a_worker_that_is_killed_is_no_loss(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon({**with_redis(server), "server": {"workers": 2}})
    async with Writers(client, ["/a", "/b"]) as writers:
        for worker in (1, 2):
            target = writers.added + 50
            await until(lambda target=target: writers.added > target, "some entries")
            pids = {
                each["worker"]: each["pid"]
                for each in daemon.log
                if each["message"] == "worker ready"
            }
            os.kill(pids[worker], signal.SIGKILL)
    await drained(client)
    for channel in writers.channels:
        assert await numbers(daemon, channel) == list(range(writers.added))

    async def is_nothing_left() -> bool:
        return await counted(daemon, "inbox_entries") == 0

    await until(is_nothing_left, "the metric to say that nothing waits")


# -- faults


@dataclass(frozen=True, slots=True)
class Store:
    """A store that remembers what it has published: its port, and its settings behind another."""

    port: int
    behind: Callable[[int], Config]


@pytest.fixture(params=["redis", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        yield Store(
            server.port,
            lambda port: {
                "kind": "redis",
                "max_backlog_size": 100_000,
                "redis": {"url": f"redis://127.0.0.1:{port}/5"},
            },
        )
        return
    postgres: PostgresServer = request.getfixturevalue("postgres_server")
    name = postgres.create_database()
    yield Store(
        postgres.port,
        lambda port: {
            "kind": "postgres",
            "max_backlog_size": 100_000,
            "max_global_backlog_size": 200_000,
            "postgres": {"url": postgres.url(name, port=port)},
        },
    )
    postgres.drop_database(name)


async def test_a_publish_whose_answer_is_lost_is_not_repeated(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    store: Store,
) -> None:
    async with FaultProxy(store.port) as proxy:
        daemon = await start_daemon({**with_memory(server), "backend": store.behind(proxy.port)})
        proxy.cut_after(b"the lost one")
        await add_numbers(client, "/foo", range(10))
        await client.xadd(STREAM, entry("/foo", {"n": 10, "x": "the lost one"}))
        await add_numbers(client, "/foo", range(11, 20))
        await drained(client)
        assert await numbers(daemon, "/foo") == list(range(20))
        assert "the inbox is not read" in [each["message"] for each in daemon.log]
        await daemon.close()


async def test_connections_that_are_reset_are_no_loss(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    store: Store,
) -> None:
    async with FaultProxy(store.port) as to_store, FaultProxy(server.port) as to_inbox:
        url = f"redis://127.0.0.1:{to_inbox.port}/0"
        config = {**with_memory(server, url=url), "backend": store.behind(to_store.port)}
        daemon = await start_daemon({**config, "poll": {"long_polling_interval": 5.0}})
        channels = ["/a", "/b"]
        async with (
            polling(daemon, channels, 1) as (watching,),
            Writers(client, channels) as writers,
        ):
            for proxy in (to_store, to_inbox, to_store, to_inbox):
                before = seen(watching)
                await until(lambda before=before: seen(watching) > before + 20, "some messages")
                proxy.reset()
            await writers.stop()
            await drained(client)
            total = writers.added * len(channels)
            await until(lambda: seen(watching) >= total, "everything")
        expected = list(range(writers.added))
        for channel in channels:
            assert await numbers(daemon, channel) == expected
            assert watching.got[channel] == expected
        await daemon.close()


async def test_entries_wait_while_the_store_is_away(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    tmp_path: Path,
) -> None:
    (tmp_path / "store").mkdir()
    with RedisServer(tmp_path / "store", {"appendonly": "yes"}) as store:
        config = with_redis(store, url=server.url)
        daemon = await start_daemon(config)
        await add_numbers(client, "/foo", range(100))
        await drained(client)
        store.kill()
        await add_numbers(client, "/foo", range(100, 200))

        async def is_said() -> bool:
            status, text = await inbox_status(daemon)
            return status == 503 and text.startswith("the store: ")

        await until(is_said, "/readyz to say that the store is away")
        assert await client.xlen(STREAM) == 100
        assert await client.xlen(DEAD) == 0
        store.start()
        await add_numbers(client, "/foo", range(200, 300))
        await drained(client)
        assert await numbers(daemon, "/foo") == list(range(300))
        assert await inbox_status(daemon) == (200, "ok")
    messages = [each["message"] for each in daemon.log]
    assert messages.count("the inbox is not read") == 1
    assert messages.count("the inbox is read again") == 1


async def test_what_the_store_will_never_take_does_not_hold_up_the_rest(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_redis(server))
    await client.set("__mb_backlog_n_/broken", "no sorted set")
    await client.xadd(STREAM, entry("/broken", 1))
    await client.xadd(STREAM, entry("/foo", {"n": 1}))
    await drained(client)
    assert await numbers(daemon, "/foo") == [1]
    ((_, letter),) = await client.xrange(DEAD)
    assert letter["dead_code"] == "store_refused"


async def test_the_daemon_serves_while_the_inbox_is_away(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "inbox").mkdir()
    server = RedisServer(tmp_path / "inbox", {"appendonly": "yes", "requirepass": "hush"})
    daemon = await start_daemon(with_memory(server, password="hush"))

    async def is_said() -> bool:
        status, text = await inbox_status(daemon)
        return status == 200 and text.startswith("the inbox: no connection to the server")

    await until(is_said, "/readyz to say that the inbox is away")
    await daemon.publish("/foo", {"n": 0})
    with server, redis.Redis(unix_socket_path=str(server.socket), password="hush") as publisher:
        publisher.xadd(STREAM, entry("/foo", {"n": 1}))

        async def has_it() -> bool:
            return await numbers(daemon, "/foo") == [0, 1]

        await until(has_it, "the entry to be published")
        server.kill()
        await until(is_said, "/readyz to say that the inbox is away again")
        server.start()
        publisher.xadd(STREAM, entry("/foo", {"n": 2}))

        async def has_the_next() -> bool:
            return await numbers(daemon, "/foo") == [0, 1, 2]

        await until(has_the_next, "the next entry to be published")
        assert await daemon.stop() == 0
    assert "hush" not in daemon.output()


async def test_a_full_redis_is_emptied(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """The lease, too, needs memory that Redis does not give before entries are gone."""
    (tmp_path / "inbox").mkdir()
    with RedisServer(tmp_path / "inbox", {"maxmemory-policy": "noeviction"}) as server:
        async with server.client(decode_responses=True) as client:
            for n in range(200):
                await client.xadd(STREAM, entry("/foo", {"n": n, "x": "x" * 10_000}))
            await client.xadd(STREAM, entry("/foo", 1, user_ids=[]))
            await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] // 2)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                await client.set("x", "y")
            daemon = await start_daemon(with_memory(server))
            await drained(client)
            assert await numbers(daemon, "/foo") == list(range(200))


async def test_a_stream_that_is_deleted_or_replaced_is_read_again(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_memory(server))
    await client.xadd(STREAM, entry("/foo", {"n": 1}))
    await drained(client)
    await client.delete(STREAM)
    await client.xadd(STREAM, entry("/foo", {"n": 2}))
    await drained(client)
    await client.flushall()
    await client.xadd(STREAM, entry("/foo", {"n": 3}))
    await drained(client)
    await client.delete(STREAM)
    await client.set(STREAM, "no stream")

    async def is_said() -> bool:
        return (await inbox_status(daemon))[1].startswith("the inbox: ")

    await until(is_said, "/readyz to say that the key is no stream")
    await client.delete(STREAM)
    await client.xadd(STREAM, entry("/foo", {"n": 4}))
    await drained(client)
    assert await numbers(daemon, "/foo") == [1, 2, 3, 4]


async def test_a_stop_in_the_middle_loses_and_doubles_nothing(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon(with_redis(server))
    await add_numbers(client, "/foo", range(3000))

    async def has_begun() -> bool:
        return await client.xlen(STREAM) < 2900

    await until(has_begun, "the daemon to be in the middle")
    assert await daemon.stop() == 0
    left = await client.xlen(STREAM)
    assert 0 < left < 2900
    assert not await client.exists(READER)
    await daemon.restart()
    await drained(client)
    assert await numbers(daemon, "/foo") == list(range(3000))
    assert await counted(daemon, 'publishes_total{door="redis"}') == left
