"""What docs/operations.md shows of the doctor is what it prints of such a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.shell import Command, Shell
from tests.support.hosted import HostedDaemon
from tests.support.pages import Page
from tests.support.redis_server import RedisServer

SHOWN = Page("docs/operations.md", __name__).block("", "redis.eviction")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        server.control.config_set("maxmemory", "100mb")
        server.control.config_set("maxmemory-policy", "allkeys-lru")
        yield server


async def test_its_lines(tmp_path: Path, server: RedisServer) -> None:
    settings = f'[backend]\nkind = "redis"\n[backend.redis]\nurl = "{server.url}"\n'
    (tmp_path / "bus.toml").write_text(settings)
    command = Command(SHOWN, "messagebusd doctor --config bus.toml", None)
    (tmp_path / "daemon").mkdir()
    async with HostedDaemon(tmp_path / "daemon") as daemon:
        [ran] = await Shell(tmp_path, daemon).run([command])
    assert ran.status == 1, ran.printed
    version = server.control.info("server")["redis_version"]
    for line in SHOWN.text.splitlines():
        expected = line.replace("7.0.15", version)
        assert expected in ran.printed.splitlines(), ran.printed
