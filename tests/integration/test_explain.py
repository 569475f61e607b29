"""`GET /api/v1/explain` and `messagebusd explain`, on a daemon with polls."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import ApiError
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request

CHANNELS = [
    {"pattern": "/user/{user_id}", "subscribe": "authenticated"},
    {"pattern": "*", "subscribe": "public"},
]
FILTERS = [{"channel_prefix": "/level", "allow": "message.data < 5"}]


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    config = {
        "server": {"trusted_proxies": ["127.0.0.1"]},
        "lookup": {"mode": "headers"},
        "channels": CHANNELS,
        "filters": FILTERS,
    }
    async with HostedDaemon(tmp_path, config) as daemon:
        yield daemon


async def poll(
    stack: AsyncExitStack,
    daemon: HostedDaemon,
    positions: dict[str, int],
    *,
    user: str | None = "7",
    dlp: bool = False,
) -> Response:
    connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
    headers = [("Content-Type", "application/json")]
    if user is not None:
        headers.append(("X-MessageBus-User", user))
    path = f"/message-bus/client-1/poll{'?dlp=t' if dlp else ''}"
    response = connection.send(
        encode_request("POST", path, headers=headers, body=json.dumps(positions).encode())
    )
    if dlp:
        await response.finished()
    else:
        await response.chunk_count(1)
    return response


async def explain(daemon: HostedDaemon, message_id: int, channel: str, **query: Any) -> Any:
    query = {"channel": channel, "message_id": message_id, **query}
    return await daemon.api("GET", "explain", query=query)


async def test_polls_of_the_wire_are_judged(daemon: HostedDaemon) -> None:
    async with AsyncExitStack() as stack:
        await daemon.publish("/news", "old")
        stream = await poll(stack, daemon, {"/news": -1, "/level": 0, "/user/8": 0})
        await daemon.publish("/news", "new")
        await daemon.publish("/level", 9)
        await daemon.publish("/user/8", "private")
        await stream.chunk_count(2)
        for message_id, channel, conclusion in (
            (1, "/news", "not_asked_for"),
            (2, "/news", "given"),
            (3, "/news", "not_published"),
            (1, "/level", "withheld"),
            (1, "/user/8", "not_allowed"),
            (1, "/user/7", "not_published"),
        ):
            found = await explain(daemon, message_id, channel, user_id="7")
            assert found["conclusion"] == conclusion, found
        await poll(stack, daemon, {"/news": 0}, dlp=True)
        found = await explain(daemon, 1, "/news", user_id="7", client_id="client-1")
        assert found["conclusion"] == "given"
        found = await explain(daemon, 2, "/news", user_id="8")
        assert found["conclusion"] == "not_connected"


async def test_questions_are_read_strictly(daemon: HostedDaemon) -> None:
    for query, says in (
        ({"channel": "/a", "message_id": 1}, "name a user_id, a client_id, or both"),
        ({"channel": "/a", "user_id": "7"}, "'message_id' is missing"),
        ({"message_id": 1, "user_id": "7"}, "'channel' is missing"),
        ({"channel": "/a", "message_id": "x", "user_id": "7"}, "must be an integer"),
        ({"channel": "/a", "message_id": 1, "user": "7"}, "did you mean 'user_id'"),
    ):
        with pytest.raises(ApiError, match=says):
            await daemon.api("GET", "explain", query=query)


@pytest.mark.parametrize("user_id", ["9" * 5000, "9" * 600, "[" * 2000, "[" * 600])
async def test_ids_that_nobody_has_are_read_as_text(daemon: HostedDaemon, user_id: str) -> None:
    await daemon.publish("/a", 1)
    found = await explain(daemon, 1, "/a", user_id=user_id)
    assert found["conclusion"] == "not_connected"
    assert await daemon.api("GET", "clients", query={"user_id": user_id}) == {
        "clients": [],
        "next": None,
    }


async def command(*arguments: str, key: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "messagebusd", "explain", *arguments],
        env={"MESSAGEBUSD_KEY": key, "PATH": "", "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=30,
    )


async def test_the_command_tells_it_in_lines(daemon: HostedDaemon) -> None:
    async with AsyncExitStack() as stack:
        stream = await poll(stack, daemon, {"/news": 0})
        await daemon.publish("/news", "x", user_ids=[7])
        await stream.chunk_count(2)
        about = ("--channel", "/news", "--message", "1", "--user", "7", "--url", daemon.url)
        done = await command(*about, key=daemon.key)
        assert (done.returncode, done.stderr) == (0, "")
        first, *facts = done.stdout.splitlines()
        assert first.endswith(": user 7 was given message 1, by client client-1")
        assert "  audience: it is for the user 7 only" in facts
        assert any(line.startswith("  poll client-1: 20") for line in facts)

        # A second node: what the store says is not said again. One that is down is named.
        down = ("--url", "http://127.0.0.1:1")
        done = await command(*about, "--url", daemon.url, *down, key=daemon.key)
        assert done.returncode == 1
        assert done.stderr.startswith("error: cannot connect to http://127.0.0.1:1")
        assert done.stdout.count("user 7 was given message 1") == 2
        assert done.stdout.count("it is for the user 7 only") == 1

        done = await command(*about, "--json", key=daemon.key)
        assert json.loads(done.stdout)["conclusion"] == "given"


async def test_the_command_says_how_it_is_used(daemon: HostedDaemon) -> None:
    done = await command("--channel", "/news", "--message", "1", key=daemon.key)
    assert done.returncode == 2
    assert "name somebody: --user, --client, or both" in done.stderr
