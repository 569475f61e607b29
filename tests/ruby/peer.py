"""A Ruby process with the real gem, and subscribers of the daemon's: the two sides of a store."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.support.daemon import Daemon

DRIVER = Path(__file__).with_name("driver.rb")
WAIT_SECONDS = 20.0
LINE_BYTES = 16 << 20
SEPARATOR = b"\r\n|\r\n"
STATUS_CHANNEL = "/__status"

Message = Mapping[str, Any]


class RubyError(Exception):
    """What a call raised in Ruby."""


class RubyPeer:
    """A context manager; ``received`` are the messages that its subscription was handed."""

    def __init__(
        self, gem: Path, kind: str, options: Mapping[str, Any], site: str | None = None
    ) -> None:
        self.everything: list[Message] = []
        self.warnings: list[str] = []
        self._setup = json.dumps({"backend": kind, "options": options, "site": site})
        self._gem = gem
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._progress = asyncio.Condition()

    @property
    def received(self) -> list[Message]:
        """The messages, but for those of the bus itself."""
        return [each for each in self.everything if not each["channel"].startswith("/__")]

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *("ruby", "-I", str(self._gem / "lib"), str(DRIVER), self._setup),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._reader is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Have something done; its result. Raises RubyError."""
        assert self._process is not None
        assert self._process.stdin is not None
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "do": what, **arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        async with asyncio.timeout(2 * WAIT_SECONDS):
            return await answer

    async def publish(self, channel: str, data: Any, **options: Any) -> int:
        """Publish; the message id."""
        message_id: int = await self.ask("publish", channel=channel, data=data, options=options)
        return message_id

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what was received fulfils a condition."""
        async with asyncio.timeout(WAIT_SECONDS), self._progress:
            await self._progress.wait_for(condition)

    async def has_received(self, count: int) -> list[Message]:
        """Wait for so many messages, and return all."""
        await self.until(lambda: len(self.received) >= count)
        return self.received

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "received" in said:
                self.everything.append(said["received"])
            elif "warned" in said:
                self.warnings.append(said["warned"])
            elif "error" in said:
                self._answers.pop(said["id"]).set_exception(RubyError(said["error"]))
            elif "id" in said:
                self._answers.pop(said["id"]).set_result(said["result"])
            async with self._progress:
                self._progress.notify_all()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(RubyError("the process has ended"))


class Poller:
    """A subscriber that polls as a browser does; a context manager.

    ``received`` are the messages as they came, without statuses.
    """

    def __init__(
        self,
        daemon: Daemon,
        *channels: str,
        user: int | str | None = None,
        groups: list[int] | None = None,
        site: str | None = None,
        client_id: str = "client",
    ) -> None:
        self.received: list[Message] = []
        self._positions = dict.fromkeys(channels, 0)
        self._url = f"{daemon.url}/message-bus/{client_id}/poll"
        self._headers = {
            name: value
            for name, value in (
                ("X-MessageBus-User", None if user is None else json.dumps(user)),
                ("X-MessageBus-Groups", None if groups is None else json.dumps(groups)),
                ("X-MessageBus-Site", site),
            )
            if value is not None
        }
        self._is_open = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._progress = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(WAIT_SECONDS):
            await self._is_open.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def has_received(self, count: int) -> list[Message]:
        """Wait for so many messages, and return all."""
        async with asyncio.timeout(2 * WAIT_SECONDS), self._progress:
            await self._progress.wait_for(lambda: len(self.received) >= count)
        return self.received

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.post(
                    self._url, json=self._positions, headers=self._headers
                ) as answer:
                    assert answer.status == 200, await answer.text()
                    rest = b""
                    async for data in answer.content.iter_any():
                        *frames, rest = (rest + data).split(SEPARATOR)
                        for frame in frames:
                            await self._take(json.loads(frame))

    async def _take(self, messages: list[Message]) -> None:
        # The first frame comes when the poll has parked, or with what there was.
        self._is_open.set()
        for message in messages:
            if message["channel"] == STATUS_CHANNEL:
                self._positions.update(message["data"])
            else:
                self._positions[message["channel"]] = message["message_id"]
                self.received.append(message)
        async with self._progress:
            self._progress.notify_all()
