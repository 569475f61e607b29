"""A real nginx, with the configuration that is shipped in ``deploy/nginx.conf``."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.program import START_SECONDS, Program, accepts, find_program, free_port

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"

_WORKER_STARTED = re.compile(r"start worker process \d+")


def configuration(directory: Path, port: int, upstream: str) -> str:
    """Return the shipped configuration with its "# site:" lines set for a test."""
    replacements = {
        # Ignored unless it is root who runs the tests.
        "user www-data;": "user root;",
        "pid /run/nginx.pid;": f"pid {directory}/nginx.pid;",
        "error_log /var/log/nginx/error.log warn;": f"error_log {directory}/error.log notice;",
        # The temporary directories that are compiled in belong to the system's nginx.
        "access_log /var/log/nginx/access.log combined;": f"access_log {directory}/access.log;"
        + "".join(
            f" {kind}_temp_path {directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ),
        "server 127.0.0.1:8090;": f"server {upstream};",
        "listen 80;": f"listen 127.0.0.1:{port};",
    }
    lines = []
    for line in CONFIGURATION.read_text().splitlines():
        directive, marked, _ = line.partition("# site:")
        if marked and not directive.lstrip().startswith("#"):
            indent = directive[: len(directive) - len(directive.lstrip())]
            line = indent + replacements.pop(directive.strip())
        lines.append(line)
    assert not replacements, f"not in {CONFIGURATION.name}: {list(replacements)}"
    return "\n".join(lines) + "\n"


class Nginx:
    """An nginx process that forwards to ``upstream``, "host:port".

    Keeps its port over ``stop`` and ``start``. Use as an asynchronous context manager.
    """

    def __init__(self, upstream: str, directory: Path) -> None:
        self._directory = directory
        self._config = directory / "nginx.conf"
        self._upstream = upstream
        self._port = free_port()
        self._program = Program(
            directory,
            [
                *(find_program("nginx", "nginx-light"), "-p", str(directory)),
                *("-c", str(self._config), "-g", "daemon off;"),
            ],
            lambda: accepts(self._port),
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def error_log(self) -> str:
        return (self._directory / "error.log").read_text()

    @property
    def access_log(self) -> str:
        return (self._directory / "access.log").read_text()

    @property
    def workers(self) -> int:
        """How many worker processes it has started."""
        return len(_WORKER_STARTED.findall(self.error_log))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it, and return when it accepts connections."""
        self._config.write_text(configuration(self._directory, self._port, self._upstream))
        self._program.start()

    async def stop(self) -> None:
        """Stop it at once; open connections are cut."""
        self._program.stop()

    async def reload(self) -> None:
        """Have it read its configuration again, and return when the old workers have stopped
        accepting; they stay for as long as they have open responses."""
        before = len(self.error_log)
        os.kill(self._program.pid, signal.SIGHUP)
        async with asyncio.timeout(START_SECONDS):
            while True:
                log = self.error_log[before:]
                started = len(_WORKER_STARTED.findall(log))
                if 0 < started == log.count("gracefully shutting down"):
                    return
                await asyncio.sleep(0.02)
