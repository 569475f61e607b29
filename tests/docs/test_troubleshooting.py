"""docs/troubleshooting.md: its commands show what it says, of a daemon where somebody waits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.docs.shell import Shell, check, commands, is_shown
from tests.support.hosted import HostedDaemon
from tests.support.pages import ROOT, Block, Page
from tests.support.redis_server import RedisServer

PAGE = Page("docs/troubleshooting.md", __name__)
SESSION = PAGE.blocks("console")
AWAY = PAGE.block("text", "unavailable")
LOG = PAGE.block("text", "WARNING")
WAIT_SECONDS = 10.0
ORIGIN = "https://forum.example"


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    """Two messages, one for the user 7; and "7" waits, whose last poll but one was refused."""
    settings = {
        "server": {"internal_listen": "127.0.0.1:0", "trusted_proxies": ["127.0.0.1"]},
        "poll": {"long_polling_interval": 50.0, "client_rate": "1/60s"},
        "lookup": {"mode": "headers"},
        "cors": {"allow_origins": [ORIGIN]},
    }
    async with HostedDaemon(tmp_path, settings) as daemon, aiohttp.ClientSession() as session:
        await daemon.publish("/chat/1", "hi")
        await daemon.publish("/chat/1", "psst", user_ids=[7])
        for status in (200, 429):
            url = f"{daemon.url}/message-bus/refused/poll?dlp=t"
            async with session.post(url, data={"/chat/1": "9"}) as answer:
                assert answer.status == status
        url = f"{daemon.url}/message-bus/c0ffee/poll"
        headers = {"X-MessageBus-User": '"7"'}
        async with session.post(url, data={"/chat/1": "2"}, headers=headers) as stream:
            await stream.content.readuntil(b"|\r\n")
            yield daemon


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    """One whose polls do not take half a minute."""
    (tmp_path / "site").mkdir()
    async with HostedDaemon(tmp_path / "site", {"poll": {"long_polling_interval": 0.5}}) as site:
        yield site


@pytest.mark.parametrize("block", SESSION, ids=str)
async def test_its_commands(
    tmp_path: Path, daemon: HostedDaemon, site: HostedDaemon, block: Block
) -> None:
    """No block needs another one."""
    for ran in await Shell(tmp_path, daemon, site).run(commands(block)):
        check(ran)


async def test_what_is_said_when_the_store_is_away(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        settings = {"backend": {"kind": "redis", "redis": {"url": server.url}}}
        async with HostedDaemon(tmp_path, settings) as daemon, aiohttp.ClientSession() as session:
            server.stop()
            told = ""
            async with asyncio.timeout(WAIT_SECONDS):
                while not is_shown(AWAY.text, told):  # at first, that the connection was closed
                    async with session.get(f"{daemon.url}/readyz") as answer:
                        told = await answer.text()
                    await asyncio.sleep(0.02)
            assert answer.status == 503


def test_lines_of_the_log_are_logged() -> None:
    """Each is a constant somewhere."""
    source = "".join(path.read_text() for path in (ROOT / "messagebusd").rglob("*.py"))
    said = [line.split(maxsplit=2)[2] for line in LOG.text.splitlines()]
    said += re.findall(r"`(announcements are [a-z ]+|the store has [a-z ]+)`", PAGE.text)
    assert len(said) > 3
    for line in said:
        assert f'"{line}"' in source, line
