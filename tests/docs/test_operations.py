"""docs/operations.md: reloads, explain, and the doctor through a proxy say what it shows."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography.fernet import Fernet

from tests.docs.shell import SITE, Command, Shell, commands
from tests.support.hosted import HostedDaemon
from tests.support.pages import Page
from tests.support.program import Program
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.redis_server import RedisServer

PAGE = Page("docs/operations.md", __name__)
[EXPLAIN] = commands(PAGE.block("console", "messagebusd explain"))
CODEC = PAGE.block("python", "def encode")
DOCTOR = PAGE.block("sh", "--public-url")

# Times, ids, and the node's name differ from one run to the next.
_CHANGING = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}|global id \d+|^[\w.-]+(?=: user)")
ENDED = 'messagebusd_parked_polls{mode="stream"} 0.0'
RELOADED = PAGE.block("", "settings reloaded")
WAIT_SECONDS = 20.0
SETTINGS = """
[server]
listen = "127.0.0.1:0"
workers = {workers}
[backend]
kind = "redis"
redis = {{url = "{url}"}}
[[api.keys]]
name = "forum"
token = "{token}"
scopes = ["publish"]
[[channels]]
pattern = "{pattern}"
"""


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    settings = {
        "server": {"internal_listen": "127.0.0.1:0", "trusted_proxies": ["127.0.0.1"]},
        "poll": {"long_polling_interval": 1.5},
        "lookup": {"mode": "headers"},
        "channels": [{"pattern": "*"}],
    }
    async with HostedDaemon(tmp_path, settings) as daemon:
        yield daemon


def told(text: str) -> list[str]:
    """Lines, without what changes."""
    return [_CHANGING.sub("…", line) for line in text.splitlines()]


async def test_explain(tmp_path: Path, daemon: HostedDaemon) -> None:
    """A stream of user 42 is left by its client; then comes message 17, for 42."""
    for number in range(16):
        await daemon.publish("/inbox", number)
    url = f"{daemon.url}/message-bus/3314cf/poll"
    headers = {"X-MessageBus-User": "42"}
    async with aiohttp.ClientSession() as session:
        stream = await session.post(url, data={"/inbox": "16"}, headers=headers)
        await stream.content.readuntil(b"|\r\n")
        stream.close()
    async with await RawConnection.open(daemon.internal_url) as connection:
        while ENDED not in (await _get(connection, "/metrics")):
            pass
    await daemon.publish("/inbox", "for 42", user_ids=[42])
    [ran] = await Shell(tmp_path, daemon).run([EXPLAIN])
    assert EXPLAIN.shown is not None
    assert told(ran.printed) == told(EXPLAIN.shown), ran.printed


async def _get(connection: RawConnection, path: str) -> str:
    return (await connection.request(encode_request("GET", path))).body.decode()


async def test_the_doctor_goes_through_the_proxy(tmp_path: Path, daemon: HostedDaemon) -> None:
    """Here there is none, which it finds nothing wrong with but the names that nobody sets."""
    text = DOCTOR.text.replace(SITE.removesuffix("/message-bus/"), daemon.url)
    [ran] = await Shell(tmp_path, daemon).run([Command(DOCTOR, text, None)])
    checks = re.findall(r"^(\w+) +(public\.\w+): ", ran.printed, re.MULTILINE)
    assert ("ok", "public.first_frame") in checks, ran.printed
    table = set(re.findall(r"`(public\.\w+)`", PAGE.text))
    assert {name for _, name in checks} <= table


def test_a_reload(tmp_path: Path, redis_server: RedisServer) -> None:
    path = tmp_path / "bus.toml"

    def write(workers: int, token: str, pattern: str) -> None:
        path.write_text(
            SETTINGS.format(workers=workers, url=redis_server.url, token=token, pattern=pattern)
        )

    write(1, "a" * 32, "/a")
    command = [sys.executable, "-m", "messagebusd", "serve", "--config", str(path)]
    program = Program(tmp_path, command, lambda: " ready version=" in program.output)
    program.start()
    try:
        write(2, "b" * 32, "/b")
        os.kill(program.pid, signal.SIGHUP)
        deadline = time.monotonic() + WAIT_SECONDS
        missing = RELOADED.text.splitlines()
        while missing and time.monotonic() < deadline:
            logged = [line.partition(" ")[2] for line in program.output.splitlines()]
            missing = [line for line in missing if line not in logged]
            time.sleep(0.02)
        assert not missing, program.output
    finally:
        program.stop()


async def test_a_codec_of_ones_own(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does not show what is in a message, and the right people get it."""
    redis_server.flush()
    (tmp_path / "forum_codec.py").write_text(CODEC.text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FORUM_CODEC_KEY", Fernet.generate_key().decode())
    settings = {
        "server": {"trusted_proxies": ["127.0.0.1"]},
        "backend": {
            "kind": "redis",
            "codec": "forum_codec:Encrypted",
            "redis": {"url": redis_server.url},
        },
        "lookup": {"mode": "headers"},
        "channels": [{"pattern": "*"}],
    }
    async with HostedDaemon(tmp_path, settings) as daemon:
        await daemon.publish("/inbox", {"text": "hush"}, user_ids=[42])
        await daemon.publish("/inbox", {"text": "hello"})
        [hidden, _] = redis_server.control.zrange("__mb_backlog_n_/inbox", 0, -1)
        assert "|/inbox|custom:" in hidden
        assert "hush" not in hidden
        # Somebody who has no key.
        redis_server.control.zadd("__mb_backlog_n_/inbox", {"2|2|/inbox|custom:hush": 2})
        for user, texts in (("42", ["hush", "hello"]), ("43", ["hello"])):
            url = f"{daemon.url}/message-bus/c{user}/poll?dlp=t"
            async with aiohttp.ClientSession() as session:
                answer = await session.post(
                    url, data={"/inbox": "0"}, headers={"X-MessageBus-User": user}
                )
                found = [each["data"] for each in await answer.json()]
            assert [each["text"] for each in found if "text" in each] == texts
