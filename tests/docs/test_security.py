"""docs/security.md: its commands show what it says."""

from __future__ import annotations

from pathlib import Path

from tests.docs.shell import Shell, check, commands
from tests.support.hosted import HostedDaemon
from tests.support.pages import Page

SESSION = Page("docs/security.md", __name__).blocks("console")


async def test_its_commands(tmp_path: Path) -> None:
    asked = [command for block in SESSION for command in commands(block)]
    settings = {"server": {"internal_listen": "127.0.0.1:0"}}
    async with HostedDaemon(tmp_path, settings) as daemon:
        for ran in await Shell(tmp_path, daemon).run(asked):
            check(ran)
