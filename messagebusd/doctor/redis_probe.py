"""A connection of the doctor's own to a Redis server: commands out, answers or refusals in.

It is made as the store makes its connections, so that it is the same server, user and database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import hiredis

from messagebusd.backends.redis.connection import Connection, Word, pack
from messagebusd.backends.redis.errors import code_of, explain, moved_to
from messagebusd.backends.redis.route import Route, Target
from messagebusd.errors import StoreUnavailable
from messagebusd.settings import RedisConnection

Info = Mapping[str, str]


class Refused(Exception):
    """The server answered a command with an error."""

    def __init__(self, answer: str) -> None:
        super().__init__(explain(answer))
        self.code = code_of(answer)
        self.node = moved_to(answer)


class Probe:
    """One connection, for one caller at a time; ``timeout`` bounds every exchange."""

    def __init__(self, settings: RedisConnection, timeout: float) -> None:
        self.target = Target.from_settings(settings)
        self.timeout = timeout
        self._route = Route(self.target, timeout)
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        self._connection = await self._route.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def follow(self, node: str) -> None:
        """Go on at another node of the cluster. Raises StoreUnavailable."""
        assert self._connection is not None
        self._route.redirect(node)
        await self._connection.close()
        self._connection = await self._route.connect()

    async def ask(self, *command: Word) -> Any:
        """One command's answer. Raises Refused or StoreUnavailable."""
        (answer,) = await self.ask_all([command])
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def ask_all(self, commands: Sequence[Iterable[Word]]) -> list[Any]:
        """The answers to several commands, `Refused` among them. Raises StoreUnavailable."""
        connection = self._connection
        assert connection is not None
        if not connection.is_open:
            raise StoreUnavailable("the server has closed the connection")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        collected: list[Any] = []

        def collect(answers: list[Any]) -> None:
            collected.extend(answers)
            if len(collected) >= len(commands) and not done.done():
                done.set_result(None)

        def lose(reason: str) -> None:
            if not done.done():
                done.set_exception(StoreUnavailable(reason))

        connection.on_answers, connection.on_lost = collect, lose
        connection.send(b"".join(map(pack, commands)))
        try:
            async with asyncio.timeout(self.timeout):
                await done
        except TimeoutError:
            raise StoreUnavailable("the server does not answer in time") from None
        return [
            Refused(str(answer)) if isinstance(answer, hiredis.ReplyError) else answer
            for answer in collected
        ]

    async def info(self) -> Info:
        """``INFO``: what the server says of itself, all sections. Raises as `ask` does."""
        text: bytes = await self.ask("INFO")
        pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
        return {name: value for name, colon, value in pairs if colon}

    async def config(self, *names: str) -> Mapping[str, str]:
        """``CONFIG GET`` of some options. Raises as `ask` does."""
        found: dict[str, str] = {}
        for name in names:  # several at a time are for Redis 7 and above
            answer = await self.ask("CONFIG", "GET", name)
            texts = [each.decode("utf-8", "replace") for each in answer]
            found.update(zip(texts[::2], texts[1::2], strict=True))
        return found
