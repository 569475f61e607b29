"""docs/operations.md: the log says of a reload what it shows."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from tests.support.pages import Page
from tests.support.program import Program
from tests.support.redis_server import RedisServer

PAGE = Page("docs/operations.md", __name__)
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
