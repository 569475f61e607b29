"""A real nginx, with the configuration that is shipped in ``deploy/nginx.conf``."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"

_START_SECONDS = 10.0
_STOP_SECONDS = 10.0
_WORKER_STARTED = re.compile(r"start worker process \d+")


def program() -> str:
    """Return the path of nginx."""
    # Debian installs it to /usr/sbin, which is not on everybody's path.
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError("nginx is missing and these tests need it: apt-get install nginx")
    return path


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
        self._program = program()
        self._directory = directory
        self._upstream = upstream
        self._port = _free_port()
        self._process: asyncio.subprocess.Process | None = None

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
        path = self._directory / "nginx.conf"
        path.write_text(configuration(self._directory, self._port, self._upstream))
        with (self._directory / "stderr").open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                self._program,
                *("-p", str(self._directory), "-c", str(path), "-g", "daemon off;"),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._accepting()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop it at once; open connections are cut."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def reload(self) -> None:
        """Have it read its configuration again, and return when the old workers have stopped
        accepting; they stay for as long as they have open responses."""
        assert self._process is not None
        before = len(self.error_log)
        self._process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(_START_SECONDS):
            while True:
                log = self.error_log[before:]
                started = len(_WORKER_STARTED.findall(log))
                if 0 < started == log.count("gracefully shutting down"):
                    return
                await asyncio.sleep(0.02)

    async def _accepting(self) -> None:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise RuntimeError(
                    f"nginx did not start:\n{(self._directory / 'stderr').read_text()}"
                )
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except ConnectionError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
