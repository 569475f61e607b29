"""docs/moving-from-the-gem.md, with the lines of nginx that it shows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from messagebusd.shadow.mirror import Mirror
from messagebusd.shadow.tally import Tally
from tests.support.hosted import HostedDaemon
from tests.support.nginx import Nginx
from tests.support.pages import Page
from tests.support.program import free_port
from tests.support.rawhttp import RawConnection, encode_request

PAGE = Page("docs/moving-from-the-gem.md", __name__)
MIRRORED, SWITCHED, SPLIT = (each.text for each in PAGE.blocks("nginx"))
COUNTED = PAGE.block("text", "polls compared").text


def configuration(locations: str, application: str, daemon: str, outside: str = "") -> str:
    temporary = "\n".join(
        f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
        pid nginx.pid;
        error_log error.log notice;
        user root;
        events {{}}
        http {{
            access_log access.log;
            {temporary}
            upstream application {{ server {application}; }}
            upstream messagebusd {{ server {daemon}; }}
            {outside}
            server {{
                listen 127.0.0.1:PORT;
                {locations}
            }}
        }}
    """


@asynccontextmanager
async def nginx(folder: Path, text: str) -> AsyncIterator[str]:
    os.makedirs(folder)

    def configure(directory: Path, port: int, upstream: str) -> str:
        placed = re.sub(r"(_path |pid |_log )(\w)", rf"\1{directory}/\2", text)
        return placed.replace("PORT", str(port))

    async with Nginx("", folder, configure) as program:
        yield program.url


@asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[HostedDaemon, HostedDaemon]]:
    """What stands for the application with the gem, and the daemon. They share no store."""
    (folder / "original").mkdir()
    (folder / "ours").mkdir()
    async with HostedDaemon(folder / "original") as one, HostedDaemon(folder / "ours") as other:
        yield one, other


def address(daemon: HostedDaemon) -> str:
    return daemon.url.removeprefix("http://")


async def stream(url: str) -> tuple[RawConnection, list[bytes]]:
    """A poll that waits, with its first frame."""
    connection = await RawConnection.open(url)
    response = connection.send(
        encode_request(
            "POST",
            "/message-bus/c1/poll",
            headers=[("Content-Type", "application/json")],
            body=json.dumps({"/a": 0}).encode(),
        )
    )
    return connection, [each.data for each in await response.chunk_count(1)]


async def test_polls_are_answered_as_before_while_they_are_compared(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (original, ours):
        for server in (original, ours):
            await server.publish("/a", "both")
        await ours.publish("/a", "ours alone")
        mirror = Mirror(original.url, ours.url, "/", rate=1000, found=lambda _: None, again=(0.01,))
        async with TestServer(mirror.application()) as served:
            locations = MIRRORED.replace(":8095", f":{served.port}")
            text = configuration(locations, address(original), address(ours))
            async with nginx(tmp_path / "nginx", text) as url:
                connection, frames = await stream(url)
                assert b"both" in frames[0]
                assert b"ours" not in frames[0]
                while not mirror.tally.compared:
                    mirror.progress.clear()
                    await mirror.progress.wait()
                await connection.close()
        assert mirror.tally.examples == {"extra": "/a: only we give 2"}


async def test_nobody_notices_that_the_shadow_is_gone(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as (original, ours):
        await original.publish("/a", "both")
        locations = MIRRORED.replace(":8095", f":{free_port()}")
        text = configuration(locations, address(original), address(ours))
        async with nginx(tmp_path / "nginx", text) as url:
            connection, frames = await stream(url)
            assert b"both" in frames[0]
            await connection.close()


@pytest.mark.parametrize("by_degrees", [False, True])
async def test_the_switch(tmp_path: Path, by_degrees: bool) -> None:
    async with two_servers(tmp_path) as (original, ours):
        await ours.publish("/a", "from the daemon")
        locations, outside = SWITCHED, ""
        if by_degrees:
            locations = SWITCHED.replace("http://messagebusd", "http://$message_bus")
            outside = SPLIT.replace("10% ", "99.99% ")
        text = configuration(locations, address(original), address(ours), outside)
        async with nginx(tmp_path / "nginx", text) as url:
            connection, frames = await stream(url)
            assert b"from the daemon" in frames[0]
            await connection.close()


def test_what_it_counts_in_the_end() -> None:
    tally = Tally(
        seen=8120,
        skipped=7120,
        compared=1000,
        alike=991,
        settled=7,
        differing=2,
        kinds={"missing": 2},
        examples={"missing": "/staff: we do not give 17"},
    )
    assert list(tally.lines()) == COUNTED.splitlines()
