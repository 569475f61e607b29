"""Publishers without HTTP in between: our store object, the gem's way, and a C client's.

The gem's way is what its version 4.5.2 does for one publish, done by the Python client of the same
event loop: on Redis one call of a script, on PostgreSQL an INSERT and then a NOTIFY, each publisher
on a connection of its own. Nobody listens to it, nothing is trimmed on PostgreSQL, and no HTTP is
involved: it is compared at its best.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import redis.asyncio

from bench.dialects import PAYLOAD
from bench.errors import BenchError
from bench.load import WAIT_SECONDS
from bench.machine import Usage
from bench.scenarios import Figure, percentiles
from bench.stores.places import Place
from messagebusd.backends import open_backend
from messagebusd.backends.base import Backend
from messagebusd.backends.postgres.schema import require_tables
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication

CHANNEL = "/published"
DATA = json.dumps(PAYLOAD).encode()
# As the gem stores it.
ENVELOPE = json.dumps(
    {"data": PAYLOAD, "user_ids": None, "group_ids": None, "client_ids": None},
    separators=(",", ":"),
)
GEM_CHECKOUT = "MESSAGE_BUS_GEM"

Publish = Callable[[], Awaitable[object]]

# The same commands in the same order as the gem's.
SCRIPT = """
local total = redis.call('INCR', KEYS[1])
local id = redis.call('INCR', KEYS[2])
local stored = total .. '|' .. id .. '|' .. ARGV[1]
redis.call('ZADD', KEYS[3], id, stored)
redis.call('EXPIRE', KEYS[3], ARGV[2])
redis.call('ZADD', KEYS[4], total, id .. '|' .. ARGV[5])
redis.call('EXPIRE', KEYS[4], ARGV[2])
redis.call('PUBLISH', KEYS[5], stored)
redis.call('EXPIRE', KEYS[2], ARGV[2])
local function trim(key, newest, keep)
  if newest > keep and newest % ARGV[6] == 0 then
    redis.call('ZREMRANGEBYSCORE', key, 1, newest - keep)
  end
end
trim(KEYS[3], id, tonumber(ARGV[3]))
trim(KEYS[4], total, tonumber(ARGV[4]))
return id
"""
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
KEYS = (
    "__mb_global_id_n",
    f"__mb_backlog_id_n_{CHANNEL}",
    f"__mb_backlog_n_{CHANNEL}",
    "__mb_global_backlog_n",
    "_message_bus_1",
)
ARGUMENTS = (f"{CHANNEL}|{ENVELOPE}", "604800", "1000", "2000", CHANNEL, "1")
INSERT = "INSERT INTO message_bus (channel, value) VALUES ($1, $2) RETURNING id"
NOTIFY = "SELECT pg_notify($1, $2)"


class Unheard:
    """A listener and an observer with nothing to do."""

    def dispatch(self, messages: Sequence[Message]) -> None: ...

    def channels(self) -> Collection[str]:
        return ()

    def interrupted(self) -> None: ...

    def restarted(self, channels: Collection[str]) -> None: ...

    def store_reconnected(self) -> None: ...

    def store_gap(self, messages: int) -> None: ...

    def store_replayed(self, messages: int) -> None: ...

    def store_ignored(self, reason: str) -> None: ...


async def ours(place: Place, publishers: int, seconds: float) -> list[Figure]:
    """Publishers of our store object, which also hears what it announces."""
    async with opened(place) as backend:
        publication = Publication(CHANNEL, DATA)

        async def publish() -> None:
            await backend.publish(publication)

        return await _measure(place, [publish] * publishers, seconds)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Backend]:
    unheard = Unheard()
    backend = open_backend(place.settings(), unheard)
    backend.subscribe(unheard)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


async def gems_way(place: Place, publishers: int, seconds: float) -> list[Figure]:
    """As many publishers, each doing what the gem does, on a connection of its own."""
    way = _redis_way if place.kind == "redis" else _postgres_way
    async with AsyncExitStack() as stack:
        ways = [await way(place, stack) for _ in range(publishers)]
        return await _measure(place, ways, seconds)


async def _redis_way(place: Place, stack: AsyncExitStack) -> Publish:
    client = redis.asyncio.Redis.from_url(place.gem_url, single_connection_client=True)
    stack.push_async_callback(client.aclose)
    await client.script_load(SCRIPT)

    def publish() -> Awaitable[object]:
        answer: Awaitable[object] = client.evalsha(SHA, len(KEYS), *KEYS, *ARGUMENTS)
        return answer

    return publish


async def _postgres_way(place: Place, stack: AsyncExitStack) -> Publish:
    connection = await asyncpg.connect(place.gem_url)
    stack.push_async_callback(connection.close)

    async def publish() -> None:
        message_id = await connection.fetchval(INSERT, CHANNEL, ENVELOPE)
        payload = f"{message_id}|{message_id}|{CHANNEL}|{ENVELOPE}"
        await connection.execute(NOTIFY, "_message_bus_0", payload)

    return publish


async def empty_tables(place: Place) -> None:
    """Let the gem's way begin with a table as small as ours is kept."""
    connection = await asyncpg.connect(place.gem_url)
    try:
        await require_tables(connection, create=True)
        await connection.execute("TRUNCATE message_bus")
    finally:
        await connection.close()


