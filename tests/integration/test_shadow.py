"""`messagebusd shadow`: mirrored polls, two servers, and what it must never do."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from messagebusd.shadow import mirror as shadow
from messagebusd.shadow.compare import Difference
from messagebusd.shadow.mirror import Mirror
from tests.support.hosted import HostedDaemon
from tests.support.program import free_port

ADA = {"X-MessageBus-User": "7", "Cookie": "session=secret"}
WAIT_SECONDS = 10.0


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    config = {"server": {"trusted_proxies": ["127.0.0.1"]}, "lookup": {"mode": "headers"}}
    async with HostedDaemon(tmp_path, config) as daemon:
        yield daemon


class Original:
    """What stands for the Ruby library: it answers as the daemon does, but for what it is told."""

    def __init__(self, daemon: HostedDaemon) -> None:
        self._daemon = daemon
        self.asked: list[web.Request] = []
        self.answers: list[web.Response] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        await self.hold.wait()
        if self.answers:
            return self.answers.pop(0)
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{self._daemon.url}{request.path_qs}",
                data=await request.read(),
                headers=request.headers,
            ) as answer,
        ):
            return web.Response(body=await answer.read(), content_type="application/json")


@pytest.fixture
def original(daemon: HostedDaemon) -> Original:
    return Original(daemon)


class Shadow:
    """A mirror that is served, and whoever mirrors to it."""

    def __init__(self, mirror: Mirror, url: str, session: aiohttp.ClientSession) -> None:
        self.mirror, self.tally, self._url, self._session = mirror, mirror.tally, url, session
        self.found: list[Difference] = []

    async def poll(self, positions: Any, *, client: str = "c1", method: str = "POST") -> None:
        path = f"/message-bus/{client}/poll"
        async with self._session.request(
            method, self._url + path, json=positions, headers=ADA
        ) as answer:
            assert (answer.status, await answer.read()) == (204, b"")

    async def compared(self, count: int = 1) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.tally.compared + self.tally.unanswered < count:
                self.mirror.progress.clear()
                await self.mirror.progress.wait()


@asynccontextmanager
async def shadowing(original: Original, ours: str, *, rate: int = 1000) -> AsyncIterator[Shadow]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", original.handle)
    found: list[Difference] = []
    async with TestServer(app) as server:
        mirror = Mirror(
            str(server.make_url("")), ours, "/", rate=rate, found=found.append, again=(0.01, 0.01)
        )
        async with TestServer(mirror.application()) as served, aiohttp.ClientSession() as session:
            made = Shadow(mirror, str(served.make_url("")).rstrip("/"), session)
            made.found = found
            yield made


async def test_polls_are_asked_of_both_and_compared(
    daemon: HostedDaemon, original: Original
) -> None:
    await daemon.publish("/a", {"for": "7"}, user_ids=["7"])
    async with shadowing(original, daemon.url) as made:
        await made.poll({"/a": 0, "/b": -1, "__seq": 3})
        await made.compared()
        assert (made.tally.alike, made.tally.differing) == (1, 0)
    [asked] = original.asked
    assert asked.path_qs == "/message-bus/c1/poll?dlp=t"
    assert asked.headers["Cookie"] == ADA["Cookie"]
    assert asked.headers["Accept-Encoding"] == "identity"


async def test_a_difference_is_asked_for_again_and_told_once(
    daemon: HostedDaemon, original: Original
) -> None:
    await daemon.publish("/a", "secret")
    async with shadowing(original, daemon.url) as made:
        for _ in range(2):
            original.answers = [web.json_response([]) for _ in range(3)]
            await made.poll({"/a": 0})
            await made.compared(made.tally.seen)
        assert len(original.asked) == 6
        assert made.found == [Difference("extra", "/a: only we give 1")]
        assert made.tally.kinds == {"extra": 2}
        told = "\n".join([*made.tally.lines(), made.tally.as_json()])
        assert "secret" not in told
        assert "c1" not in told


async def test_what_was_published_in_between_is_no_difference(
    daemon: HostedDaemon, original: Original
) -> None:
    await daemon.publish("/a", 1)
    async with shadowing(original, daemon.url) as made:
        original.answers = [web.json_response([])]
        await made.poll({"/a": 0})
        await made.compared()
        assert (made.tally.settled, made.tally.differing, made.found) == (1, 0, [])


async def test_nobody_waits_and_what_is_too_much_is_skipped(
    daemon: HostedDaemon, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_UNDER_WAY", 2)
    async with shadowing(original, daemon.url) as made:
        original.hold.clear()
        for number in range(5):
            await made.poll({"/a": 0}, client=f"c{number}")  # answered while the original waits
        assert (made.tally.seen, made.tally.skipped) == (5, 3)
        original.hold.set()
        await made.compared(2)
    async with shadowing(original, daemon.url, rate=1) as made:
        for _ in range(3):
            await made.poll({"/a": 0})
        assert made.tally.skipped == 2


async def test_what_is_no_poll_is_ignored(daemon: HostedDaemon, original: Original) -> None:
    async with shadowing(original, daemon.url) as made:
        await made.poll({}, method="OPTIONS")
        assert (made.tally.ignored, original.asked) == (1, [])


async def test_a_server_that_does_not_answer(daemon: HostedDaemon, original: Original) -> None:
    async with shadowing(original, f"http://127.0.0.1:{free_port()}") as made:
        await made.poll({"/a": 0})
        await made.compared()
        assert made.tally.kinds == {"unanswered": 1}


async def test_an_original_that_does_not_answer_is_no_difference(
    daemon: HostedDaemon, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "ANSWER_SECONDS", 0.1)
    async with shadowing(original, daemon.url) as made:
        original.hold.clear()
        await made.poll({"/a": 0})
        await made.compared()
        assert (made.tally.unanswered, made.tally.compared) == (1, 0)
        original.hold.set()


async def test_headers_with_effects_are_left_out(daemon: HostedDaemon, original: Original) -> None:
    async with shadowing(original, daemon.url) as made:
        async with made._session.post(
            f"{made._url}/message-bus/c/poll",
            json={},
            headers={"Discourse-Present": "true", "X-SILENCE-LOGGER": "true"},
        ) as answer:
            assert answer.status == 204
        await made.compared()
    assert "Discourse-Present" not in original.asked[0].headers
    assert original.asked[0].headers["X-SILENCE-LOGGER"] == "true"


async def test_the_command(daemon: HostedDaemon) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "messagebusd", "shadow", "--json", "--listen", f"127.0.0.1:{port}"),
        *("--original", daemon.url, "--ours", daemon.url, "--count", "2", "--rate", "1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert await process.stderr.readline() == f"waiting for polls on 127.0.0.1:{port}\n".encode()
    async with aiohttp.ClientSession() as session:
        for number in range(2):
            url = f"http://127.0.0.1:{port}/message-bus/c{number}/poll"
            async with session.post(url, json={"/a": 0}) as answer:
                assert answer.status == 204
    async with asyncio.timeout(WAIT_SECONDS):
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["alike"] == 2


async def test_the_command_ends_by_a_signal(daemon: HostedDaemon) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "messagebusd", "shadow", "--listen", f"127.0.0.1:{free_port()}"),
        *("--original", daemon.url, "--ours", daemon.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT_SECONDS):
        out, _ = await process.communicate()
    assert process.returncode == 1  # nothing was compared
    assert b"does nginx mirror polls" in out
