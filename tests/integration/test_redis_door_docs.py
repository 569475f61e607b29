"""What ``docs/redis-door.md`` shows works as it stands there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from messagebusd.protocol import inbox
from tests.conftest import StartDaemon
from tests.support.daemon import Daemon
from tests.support.pages import ROOT, Page
from tests.support.program import find_program
from tests.support.redis_server import RedisServer

BLOCKS = Page("docs/redis-door.md", __name__).blocks("sh", "python", "ruby", "js", "redis", "json")
STREAM = "messagebusd:publish"
SECRET = "a-secret"
RUN_SECONDS = 30.0

# The interpreter of each language, told to read the program from its input. Node looks for its
# packages below the working directory.
PROGRAMS = {
    "python": lambda: [sys.executable, "-"],
    "ruby": lambda: [find_program("ruby", "ruby"), "-"],
    "js": lambda: [find_program("node", "nodejs"), "--input-type=module"],
    "sh": lambda: [find_program("sh", "dash")],
}


def examples(language: str, *wanted: str) -> list[str]:
    """The page's programs in a language that contain all of these words."""
    found = [each.text for each in BLOCKS if each.language == language]
    return [each for each in found if all(word in each for word in wanted)]


def example(language: str, *wanted: str) -> str:
    """The one program that contains these words."""
    (found,) = examples(language, *wanted)
    return found


async def run(language: str, program: str, url: str) -> str:
    """Run a program, which must succeed, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAMS[language](),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": url, "INBOX_SECRET": SECRET},
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            output, errors = await process.communicate(program.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with the page's users, besides the one that may do everything."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        for command in examples("redis"):
            assert server.control.execute_command(*command.split())
        yield server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """The administrator."""
    async with server.client(decode_responses=True) as opened:
        yield opened


def url_of(server: RedisServer, user: str) -> str:
    password = {"forum": "PASSWORD-OF-FORUM", "messagebusd": "PASSWORD-OF-THE-DAEMON"}[user]
    return f"redis://{user}:{password}@127.0.0.1:{server.port}/0"


def config(server: RedisServer, **settings: Any) -> dict[str, Any]:
    """The daemon with a user of its own."""
    url = url_of(server, "messagebusd")
    return {"ingest": {"redis": {"enabled": True, "url": url, **settings}}}


async def published(daemon: Daemon, client: redis.asyncio.Redis) -> list[Any]:
    """The data in the examples' channel, when the stream is empty."""
    async with asyncio.timeout(10):
        while await client.xlen(STREAM):
            await asyncio.sleep(0.02)
    query: dict[str, str | int] = {"channel": "/chat/1", "last_id": 0}
    answer = await daemon.api("GET", "backlog", query=query)
    return [each["data"] for each in answer["messages"]]


@pytest.mark.parametrize(
    ("language", "program", "text"),
    [
        ("python", example("python", "Hello"), "Hello from Python"),
        ("ruby", example("ruby", "Hello"), "Hello from Ruby"),
        ("js", example("js", "Hello"), "Hello from Node"),
        ("sh", example("sh", "Hello"), "Hello from a shell"),
    ],
    ids=["python", "ruby", "node", "shell"],
)
async def test_an_example_publishes(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    language: str,
    program: str,
    text: str,
) -> None:
    daemon = await start_daemon(config(server))
    await run(language, program, url_of(server, "forum"))
    assert await published(daemon, client) == [{"text": text}]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "Grüße from Python"),
        ("ruby", "Grüße from Ruby"),
        ("js", "Grüße from Node"),
    ],
    ids=["python", "ruby", "node"],
)
async def test_an_example_signs(
    server: RedisServer,
    client: redis.asyncio.Redis,
    start_daemon: StartDaemon,
    language: str,
    text: str,
) -> None:
    daemon = await start_daemon(config(server, secret=SECRET))
    await run(language, example(language, "Hello"), url_of(server, "forum"))
    for _ in range(2):  # it has an idempotency key
        await run(language, example(language, "INBOX_SECRET"), url_of(server, "forum"))
    assert await published(daemon, client) == [{"text": text}]
    ((_, letter),) = await client.xrange(f"{STREAM}:dead")
    assert letter["dead_code"] == "unauthorized"


def test_the_example_of_a_signature_is_right() -> None:
    (vector,) = [json.loads(each) for each in examples("json")]
    fields = {name.encode(): value.encode() for name, value in vector["fields"].items()}
    assert inbox.signed_text(fields).decode() == vector["text"]
    assert inbox.signature(fields, vector["secret"].encode()).decode() == vector["signature"]


async def test_a_publisher_can_do_nothing_else(server: RedisServer) -> None:
    publisher = redis.asyncio.Redis.from_url(url_of(server, "forum"))
    async with publisher:
        await publisher.xadd(STREAM, {"channel": "/a", "data": "1"})
        for command in (
            ("XRANGE", STREAM, "-", "+"),
            ("XDEL", STREAM, "1-1"),
            ("DEL", STREAM),
            ("XADD", f"{STREAM}:dead", "*", "a", "b"),
            ("XADD", "another", "*", "a", "b"),
            ("SET", f"{STREAM}:reader", "x"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await publisher.execute_command(*command)


async def test_dead_letters_can_be_seen_and_published(
    server: RedisServer, client: redis.asyncio.Redis, start_daemon: StartDaemon
) -> None:
    daemon = await start_daemon({**config(server), "backend": {"max_data_size": 10}})
    for number in range(3):
        await client.xadd(STREAM, {"channel": "/chat/1", "data": f'"much too long {number}"'})
    assert await published(daemon, client) == []
    admin = server.url
    shown = await run("sh", example("sh", "XRANGE"), admin)
    assert "much too long 2" in shown
    assert "payload_too_large" in shown
    await daemon.close()
    daemon = await start_daemon(config(server))
    await run("python", example("python", "dead_"), admin)
    assert await published(daemon, client) == [f"much too long {number}" for number in range(3)]
    assert await client.xlen(f"{STREAM}:dead") == 0
