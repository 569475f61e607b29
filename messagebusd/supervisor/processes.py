"""A worker as its supervisor sees it: its number and sockets, and one process after the other."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from messagebusd.supervisor.assignment import SIGNALS

# Runs with our own path to modules, and without the working directory if that is not on it.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from messagebusd.supervisor import worker; worker.main(int(sys.argv[1]))"
)
CLEANLY = "exit status 0"


class Worker:
    """One of the workers: a number, its sockets by listener, and the process that has them now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sockets: dict[str, list[socket.socket]] = {}
        self.process: Process | None = None

    @property
    def is_ready(self) -> bool:
        return self.process is not None and self.process.is_ready

    def descriptors(self) -> dict[str, list[int]]:
        return {
            listener: [each.fileno() for each in sockets]
            for listener, sockets in self.sockets.items()
        }


class Process:
    """A process that is a worker, and what it has told us."""

    def __init__(self, popen: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self.popen = popen
        self._writer = writer
        self.is_ready = False
        self.silent_beats = 0
        self.beats_to_begin = 0
        self.problems: list[str] = []
        self._questions = 0
        self._answer: asyncio.Future[list[str]] | None = None

    def ask(self, question: Callable[[int], bytes]) -> asyncio.Future[list[str]]:
        """Tell it something, with a number, that it answers with problems, or none.

        One that ends has none. One question at a time; who gives up waiting may ask another.
        """
        self._questions += 1
        self._answer = asyncio.get_running_loop().create_future()
        self.tell(question(self._questions))
        return self._answer

    def answer(self, number: int, problems: list[str]) -> None:
        """It has answered a question."""
        if self._answer is not None and not self._answer.done() and number == self._questions:
            self._answer.set_result(problems)

    def end(self) -> None:
        """It will answer nothing more."""
        self.answer(self._questions, [])

    def tell(self, order: bytes) -> None:
        self._writer.write(order + b"\n")

    def hang_up(self) -> None:
        self._writer.transport.abort()


class Ending(NamedTuple):
    """How a worker's process ended, and what it said about that."""

    pid: int | None
    how: str
    problems: tuple[str, ...]
    was_ready: bool

    def fields(self, worker: Worker) -> dict[str, object]:
        """For the log."""
        fields: dict[str, object] = {"worker": worker.number, "pid": self.pid, "ended": self.how}
        return fields | ({"reason": "; ".join(self.problems)} if self.problems else {})


def start(worker: Worker, control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker's process. Raises OSError."""
    descriptors = [control.fileno(), *chain.from_iterable(worker.descriptors().values())]
    arguments = [str(control.fileno()), json.dumps(sys.path)]
    # A signal to the whole group must not end the process before it can ignore it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", START, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"signal {-status}"
