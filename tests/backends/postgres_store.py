"""The PostgreSQL store under test, and what it does otherwise than the contract says.

Its divergences, and how the contract suite is told of them:

* *ids count over all channels*: `_Counted` shows each channel's ids as if they counted from 1
* *messages become too old one by one*: `pass_time` lets a channel's messages grow old together,
  that is, when the latest one does
* *trimming comes later*: `_Counted` waits for it after each publish
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from weakref import WeakKeyDictionary

import asyncpg

from messagebusd.backends.base import Backend, Backlog, Published, Retention
from messagebusd.backends.postgres import PostgresBackend
from messagebusd.backends.postgres.schema import TABLES
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.channels import qualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import JSON, EnvelopeCodec
from messagebusd.settings.backend import PostgresSettings
from tests.backends.stores import Announcements, Store
from tests.support.clock import FakeClock
from tests.support.postgres_server import PostgresServer

# A database for all tests on a server: making one takes longer than most of them.
_databases: WeakKeyDictionary[PostgresServer, str] = WeakKeyDictionary()


def _empty_database(server: PostgresServer) -> str:
    if server not in _databases:
        _databases[server] = server.create_database()
    database = _databases[server]
    server.terminate(database)
    server.sql(f"DROP TABLE IF EXISTS {', '.join(TABLES)}", database)
    return database


class PostgresStore(Store):
    """``port`` is that of what stands before the server, and ``listen_port`` the one to listen by,
    if it is another one. ``settings`` are added."""

    def __init__(
        self,
        server: PostgresServer,
        *,
        port: int = 0,
        listen_port: int = 0,
        codec: EnvelopeCodec = JSON,
        **settings: object,
    ) -> None:
        super().__init__()
        self.server = server
        self.codec = codec
        self.clock = FakeClock()
        self.database = ""
        self._port, self._listen_port = port, listen_port
        self._settings = settings

    async def build(self, retention: Retention) -> Backend:
        self.database = _empty_database(self.server)
        return _Counted(self.backend_beside(retention))

    def settings(self, **settings: object) -> PostgresSettings:
        ways = {"url": self.server.url(self.database, port=self._port)}
        if self._listen_port:
            ways["listen_url"] = self.server.url(self.database, port=self._listen_port)
        return PostgresSettings(**{"timeout": 5.0, **ways, **self._settings, **settings})

    def backend_beside(self, retention: Retention | None = None, **settings) -> PostgresBackend:
        """Another backend on the same database."""
        return PostgresBackend(
            retention or Retention(),
            self.settings(**settings),
            self.reports,
            keepalive_interval=0,
            codec=self.codec,
            clock=self.clock,
        )

    async def connect(self) -> asyncpg.Connection:
        """A connection of somebody else; to be closed by the test."""
        return await self.server.connect(self.database)

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.database)

    async def pass_time(self, seconds: float) -> None:
        """As if all that is there were older."""
        self.clock.advance(seconds)
        for table, column in (
            ("message_bus", "added_at"),
            ("messagebusd_once", "at"),
            ("messagebusd_age", "due"),
        ):
            self.sql(f"UPDATE {table} SET {column} = {column} - interval '{seconds} s'")
        self.sql(
            "UPDATE message_bus SET added_at = latest.added_at FROM"
            " (SELECT channel, max(added_at) AS added_at FROM message_bus GROUP BY channel)"
            " AS latest WHERE message_bus.channel = latest.channel"
        )
        await self.backend.trim()


class PlainPostgresStore(PostgresStore):
    """The store with its own ids, trimmed when it likes."""

    backend: PostgresBackend

    async def build(self, retention: Retention) -> Backend:
        self.database = _empty_database(self.server)
        return self.backend_beside(retention)


class RubyPublisher:
    """Publishes as the Ruby library does: two statements, each a transaction of its own."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def store(self, channel: str, data: str) -> int:
        return await self._connection.fetchval(
            "INSERT INTO message_bus (channel, value) VALUES ($1, $2) RETURNING id",
            channel,
            envelope(data),
        )

    async def announce(self, message_id: int, channel: str, data: str) -> None:
        payload = f"{message_id}|{message_id}|{channel}|{envelope(data)}"
        await self._connection.execute("SELECT pg_notify($1, $2)", "_message_bus_0", payload)

    async def publish(self, channel: str, data: str) -> int:
        message_id = await self.store(channel, data)
        await self.announce(message_id, channel, data)
        return message_id


def envelope(data: str) -> str:
    return f'{{"data":{data},"user_ids":null,"group_ids":null,"client_ids":null}}'


class _Counted(Backend):
    """Another backend, with message ids as if they counted per channel."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._ids: dict[str, list[int]] = defaultdict(list)

    @property
    def is_hearing(self):
        return self._backend.is_hearing

    def _count(self, channel: str, message_id: int) -> int:
        ids = self._ids[channel]
        if message_id not in ids:
            insort(ids, message_id)
        return bisect_left(ids, message_id) + 1

    def _real(self, channel: str, count: int) -> int:
        ids = self._ids[channel]
        return 0 if count <= 0 else ids[count - 1] if count <= len(ids) else 2**62

    def _shown(self, message: Message) -> Message:
        return Message(
            message.global_id,
            self._count(message.stored_channel, message.message_id),
            message.stored_channel,
            message.channel,
            message.site_id,
            message.data,
            message.audience,
        )

    def _shown_last(self, channel: str, last_id: int) -> int:
        if last_id == 0:
            self._ids.pop(channel, None)
            return 0
        return self._count(channel, last_id)

    async def open(self):
        await self._backend.open()

    async def close(self):
        await self._backend.close()

    def subscribe(self, listener):
        self._backend.subscribe(_CountedListener(listener, self._shown))

    async def publish(self, publication, once=None):
        published = await self._backend.publish(publication, once)
        await self._backend.trim()
        channel = qualify(publication.channel, publication.site_id)
        return Published(
            self._count(channel, published.message_id), published.global_id, published.repeated
        )

    async def claim(self, once):
        await self._backend.claim(once)

    async def trim(self):
        await self._backend.trim()

    async def last_ids(self, channels):
        return {
            name: LastId(self._shown_last(name, last.message_id), last.global_id)
            for name, last in (await self._backend.last_ids(channels)).items()
        }

    async def backlog(self, channel, after_id, **bounds):
        after = self._real(channel, after_id)
        messages, more = await self._backend.backlog(channel, after, **bounds)
        return Backlog([self._shown(each) for each in messages], more)

    async def lookback(self, channel, count):
        last_id = await self._backend.lookback(channel, count)
        return bisect_right(self._ids[channel], last_id)

    async def global_backlog(self, after_global_id, **bounds):
        messages, more = await self._backend.global_backlog(after_global_id, **bounds)
        return Backlog([self._shown(each) for each in messages], more)

    async def last_global_id(self):
        return await self._backend.last_global_id()

    async def message(self, channel, message_id):
        found = await self._backend.message(channel, self._real(channel, message_id))
        return None if found is None else self._shown(found)

    async def delete_backlog(self, channel):
        await self._backend.delete_backlog(channel)

    async def channels(self, after, limit):
        return [
            each._replace(last_id=self._count(each.channel, each.last_id))
            for each in await self._backend.channels(after, limit)
        ]

    async def check(self):
        await self._backend.check()


class _CountedListener:
    def __init__(self, listener: Announcements, shown) -> None:
        self._listener = listener
        self._shown = shown

    def dispatch(self, messages):
        self._listener.dispatch([self._shown(each) for each in messages])

    def __getattr__(self, name):
        return getattr(self._listener, name)
