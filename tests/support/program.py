"""Programs that tests run beside the daemon: found, started, watched, ended by their process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 20.0
STOP_SECONDS = 20.0


def find_program(name: str, package: str, *folders: str) -> str:
    """The path of a program. Raises RuntimeError that says what to install."""
    # Debian keeps servers out of everybody's path.
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *folders])
    if (path := shutil.which(name, path=places)) is None:
        raise RuntimeError(
            f"{name} is missing and these tests need it: run `make packages`, "
            f"or apt-get install {package}"
        )
    return path


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether somebody listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """One program in a folder of its own, started again and again. Not asynchronous: it serves
    fixtures of any scope, and takes milliseconds."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        is_ready: Callable[[], bool],
        *,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.folder = folder
        self._arguments = arguments
        self._is_ready = is_ready
        self._env = env
        self._user = user
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it is ready. Raises RuntimeError with its output."""
        assert not self.running, "already started"
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=None if self._env is None else {**os.environ, **self._env},
                user=self._user,
                start_new_session=True,  # a Ctrl-C is the tests' own
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self._arguments[0]} did not start:\n{self.output}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as its manual says; kill it if that takes too long."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once, without any of its own doing."""
        if self._process is not None:
            if self.running:
                self._process.kill()
            self._process.wait()
