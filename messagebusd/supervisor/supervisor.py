"""The process that looks after the workers. It serves nobody itself.

It binds every socket once and keeps it open, so that a connection that comes to a worker that died
waits for its replacement. It starts the workers, each with a socket to speak with it, and watches
them: one that ends is replaced, one whose loop has stopped turning is killed and replaced. Workers
that keep dying are started more slowly, but always again. Only at first start is a worker that
cannot begin the end of it all.

A first signal has all workers drain, a second one has them hurry.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from messagebusd.listeners import (
    LISTEN_BACKLOG,
    announce,
    bind,
    listen_addresses,
    make_key,
    shown_address,
)
from messagebusd.metrics import forget_worker
from messagebusd.settings import Settings, Sources
from messagebusd.supervisor.assignment import (
    BEAT_SECONDS,
    DRAIN,
    FAILED,
    HURRY,
    READY,
    STOP_SIGNALS,
    Assignment,
    Place,
)

# A worker that says nothing for so many beats is killed.
SILENT_BEATS = 30
# A worker that lived so long did not die of its start.
STABLE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0

# What a worker says in one line: its problems are the longest.
_LINE_BYTES = 2**20
# Runs with our own path to modules, and without the working directory if that is not on it.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from messagebusd.supervisor import worker; worker.main(int(sys.argv[1]))"
)

# Memory as a folder, and the first user id that is a person's.
_MEMORY = "/dev/shm"
_FIRST_PERSON = 1000
_CLEANLY = "exit status 0"

_log = logging.getLogger(__name__)


def run(settings: Settings, sources: Sources | None = None) -> int:
    """Serve with several workers, until a signal; the process' exit status."""
    try:
        with _private_folder() as folder:
            return asyncio.run(Supervisor(settings, folder, sources).run())
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder for the workers, that only our user can enter, and nobody tidies up.

    It is in memory if possible: metrics are written there with every request.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # by systemd
    # When people log out, their files there are removed.
    is_ours = os.getuid() < _FIRST_PERSON and os.access(_MEMORY, os.W_OK | os.X_OK)
    parent = given or (_MEMORY if is_ours else None)
    with tempfile.TemporaryDirectory(prefix="messagebusd-", dir=parent) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # What is old in /tmp is removed, but not what is locked.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield Path(folder)
        finally:
            os.close(descriptor)


def pause_before_restart(failures: int) -> float:
    """How long to wait in seconds, after so many workers in a row that died early."""
    if failures <= 1:
        return 0.0
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 2, 10), LONGEST_PAUSE_SECONDS)


