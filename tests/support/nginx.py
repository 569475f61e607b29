"""A real nginx, with the configuration that is shipped in ``deploy/nginx.conf``."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.program import START_SECONDS, Program, accepts, find_program, free_port
from tests.support.shipped import adapted

_WORKER_STARTED = re.compile(r"start worker process \d+")


def places(directory: Path) -> dict[str, str]:
    """Where a test's nginx may write, and as whom; the same in all of its shipped files."""
    # The temporary directories that are compiled in belong to the system's nginx.
    temporary = "".join(
        f" {kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return {
        # Ignored unless it is root who runs the tests.
        "user www-data;": "user root;",
        "pid /run/nginx.pid;": f"pid {directory}/nginx.pid;",
        "error_log /var/log/nginx/error.log warn;": f"error_log {directory}/error.log notice;",
        "access_log /var/log/nginx/access.log combined;": (
            f"access_log {directory}/access.log;{temporary}"
        ),
    }


def servers(upstream: str) -> str:
    """The lines of an upstream, "host:port" or several, as the shipped files have them."""
    return " ".join(f"server {each} max_fails=0;" for each in upstream.split())


def configuration(directory: Path, port: int, upstream: str) -> str:
    """The shipped nginx.conf, set for a test."""
    return adapted(
        "nginx.conf",
        {
            **places(directory),
            "server 127.0.0.1:8090 max_fails=0;": servers(upstream),
            "listen 80;": f"listen 127.0.0.1:{port};",
        },
    )


class Nginx:
    """An nginx process that forwards to ``upstream``, "host:port" or several with spaces between.

    ``configure`` makes its configuration from folder, port and upstream. Keeps its port over
    ``stop`` and ``start``. Use as an asynchronous context manager.
    """

    def __init__(
        self,
        upstream: str,
        directory: Path,
        configure: Callable[[Path, int, str], str] = configuration,
    ) -> None:
        self._directory = directory
        self._config = directory / "nginx.conf"
        self._upstream = upstream
        self._configure = configure
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
    def port(self) -> int:
        return self._port

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
        self._config.write_text(self._configure(self._directory, self._port, self._upstream))
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
