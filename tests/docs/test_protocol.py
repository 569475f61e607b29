"""docs/protocol.md: what it shows goes over the wire, and its client receives."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docs.shell import Shell, check, commands
from tests.support.hosted import HostedDaemon
from tests.support.pages import ROOT, Page
from tests.support.rawhttp import RawConnection, encode_request

PAGE = Page("docs/protocol.md", __name__)
SESSION = PAGE.blocks("sh", "console")
CLIENT = PAGE.block("python").text
WAIT_SECONDS = 20.0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    settings = {
        "server": {"internal_listen": "127.0.0.1:0"},
        "poll": {"long_polling_interval": 0.5},
    }
    async with HostedDaemon(tmp_path, settings) as daemon:
        yield daemon


async def test_what_it_shows(tmp_path: Path, daemon: HostedDaemon) -> None:
    asked = [command for block in SESSION for command in commands(block)]
    for ran in await Shell(tmp_path, daemon).run(asked):
        check(ran)


async def test_its_client_comes_back_and_misses_nothing(daemon: HostedDaemon) -> None:
    """Over the end of a stream, and a message for somebody else."""
    await daemon.publish("/foo", "one")
    code = CLIENT.replace("http://127.0.0.1:8090", daemon.url).replace("wait = 15", "wait = 0")
    assert "else 0\n" in code
    code = code.replace("time.monotonic(), 15\n", "time.monotonic(), 0\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.stdout.readline() == b"/foo one\n"
            await daemon.publish("/foo", "for 7", user_ids=[7])
            ends = 'messagebusd_polls_total{mode="stream",outcome="deadline"} 1.0'
            while ends not in await _metrics(daemon):
                await asyncio.sleep(0.02)
            await daemon.publish("/foo", "two")
            assert await process.stdout.readline() == b"/foo two\n"
    finally:
        process.kill()
        await process.wait()


async def _metrics(daemon: HostedDaemon) -> str:
    async with await RawConnection.open(daemon.internal_url) as connection:
        return (await connection.request(encode_request("GET", "/metrics"))).body.decode()


def test_its_table_of_statuses_has_what_polls_are_answered_with() -> None:
    listed = {
        int(each)
        for row in re.findall(r"^\| ([\d, ]+) \|", PAGE.text, re.MULTILINE)
        for each in row.split(",")
    }
    limits = (ROOT / "docs" / "limits.md").read_text()
    refused = {
        int(status)
        for status, counted in re.findall(r"\| (\d{3})[^|]*\| ([^|]*poll[^|]*) \|$", limits, re.M)
        if "poll" in counted
    }
    assert refused
    assert refused <= listed


def test_its_waits_are_those_of_the_vectors() -> None:
    vectors = json.loads((ROOT / "clients" / "vectors" / "schedule.json").read_text())
    settings = vectors["settings"]
    for words in (
        f"after {settings['minPollInterval'] / 1000:g} s",
        f"{settings['callbackInterval'] / 1000:g} s after this one was sent",
        f"({settings['backgroundCallbackInterval'] / 1000:g} s in a page that is hidden)",
        f"and {settings['maxPollInterval'] / 1000:g} s;",
    ):
        assert words in PAGE.text, words
