"""The process that looks after the workers. It serves nobody itself.

It binds every socket once and keeps it open, so that a connection that comes to a worker that died
waits for its replacement. It starts the workers, each with a socket to speak with it, and watches
them: one that ends is replaced, one whose loop has stopped turning is killed and replaced. Workers
that keep dying are started more slowly, but always again. Only at first start is a worker that
cannot begin the end of it all.

A first signal has all workers drain, a second one has them hurry. SIGHUP has the settings read
again: here, where they are checked, then all workers prepare for them, and once all have, all of
them change over. A worker that begins later begins with them.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path

from messagebusd.errors import ConfigurationError, problems_of
from messagebusd.listeners import (
    LISTEN_BACKLOG,
    announce,
    bind,
    listen_addresses,
    make_key,
    shown_address,
)
from messagebusd.log import configure_logging
from messagebusd.metrics import forget_worker
from messagebusd.notify import Notifier
from messagebusd.reloading import Load, Outcome, Reloader
from messagebusd.settings import LoadedSettings
from messagebusd.supervisor.assignment import (
    ABANDON,
    ADOPT,
    ANSWER,
    BEAT_SECONDS,
    COUNT,
    DRAIN,
    FAILED,
    HURRY,
    LINE_BYTES,
    READY,
    STOP_SIGNALS,
    Assignment,
    Place,
    encode_settings,
)
from messagebusd.supervisor.processes import CLEANLY, Ending, Process, Worker, describe, start

# A worker that says nothing for so many beats is killed.
SILENT_BEATS = 30
# One that is not ready after so many is killed, too, even if its loop turns.
BEGIN_BEATS = 60
# A worker that lived so long did not die of its start.
STABLE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
# All workers get this long to prepare for other settings; one may be only beginning.
RELOAD_SECONDS = 30.0


# Memory as a folder, and the first user id that is a person's.
_MEMORY = "/dev/shm"
_FIRST_PERSON = 1000

_log = logging.getLogger(__name__)


def run(loaded: LoadedSettings, load: Load) -> int:
    """Serve with several workers, until a signal; the process' exit status. ``load`` reads the
    settings again."""
    try:
        with _private_folder() as folder:
            return asyncio.run(Supervisor(loaded, load, folder).run())
    except OSError as error:
        for problem in problems_of(error):
            print(f"error: {problem}", file=sys.stderr)
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
    """See the module's docstring. ``folder`` is empty and private."""

    def __init__(self, loaded: LoadedSettings, load: Load, folder: Path) -> None:
        self._loaded = loaded
        self._folder = folder
        self._session_secret = secrets.token_bytes()
        self._made_key = make_key(loaded.settings)
        self._read_at = time.time()
        self._notifier = Notifier.from_environment(os.environ)
        self._reloader = Reloader(loaded, load, self._apply, self._count, self._notifier)
        self._addresses: dict[str, str] = {}
        workers = loaded.settings.server.workers
        self._workers = [Worker(number) for number in range(1, workers + 1)]
        self._announced = asyncio.Event()
        self._is_hurried = False
        self._stopping = asyncio.Event()
        self._exit_status = 0

    async def run(self) -> int:
        """Serve until a signal; the exit status. Raises OSError if an address cannot be used."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        self._reloader.listen()
        try:
            self._bind()
            async with asyncio.TaskGroup() as tasks:
                # A worker that hangs is nothing for the manager's watchdog: we see to that.
                beside = [self._watch(), self._notifier.keep_alive(), self._reload()]
                watching = [tasks.create_task(each) for each in beside]
                await asyncio.wait([tasks.create_task(self._keep(each)) for each in self._workers])
                for each in watching:
                    each.cancel()
        finally:
            self._close_sockets()
            self._notifier.close()
        _log.info("stopped")
        return self._exit_status

    # -- addresses

    def _bind(self) -> None:
        server = self._loaded.settings.server
        for listener, address in listen_addresses(server).items():
            rows = bind(address, len(self._workers), reuse_port=server.reuse_port)
            self._addresses[listener] = shown_address(address, rows[0])
            for worker, sockets in zip(self._workers, rows, strict=True):
                worker.sockets[listener] = sockets
                for each in sockets:
                    # Where another daemon still serves, nobody is to wait for our workers to begin.
                    if not server.reuse_port:
                        each.listen(LISTEN_BACKLOG)

    def _close_sockets(self) -> None:
        for worker in self._workers:
            for each in chain.from_iterable(worker.sockets.values()):
                each.close()

    # -- a worker's life

    async def _keep(self, worker: Worker) -> None:
        """Have this worker run, in one process after the other, until we stop."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping.is_set():
            started = loop.time()
            ending = await self._run(worker)
            if self._stopping.is_set():
                self._judge(worker, ending)
            elif not self._announced.is_set():
                self._give_up(worker, ending)
            else:
                was_stable = ending.was_ready and loop.time() - started >= STABLE_SECONDS
                failures = 1 if was_stable else failures + 1
                pause = pause_before_restart(failures)
                fields = ending.fields(worker) | {"pause": pause}
                _log.error("worker ended, starting another one", extra=fields)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()

    async def _run(self, worker: Worker) -> Ending:
        """Have one process be this worker, to its end."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                popen = start(worker, theirs)
        except OSError as error:
            ours.close()
            return Ending(None, "not started", (str(error),), was_ready=False)
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        process = worker.process = Process(popen, writer)
        place = Place(
            worker.number,
            self._folder,
            worker.descriptors(),
            self._made_key,
            self._session_secret,
            self._read_at,
        )
        writer.write(Assignment(self._loaded, place).encode())
        if self._stopping.is_set():
            process.tell(HURRY if self._is_hurried else DRAIN)
        try:
            with suppress(ConnectionError):
                async for line in reader:
                    self._hear(worker, process, line.rstrip(b"\n"))
            await asyncio.to_thread(popen.wait)  # not long: its sockets have closed
        finally:
            worker.process = None
            process.end()  # whoever comes next begins with the settings that count
            writer.close()
            if popen.poll() is None:
                popen.kill()
                popen.wait()
            forget_worker(self._folder, worker.number)
        return Ending(
            popen.pid, describe(popen.returncode), tuple(process.problems), process.is_ready
        )

    def _hear(self, worker: Worker, process: Process, line: bytes) -> None:
        process.silent_beats = 0
        word, _, value = line.partition(b" ")
        if word == READY:
            process.is_ready = True
            fields = {"worker": worker.number, "pid": process.popen.pid}
            _log.info("worker ready", extra=fields)
            if not self._announced.is_set() and all(each.is_ready for each in self._workers):
                self._announced.set()
                announce(self._loaded.settings, self._addresses, self._made_key)
                self._notifier.ready()
        elif word == FAILED:
            process.problems = json.loads(value)
        elif word == ANSWER:
            process.answer(*json.loads(value))

    async def _watch(self) -> None:
        """Kill workers that have fallen silent, or do not begin.

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
                process.beats_to_begin += not process.is_ready
                fields = {"worker": worker.number, "pid": process.popen.pid}
                if process.silent_beats == SILENT_BEATS:
                    _log.error("worker does not respond, killing it", extra=fields)
                    process.popen.kill()
                elif not process.is_ready and process.beats_to_begin == BEGIN_BEATS:
                    process.problems = [f"it was not ready within {BEGIN_BEATS} seconds"]
                    process.beats_to_begin += 1  # once is enough
                    _log.error("worker does not begin, killing it", extra=fields)
                    process.popen.kill()

    # -- other settings

    async def _reload(self) -> None:
        """Read the settings again when we are asked to, once all serve and until we stop."""

        async def reload() -> None:
            await self._announced.wait()  # the manager is told after each that we are ready
            await self._reloader.run()

        reloading = asyncio.create_task(reload())
        try:
            await self._stopping.wait()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)

    async def _apply(self, loaded: LoadedSettings) -> None:
        """Have all workers go by these settings, or none. Raises ConfigurationError."""
        prepared: set[Process] = set()
        problems: dict[str, None] = {}
        try:
            async with asyncio.timeout(RELOAD_SECONDS):
                # One that takes the place of another meanwhile has begun with those of before.
                while not problems and (left := self._processes() - prepared):
                    asked = [each.ask(partial(encode_settings, loaded)) for each in left]
                    for answer in await asyncio.gather(*asked):
                        problems |= dict.fromkeys(answer)
                    prepared |= left
        except TimeoutError:
            problems["a worker did not answer in time"] = None
        if problems:
            self._tell_all(ABANDON)
            raise ConfigurationError(list(problems))
        # Since the last look at who is there nothing was awaited.
        self._loaded = loaded
        adopting = [each.ask(lambda number: b"%b %d" % (ADOPT, number)) for each in prepared]
        configure_logging(loaded.settings.log.level, loaded.settings.log.format)
        # One that does not answer hangs, and is replaced by one that begins with these.
        if adopting:
            await asyncio.wait(adopting, timeout=RELOAD_SECONDS)

    def _processes(self) -> set[Process]:
        return {each.process for each in self._workers if each.process is not None}

    def _count(self, outcome: Outcome) -> None:
        """Have one worker count it: theirs are the metrics, and they are added up."""
        if outcome == "done":
            self._read_at = time.time()
        for worker in self._workers:
            if worker.process is not None and worker.process.is_ready:
                worker.process.tell(COUNT + b" " + outcome.encode())
                return

    # -- the end

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            self._hurry()
        else:
            self._stop()

    def _stop(self) -> None:
        """Have the workers drain. They have the addresses for themselves from now on."""
        self._stopping.set()
        self._notifier.stopping()
        self._close_sockets()
        self._tell_all(DRAIN)

    def _hurry(self) -> None:
        self._is_hurried = True
        self._tell_all(HURRY)

    def _tell_all(self, order: bytes) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.tell(order)

    def _give_up(self, worker: Worker, ending: Ending) -> None:
        """The daemon cannot begin: say why, once, and end it."""
        early = f"worker {worker.number} did not start: {ending.how}"
        for problem in ending.problems or (early,):
            print(f"error: {problem}", file=sys.stderr)
        self._exit_status = 1
        self._stop()
        self._hurry()

    def _judge(self, worker: Worker, ending: Ending) -> None:
        """Say what went wrong while a worker stopped; but one that never began fails unheard."""
        if ending.how != CLEANLY and ending.was_ready:
            _log.error("worker did not stop as it should", extra=ending.fields(worker))
            self._exit_status = 1
