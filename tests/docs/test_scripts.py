"""Scripts of pages run, with the real client, and receive what is published to the real daemon."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from pathlib import Path

import jwt
import pytest

import messagebusd
from tests.support.hosted import HostedDaemon
from tests.support.pages import Block, Page
from tests.support.program import find_program

CLIENT = Path(messagebusd.__file__).parent / "browser" / "client.js"
HARNESS = Path(__file__).parent / "page.mjs"
WAIT_SECONDS = 30.0
HOSTS = Page("docs/hosts/README.md", __name__)
TOKENS = Page("docs/jwt.md", __name__)
SCRIPTS = [
    (Page("README.md", __name__).block("html"), "Hello!"),
    (Page("clients/typescript/README.md", __name__).block("html"), "Hello!"),
    (Page("docs/quickstart.md", __name__).block("html"), "Hello!"),
    (HOSTS.block("html", "positions"), "the news"),
    (HOSTS.block("html", "renew"), "for ada"),
    (TOKENS.block("js", "tokenProvider"), "for ada"),
    (TOKENS.block("js", "headers["), "for ada"),
    (Page("docs/deploying.md", __name__).block("js"), "for ada"),
]

_BUS = re.compile(r"https://bus\.example|http://127\.0\.0\.1:8090")


@pytest.mark.parametrize(("block", "expected"), SCRIPTS, ids=[str(block) for block, _ in SCRIPTS])
async def test_a_script_receives(tmp_path: Path, block: Block, expected: str) -> None:
    secret = secrets.token_hex(32)
    config = {"lookup": {"mode": "jwt", "jwt": {"secret": secret}}}
    token = jwt.encode({"sub": "ada", "exp": time.time() + 60}, secret, "HS256")
    async with HostedDaemon(tmp_path, config) as daemon:
        await daemon.publish("/hello", {"text": "Hello!"})
        await daemon.publish("/private", "for ada", user_ids=["ada"])
        for number in range(18):
            await daemon.publish("/topic/1", "in the page" if number < 17 else "the news")
        process = await asyncio.create_subprocess_exec(
            *(find_program("node", "nodejs"), HARNESS, CLIENT, f"{daemon.url}/", token),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(_BUS.sub(daemon.url, block.text).encode())
            process.stdin.write_eof()
            async with asyncio.timeout(WAIT_SECONDS):
                printed = await process.stdout.readline()
                if printed.decode().strip() != expected:
                    printed += await process.stdout.read()
            assert printed.decode().strip() == expected
        finally:
            process.kill()
            await process.wait()
