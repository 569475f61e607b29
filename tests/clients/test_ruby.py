"""The Ruby client: its own tests, connections that break, and what its README shows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Host
from tests.support.daemon import Daemon
from tests.support.fault_proxy import FaultProxy
from tests.support.pages import Page
from tests.support.program import find_program

FOLDER = Path(__file__).parents[2] / "clients" / "ruby"
PROGRAMS = Page("clients/ruby/README.md", __name__).blocks("ruby")
RUN_SECONDS = 50.0
WAIT_SECONDS = 30.0


def environment(url: str, key: str) -> dict[str, str]:
    return {
        **os.environ,
        "MESSAGEBUSD_URL": url,
        "MESSAGEBUSD_KEY": key,
        "WEBHOOK_SECRET": "a-secret-of-plain-text",
        "TOKEN_SECRET": "s" * 32,
    }


async def ruby(daemon: Daemon, *arguments: str) -> str:
    """Run Ruby, which must succeed; what it printed."""
    done = await asyncio.to_thread(
        subprocess.run,
        [find_program("ruby", "ruby"), "-w", *arguments],
        env=environment(daemon.internal_url, daemon.key),
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
async def daemon(host: Host) -> Daemon:
    return await host()


@pytest.mark.parametrize("name", ["unit_test", "daemon_test"])
async def test_its_own_tests_pass(daemon: Daemon, name: str) -> None:
    output = await ruby(daemon, f"test/{name}.rb")
    summary = re.search(r"(\d+) runs, (\d+) assertions, 0 failures, 0 errors, 0 skips", output)
    assert summary is not None, output
    assert int(summary[1]) >= 9


class Follower:
    """`test/follow.rb`: its lines, and what they say."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []

    async def read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def publish(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())

    async def said(self, field: str, count: int) -> list[Any]:
        """Wait until there are so many lines with a field, and return its values."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(found := [each[field] for each in self.lines if field in each]) < count:
                await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def following(daemon: Daemon, port: int) -> AsyncIterator[Follower]:
    process = await asyncio.create_subprocess_exec(
        find_program("ruby", "ruby"),
        "-w",
        "test/follow.rb",
        cwd=FOLDER,
        env=environment(f"http://127.0.0.1:{port}", daemon.key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    follower = Follower(process)
    reader = asyncio.create_task(follower.read())
    try:
        yield follower
    finally:
        process.kill()
        await process.wait()
        await reader


async def test_nothing_is_lost_or_repeated_when_connections_break(daemon: Daemon) -> None:
    port = int(daemon.internal_url.rpartition(":")[2])
    async with FaultProxy(port) as proxy, following(daemon, proxy.port) as follower:
        for number in range(30):
            await daemon.publish("/a", number)
            if number % 10 == 5:
                await follower.said("data", number + 1)
                proxy.reset()
        assert await follower.said("data", 30) == list(range(30))
        notices = await follower.said("notice", 1)
        assert set(notices) == {"Messagebusd::Interrupted"}
        # A publish whose answer is lost comes out once.
        proxy.cut_after(b"POST /api/v1/publish")
        follower.publish("once")
        assert await follower.said("published", 1) == [1]
        assert await follower.said("repeated", 1) == [True]
    assert await daemon.api("GET", "last_id", query={"channel": "/b"}) == {
        "channel": "/b",
        "last_id": 1,
    }


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The gem, built and installed as others get it."""
    gem, package = find_program("gem", "ruby"), tmp_path / "client.gem"
    for command in (
        [gem, "build", "--output", package, "messagebusd-client.gemspec"],
        [gem, "install", "--local", "--no-document", "--install-dir", tmp_path, package],
    ):
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        assert done.returncode == 0, done.stderr
    (library,) = tmp_path.glob("gems/messagebusd-client-*/lib")
    return library


async def test_the_examples_of_the_readme_run(daemon: Daemon, installed: Path) -> None:
    assert len(PROGRAMS) == 3
    program = "\n".join(each.text for each in PROGRAMS)
    output = await ruby(daemon, "-I", str(installed), "-e", program)
    assert output.splitlines() == ["1", "/orders 1", "true", "eyJ"]