class Supervisor:
    """See the module's docstring. ``folder`` is empty and private.

    ``sources`` says of each key where it is set.
    """

    def __init__(self, settings: Settings, folder: Path, sources: Sources | None = None) -> None:
        self._settings = settings
        self._sources = sources or {}
        self._folder = folder
        self._session_secret = secrets.token_bytes()
        self._made_key = make_key(settings)
        self._addresses: dict[str, str] = {}
        self._workers = [_Worker(number) for number in range(1, settings.server.workers + 1)]
        self._is_announced = False
        self._is_hurried = False
        self._stopping = asyncio.Event()
        self._exit_status = 0

    async def run(self) -> int:
        """Serve until a signal; the exit status. Raises OSError if an address cannot be used."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            self._bind()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch())
                await asyncio.wait([tasks.create_task(self._keep(each)) for each in self._workers])
                watching.cancel()
        finally:
            self._close_sockets()
        _log.info("stopped")
        return self._exit_status

    # -- addresses

    def _bind(self) -> None:
        for listener, address in listen_addresses(self._settings.server).items():
            rows = bind(address, len(self._workers))
            self._addresses[listener] = shown_address(address, rows[0])
            for worker, sockets in zip(self._workers, rows, strict=True):
                worker.sockets[listener] = sockets
                for each in sockets:
                    each.listen(LISTEN_BACKLOG)

    def _close_sockets(self) -> None:
        for worker in self._workers:
            for each in chain.from_iterable(worker.sockets.values()):
                each.close()

    # -- a worker's life

    async def _keep(self, worker: _Worker) -> None:
        """Have this worker run, in one process after the other, until we stop."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping.is_set():
            started = loop.time()
            ending = await self._run(worker)
            if self._stopping.is_set():
                self._judge(worker, ending)
            elif not self._is_announced:
                self._give_up(worker, ending)
            else:
                failures = 1 if loop.time() - started >= STABLE_SECONDS else failures + 1
                pause = pause_before_restart(failures)
                fields = ending.fields(worker) | {"pause": pause}
                _log.error("worker ended, starting another one", extra=fields)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()

    async def _run(self, worker: _Worker) -> _Ending:
        """Have one process be this worker, to its end."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = _start(worker, theirs)
        except OSError as error:
            ours.close()
            return _Ending(None, "not started", (str(error),), was_ready=False)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LINE_BYTES)
        process = worker.process = _Process(popen, writer)
        place = Place(
            worker.number,
            self._folder,
            worker.descriptors(),
            self._made_key,
            self._session_secret,
        )
        writer.write(Assignment(self._settings, place, self._sources).encode())
        if self._stopping.is_set():
            process.tell(HURRY if self._is_hurried else DRAIN)
        try:
            with suppress(ConnectionError):
                async for line in reader:
                    self._hear(worker, process, line.rstrip(b"\n"))
            await asyncio.to_thread(popen.wait)  # not long: its sockets have closed
        finally:
            worker.process = None
            writer.close()
            if popen.poll() is None:
                popen.kill()
                popen.wait()
            forget_worker(self._folder, worker.number)
        return _Ending(
            popen.pid, _describe(popen.returncode), tuple(process.problems), process.is_ready
        )

    def _hear(self, worker: _Worker, process: _Process, line: bytes) -> None:
        process.silent_beats = 0
        word, _, value = line.partition(b" ")
        if word == READY:
            process.is_ready = True
            fields = {"worker": worker.number, "pid": process.popen.pid}
            _log.info("worker ready", extra=fields)
            if not self._is_announced and all(each.is_ready for each in self._workers):
                self._is_announced = True
                announce(self._settings, self._addresses, self._made_key)
        elif word == FAILED:
            process.problems = json.loads(value)

    async def _watch(self) -> None:
        """Kill workers that have fallen silent.

        Counts our own turns, not time: after a stop of the whole machine, or of all processes by
        the terminal, nobody has been silent for longer than we have been deaf.
        """
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            for worker in self._workers:
                if (process := worker.process) is None:
                    continue
                if process.popen.poll() is not None:
                    # A program that it had started may keep the socket open.
                    process.hang_up()
                    continue
                process.silent_beats += 1
                if process.silent_beats == SILENT_BEATS:
                    fields = {"worker": worker.number, "pid": process.popen.pid}
                    _log.error("worker does not respond, killing it", extra=fields)
                    process.popen.kill()

    # -- the end

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry()
        else:
            self._stop()

    def _stop(self) -> None:
        """Have the workers drain. They have the addresses for themselves from now on."""
        self._stopping.set()
        self._close_sockets()
        self._tell_all(DRAIN)

    def _hurry(self) -> None:
        self._is_hurried = True
        self._tell_all(HURRY)

    def _tell_all(self, order: bytes) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.tell(order)

    def _give_up(self, worker: _Worker, ending: _Ending) -> None:
        """The daemon cannot begin: say why, once, and end it."""
        early = f"worker {worker.number} did not start: {ending.how}"
        for problem in ending.problems or (early,):
            print(f"error: {problem}", file=sys.stderr)
        self._exit_status = 1
        self._stop()
        self._hurry()

    def _judge(self, worker: _Worker, ending: _Ending) -> None:
        """Say what went wrong while a worker stopped; but one that never began fails unheard."""
        if ending.how != _CLEANLY and ending.was_ready:
            _log.error("worker did not stop as it should", extra=ending.fields(worker))
            self._exit_status = 1


class _Worker:
    """One of the workers: a number, its sockets by listener, and the process that has them now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sockets: dict[str, list[socket.socket]] = {}
        self.process: _Process | None = None

    @property
    def is_ready(self) -> bool:
        return self.process is not None and self.process.is_ready

    def descriptors(self) -> dict[str, list[int]]:
        return {
            listener: [each.fileno() for each in sockets]
            for listener, sockets in self.sockets.items()
        }


class _Process:
    """A process that is a worker, and what it has told us."""

    def __init__(self, popen: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self.popen = popen
        self._writer = writer
        self.is_ready = False
        self.silent_beats = 0
        self.problems: list[str] = []

    def tell(self, order: bytes) -> None:
        self._writer.write(order + b"\n")

    def hang_up(self) -> None:
        self._writer.transport.abort()


class _Ending(NamedTuple):
    """How a worker's process ended, and what it said about that."""

    pid: int | None
    how: str
    problems: tuple[str, ...]
    was_ready: bool

    def fields(self, worker: _Worker) -> dict[str, object]:
        """For the log."""
        fields: dict[str, object] = {"worker": worker.number, "pid": self.pid, "ended": self.how}
        return fields | ({"reason": "; ".join(self.problems)} if self.problems else {})


def _start(worker: _Worker, control: socket.socket) -> subprocess.Popen[bytes]:
    """Start a worker's process. Raises OSError."""
    descriptors = [control.fileno(), *chain.from_iterable(worker.descriptors().values())]
    arguments = [str(control.fileno()), json.dumps(sys.path)]
    # A signal to the whole group must not end the process before it can ignore it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"signal {-status}"
