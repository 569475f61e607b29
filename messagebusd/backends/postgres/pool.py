"""Connections to PostgreSQL for statements that stand for themselves.

A pooler in transaction mode may be in between: no statement here relies on the session. Nothing is
sent twice: a statement whose connection broke has failed, and may have happened.

A caller that is cancelled leaves its statement to finish, so that the connection stays in order. A
statement that takes too long is cancelled at the server, and its connection is closed before
another one takes its place: there are never more sessions than the pool has room for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import asyncpg

from messagebusd.backends.postgres.errors import FAILURES, translate
from messagebusd.errors import StoreUnavailable
from messagebusd.settings.backend import PostgresSettings

T = TypeVar("T")

# After a refused connection nobody tries again for so long; it is refused at once meanwhile.
PAUSE_SECONDS = 0.2
APPLICATION_NAME = "messagebusd"


async def connect(settings: PostgresSettings, url: str) -> asyncpg.Connection:
    """Open a connection. Raises StoreUnavailable.

    Statements are prepared and kept, unless there is a pooler, which may give each use of one to
    another session. The session's time zone stays as it is: ages are measured in it.
    """
    has_pooler = settings.listen_url is not None
    password = settings.password
    try:
        async with asyncio.timeout(settings.timeout):
            connection: asyncpg.Connection = await asyncpg.connect(
                url,
                password=None if password is None else password.get_secret_value(),
                timeout=settings.timeout,
                command_timeout=settings.timeout,
                statement_cache_size=0 if has_pooler else 100,
                server_settings={"application_name": APPLICATION_NAME},
            )
    except ValueError:
        # Its text quotes the URL, password and all.
        raise StoreUnavailable(
            "the URL cannot be used: special characters in a password are percent-encoded"
        ) from None
    except FAILURES as error:
        raise translate(error) from error
    return connection


class Pool:
    """See the module's docstring. ``timeout`` in seconds, for a turn as well as for an answer.

    ``on_failure`` is told of every failure.
    """

    def __init__(
        self,
        open_connection: Callable[[], Awaitable[asyncpg.Connection]],
        size: int,
        timeout: float,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._open_connection = open_connection
        self._timeout = timeout
        self._on_failure = on_failure
        self._turns = asyncio.Semaphore(size)
        self._idle: list[asyncpg.Connection] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refusal = ""
        self._refused_until = 0.0
        self._is_closed = False

    async def fetch(
        self, query: str, *values: object, seconds: float | None = None
    ) -> Sequence[asyncpg.Record]:
        """Run a statement. Raises StoreUnavailable, as StoreRefused for bad values."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        return await asyncio.shield(self._own(self._fetch(query, values, seconds or self._timeout)))

    async def fetch_unshielded(self, query: str, *values: object) -> Sequence[asyncpg.Record]:
        """The same without a task, for somebody who is cancelled only when all ends."""
        if self._is_closed:
            raise StoreUnavailable("the store is closed")
        return await self._fetch(query, values, self._timeout)

    async def close(self) -> None:
        """Close all connections; what is under way fails."""
        self._is_closed = True
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.refresh()
        await asyncio.gather(*self._tasks)

    def refresh(self) -> None:
        """Use no connection again that is idle now: the name may lead to another server."""
        idle, self._idle = self._idle, []
        for each in idle:
            self._own(self._dispose(each))

    async def _fetch(
        self, query: str, values: tuple[object, ...], seconds: float
    ) -> Sequence[asyncpg.Record]:
        await self._wait_for_turn()
        connection = None
        try:
            connection = await self._take()
            rows: Sequence[asyncpg.Record] = await connection.fetch(query, *values, timeout=seconds)
        except asyncpg.PostgresError as error:
            self._give_back(connection)
            self._on_failure(error)
            raise translate(error) from error
        except BaseException as error:
            # The answer may still come; the turn ends when nothing is left of the connection.
            self._own(self._retire(connection))
            if not isinstance(error, FAILURES):
                raise
            self._on_failure(error)
            raise translate(error) from error
        self._give_back(connection)
        return rows

    async def _wait_for_turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreUnavailable("all connections to the server are busy") from None

    def _give_back(self, connection: asyncpg.Connection | None) -> None:
        if connection is not None and not connection.is_closed():
            self._idle.append(connection)
        self._turns.release()

    async def _retire(self, connection: asyncpg.Connection | None) -> None:
        try:
            if connection is not None:
                await self._dispose(connection)
        finally:
            self._turns.release()

    async def _take(self) -> asyncpg.Connection:
        while self._idle:
            if not (connection := self._idle.pop()).is_closed():
                return connection
        now = asyncio.get_running_loop().time()
        if now < self._refused_until:
            raise StoreUnavailable(self._refusal)
        try:
            return await self._open_connection()
        except StoreUnavailable as error:
            self._refusal = str(error)
            self._refused_until = now + PAUSE_SECONDS
            raise

    async def _dispose(self, connection: asyncpg.Connection) -> None:
        """Close a connection, a statement that still runs included."""
        try:
            await connection.close(timeout=self._timeout)
        except FAILURES:
            connection.terminate()

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has it; perhaps nobody waits any more