async def _measure(place: Place, publishers: Sequence[Publish], seconds: float) -> list[Figure]:
    await _all(publishers, seconds / 10)
    before, own = _usage(place), Usage.of(os.getpid())
    started = time.perf_counter()
    latencies = await _all(publishers, seconds)
    took = time.perf_counter() - started
    used, own = _usage(place), Usage.of(os.getpid()) - own
    count = len(latencies)
    name = title(place, len(publishers))
    figures = [
        Figure(name, "/s", count / took, server_cpu=own.cpu / count, waited=own.waited / took),
        *percentiles(name, latencies),
    ]
    if before is not None and used is not None:
        server = 1e6 * (used - before).cpu / count
        figures.append(Figure(f"{name}, CPU of the store's server", "µs", server, "less"))
    return figures


def title(place: Place, publishers: int) -> str:
    return f"{place.name}, {publishers} at a time"


def _usage(place: Place) -> Usage | None:
    return None if place.pid is None else Usage.of_family(place.pid)


async def _all(publishers: Sequence[Publish], seconds: float) -> list[float]:
    """How long each publish took, of all publishers in all that time."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def repeat(publish: Publish) -> None:
        now = time.perf_counter()
        while now < until:
            await publish()
            done = time.perf_counter()
            latencies.append(done - now)
            now = done

    async with asyncio.timeout(WAIT_SECONDS):
        await asyncio.gather(*map(repeat, publishers))
    return latencies


# -- in other languages --------------------------------------------------------------------------


async def c_client(place: Place, publishers: int, seconds: float) -> list[Figure]:
    """The gem's way by the servers' own benchmark programs."""
    way = _redis_benchmark if place.kind == "redis" else _pgbench
    return await way(place, publishers, seconds)


async def _redis_benchmark(place: Place, publishers: int, seconds: float) -> list[Figure]:
    client = redis.Redis.from_url(place.gem_url)
    client.script_load(SCRIPT)
    client.close()
    # It counts, instead of looking at the clock: some thousand a second are expected.
    count = max(500, int(seconds * (5_000 if publishers == 1 else 15_000)))
    words = (SHA, str(len(KEYS)), *KEYS, *ARGUMENTS)
    output = await _run(
        *("redis-benchmark", "-p", str(place.port), "--dbnum", "1", "-c", str(publishers)),
        *("-n", str(count), "--csv", "--precision", "3", "EVALSHA", *words),
    )
    # Requests a second, then the latencies: average, least, median, 95th, 99th, most. The command
    # before them is quoted as it is, quotes and commas included.
    rate, _, _, half, _, most, _ = (
        float(cell.strip('"')) for cell in output.splitlines()[-1].rsplit(",", 7)[1:]
    )
    name = title(place, publishers)
    return [
        Figure(name, "/s", rate),
        Figure(f"{name}, p50", "ms", half, "less"),
        Figure(f"{name}, p99", "ms", most, "less"),
    ]


async def _pgbench(place: Place, publishers: int, seconds: float) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="messagebusd-bench-") as name:
        script = Path(name) / "publish.sql"
        script.write_text(
            "INSERT INTO message_bus (channel, value) VALUES (:channel, :value)"
            " RETURNING id \\gset\n"
            "SELECT pg_notify('_message_bus_0',"
            " :id || '|' || :id || '|' || :channel || '|' || :value);\n"
        )
        await _run(
            *("pgbench", "-n", "-M", "prepared", "-f", str(script), "-c", str(publishers)),
            *("-D", f"channel={CHANNEL}", "-D", f"value={ENVELOPE}"),
            *("-T", str(max(1, round(seconds))), "-l", f"--log-prefix={name}/log", place.gem_url),
        )
        rows = _logged(Path(name))
    # Each row ends with when it was done, and how long it took stands third: both in microseconds.
    ends = [int(row[4]) + int(row[5]) / 1e6 for row in rows]
    took = [int(row[2]) / 1e6 for row in rows]
    started = min(end - each for end, each in zip(ends, took, strict=True))
    heading = title(place, publishers)
    rate = len(rows) / (max(ends) - started)
    return [Figure(heading, "/s", rate), *percentiles(heading, took)]


def _logged(folder: Path) -> list[list[str]]:
    [log] = folder.glob("log.*")
    return [line.split() for line in log.read_text().splitlines()]


async def ruby(place: Place, publishers: int, seconds: float) -> list[Figure]:
    """The real gem, of the checkout that an environment variable names."""
    script = Path(__file__).with_name("ruby_gem.rb")
    output = await _run(
        *("ruby", "-I", str(Path(os.environ[GEM_CHECKOUT]) / "lib"), str(script)),
        *(place.kind, place.gem_url, str(publishers), str(seconds), CHANNEL, PAYLOAD),
    )
    found = json.loads(output)
    name = title(place, publishers)
    return [Figure(name, "/s", found["rate"]), *percentiles(name, found["latencies"])]


async def _run(*command: str) -> str:
    """Run a program on the core of this process; what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise BenchError(f"{command[0]} failed:\n{errors.decode()}")
    return output.decode()
