"""Many clients at once: a crowd of parked streams, and a herd of long polls that comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from bench.dialects import MARK, poll_request
from bench.errors import BenchError
from bench.load import WAIT_SECONDS, Caller, Tally, answer_end, connect
from bench.servers import Server

SOURCE = Path(__file__).with_name("crowd.c")
OUT = Path(__file__).with_name("out")
CLOSING = b"onnection: close\r\n"
# Of one line: the arrivals of some thousand messages.
LINE_BYTES = 16 * 1024 * 1024


def compiled(source: Path, *options: str) -> Path:
    """What a C file compiles to, made if it is not there yet. Raises BenchError."""
    made = OUT / source.stem
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        compiler = shutil.which("cc")
        if compiler is None:
            raise BenchError("a C compiler is missing: apt-get install gcc libc6-dev")
        OUT.mkdir(exist_ok=True)
        new = made.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-Werror", *options, "-o", new, source],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{source.name} could not be compiled:\n{done.stderr}")
        new.replace(made)  # others may be doing the same
    return made


class Crowd:
    """Streams of users 1, 2, 3… on one channel, as many as asked for.

    They are held by a process of its own (``crowd.c``) on the generator's core: what it costs to
    read from thousands of sockets must not limit the figures.
    """

    channel = "/crowd"

    def __init__(self, server: Server, control: Caller, process: Process) -> None:
        self._server = server
        self._control = control
        self._process = process
        # How many messages have been received.
        self.received = 0
        self.size = 0

    @classmethod
    @asynccontextmanager
    async def of(cls, server: Server, control: Caller) -> AsyncIterator[Crowd]:
        """Nobody yet; they all leave in the end."""
        dialect = server.dialect
        with tempfile.NamedTemporaryFile("w", prefix="messagebusd-bench-") as template:
            template.write(dialect.stream(cls.channel))
            template.flush()
            process = await asyncio.create_subprocess_exec(
                compiled(SOURCE),
                *(str(server.port), dialect.first, template.name),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
            )
            try:
                yield cls(server, control, process)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def resize(self, size: int) -> None:
        """Open or close streams; on return the server has done its part as well."""
        await self._ask("size", size, "sized")
        self.size = size
        await self._control.parked(self._server, "stream", size)

    async def idle(self, size: int) -> None:
        """The same for streams that nobody reads any more once they are parked."""
        await self._ask("idle", size, "idled")

    @asynccontextmanager
    async def receiving(self, messages: int) -> AsyncIterator[list[float]]:
        """Wait at the end for so many messages more; when each piece of them arrived.

        Raises BenchError if they do not come, or more of them do.
        """
        arrivals: list[float] = []
        target = self.received + messages
        self._tell("watch", target)
        yield arrivals
        count, *times = await self._hear("reached")
        arrivals += [int(each) / 1e9 for each in times]
        self._check(int(count), target)

    async def receive(self, messages: int) -> float:
        """Wait for so many messages more; when the last one arrived, see `receiving`."""
        target = self.received + messages
        count, last = await self._ask("reach", target, "reached")
        self._check(int(count), target)
        return int(last) / 1e9

    def _check(self, count: int, target: int) -> None:
        if count != target:
            raise BenchError(f"messages received: {count} instead of {target}")
        self.received = count

    async def _ask(self, command: str, number: int, answer: str) -> list[str]:
        self._tell(command, number)
        return await self._hear(answer)

    def _tell(self, command: str, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {number}\n".encode())

    async def _hear(self, answer: str) -> list[str]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                line = (await self._process.stdout.readline()).decode()
        except TimeoutError:
            raise BenchError(f"not {answer} within {WAIT_SECONDS:g} s") from None
        word, *values = line.split() or ["nothing"]
        if word != answer:
            raise BenchError(f"the crowd says: {line.strip()}")
        return values


class LongPoll(asyncio.Protocol):
    """A connection that one client of a herd polls on, for as long as the server keeps it."""

    __slots__ = ("_herd", "_received", "_transport", "open")

    def __init__(self, herd: Herd) -> None:
        self._herd = herd
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self.open = True

    def send(self, request: bytes) -> None:
        assert self._transport is not None, "not connected"
        self._transport.write(request)

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        try:
            complete = answer_end(data)
        except BenchError as error:
            self._herd.messages.fail(error)
            return
        if not complete:
            self._received = data
            return
        self._received = b""
        if CLOSING in data:
            self.close()
        self._herd.messages.add(data.count(MARK))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:
            self._herd.messages.fail(BenchError(f"a long poll was not answered: {exc!r}"))


class Herd:
    """Clients of one channel that cannot take chunks and poll again when all are answered."""

    channel = "/herd"

    def __init__(self, server: Server, size: int) -> None:
        self._server = server
        self._polls: list[LongPoll | None] = [None] * size
        self.messages = Tally("messages of long polls")

    async def poll(self, position: int) -> None:
        """Let everybody poll, who has seen everything up to this message id."""
        for number, poll in enumerate(self._polls):
            if poll is None or not poll.open:
                poll = self._polls[number] = LongPoll(self)
                await connect(self._server, poll)
            poll.send(poll_request(number + 1, f"{self.channel}={position}", chunks=False))

    def close(self) -> None:
        for poll in self._polls:
            if poll is not None:
                poll.close()
