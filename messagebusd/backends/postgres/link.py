"""One connection at a time, on which notifications come and the table is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import asyncpg

from messagebusd.backends.postgres import statements
from messagebusd.backends.postgres.errors import FAILURES, describe, translate
from messagebusd.backends.postgres.notices import Notices
from messagebusd.errors import StoreUnavailable


class Position(NamedTuple):
    """How far the table goes, see `statements.POSITION`."""

    stored: int
    given: int
    life: int


class Link:
    """See the module's docstring. ``connect`` opens a connection; ``on_lost`` is told of its end.

    ``reason`` says why there is none.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        notices: Notices,
        on_lost: Callable[[], None],
        *,
        timeout: float,
    ) -> None:
        self.reason = "not connected yet"
        self._connect = connect
        self._notices = notices
        self._on_lost = on_lost
        self._timeout = timeout
        self._connection: asyncpg.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and not self._connection.is_closed()

    async def open(self) -> None:
        """Connect, and hear notifications. Raises StoreUnavailable."""
        self._notices.clear()
        self._connection = connection = await self._connect()
        connection.add_termination_listener(self._on_termination)
        with self._failing(connection):
            async with asyncio.timeout(self._timeout):
                await self._notices.listen(connection)

    async def close(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.remove_termination_listener(self._on_termination)
            try:
                await connection.close(timeout=self._timeout)
            except FAILURES:
                connection.terminate()

    def break_off(self, reason: str) -> None:
        """End the connection at once, as if it had been lost."""
        if self._connection is not None:
            self.reason = reason
            self._connection.terminate()

    async def fetch(self, query: str, *values: object) -> Sequence[asyncpg.Record]:
        """Ask the server. Raises StoreUnavailable."""
        connection = self._connection
        if connection is None or connection.is_closed():
            raise StoreUnavailable(self.reason)
        with self._failing(connection):
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                query, *values, timeout=2 * self._timeout
            )
        return rows

    async def position(self) -> Position:
        """How far the table goes. Raises StoreUnavailable."""
        (row,) = await self.fetch(statements.POSITION)
        return Position(*row)

    @contextmanager
    def _failing(self, connection: asyncpg.Connection) -> Iterator[None]:
        """Raise StoreUnavailable where asking fails."""
        try:
            yield
        except FAILURES as error:
            self.reason = describe(error)
            raise translate(error) from error
        except AttributeError:
            # asyncpg's way to say that the connection was ended (`break_off`) while it was used.
            if not connection.is_closed():
                raise
            raise StoreUnavailable(self.reason) from None

    def _on_termination(self, connection: object) -> None:
        if connection is self._connection:
            self._on_lost()
