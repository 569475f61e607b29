"""The settings of the stores."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from messagebusd.settings.section import Section, refuse
from messagebusd.settings.values import (
    Bytes,
    CodecName,
    Count,
    CountOrZero,
    FilePath,
    PostgresUrl,
    PubSubChannel,
    RedisUrl,
    Seconds,
    SecondsOrZero,
    Switch,
    Text,
    Token,
    WholeSeconds,
)


class MemorySettings(Section):
    """The store in the daemon's own memory."""

    max_bytes: Bytes = 268_435_456
    """Size of all stored messages; above it the oldest are dropped first."""

    snapshot_file: FilePath | None = Field(default=None, examples=["/var/lib/messagebusd/snapshot"])
    """File that ids and backlogs are written to at a clean stop and read from at start. Unset:
    they begin anew."""


class RedisConnection(Section):
    """How a Redis server is reached."""

    url: RedisUrl = "redis://127.0.0.1:6379/0"
    """Server and database: `redis://`, `rediss://` (TLS) or `unix://`. User and password may stand
    in it, or below."""

    username: Text | None = Field(default=None, examples=["messagebusd"])
    """User of an access control list. Unset: the default user."""

    password: Token | None = None
    """The user's password."""

    password_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/redis"])
    """File that holds the password."""

    ca_file: FilePath | None = Field(default=None, examples=["/etc/ssl/redis-ca.pem"])
    """Certificates that a server's is checked against, with `rediss://`. Unset: the system's."""

    sentinels: tuple[Text, ...] = Field(default=(), examples=[["10.0.0.5:26379"]])
    """Sentinels that are asked for the master, as `host:port`; the URL's host is then not used."""

    sentinel_master: Text = "mymaster"
    """Name of the master that the sentinels know."""

    sentinel_password: Token | None = None
    """The sentinels' own password."""

    sentinel_password_file: FilePath | None = Field(
        default=None, examples=["/etc/messagebusd/sentinel"]
    )
    """File that holds it."""


class RedisSettings(RedisConnection):
    """The store in Redis, shared with Ruby processes that use the same server, database and
    channel."""

    key_prefix: Text = Field(default="", examples=["{bus}"])
    """Put before every key, to keep several buses in one database apart; a hash tag such as
    `{bus}` keeps all keys in one slot of a cluster. Ruby's library has none."""

    pubsub_channel: PubSubChannel | None = Field(default=None, examples=["_message_bus_0"])
    """Channel of the announcements. Unset: `_message_bus_` and the number of the database, as the
    Ruby library names it when it is configured by `db:`; after the prefix, if there is one."""

    timeout: Seconds = 1.0
    """How long the server may take to answer."""


class PostgresSettings(Section):
    """The store in PostgreSQL, shared with Ruby processes that use the same database."""

    url: PostgresUrl = "postgresql://127.0.0.1/messagebusd"
    """Server and database, as libpq writes it; may name a pooler in transaction mode, if
    `listen_url` does not."""

    password: Token | None = None
    """The user's password, unless it stands in the URL."""

    password_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/postgres"])
    """File that holds the password."""

    listen_url: PostgresUrl | None = Field(
        default=None, examples=["postgresql://127.0.0.1:5432/messagebusd"]
    )
    """Direct way to the server, for announcements: no pooler can be in between. Unset: `url`."""

    notify_channel: PubSubChannel = "_message_bus_0"
    """Channel of the announcements. The Ruby library names it after `db:`, which is 0 unless
    set."""

    create_schema: Switch = True
    """Whether the table is created where it is missing. Switch it off for a role that may not,
    and run `messagebusd db init` once as one that may."""

    pool_size: Count = 4
    """Connections for reading and publishing."""

    timeout: Seconds = 1.0
    """How long the server may take to answer."""


class BackendSettings(Section):
    """Where messages are stored, and for how long."""

    kind: Literal["memory", "redis", "postgres"] = "memory"
    """The store."""

    max_backlog_size: Count = 1000
    """Messages kept for each channel."""

    max_global_backlog_size: Count = 2000
    """Messages kept in the log of all channels."""

    max_backlog_age: WholeSeconds = 604_800
    """A channel's backlog is dropped when nothing was published to it for so long."""

    clear_every: Count = 1
    """Backlogs are trimmed at every so many messages."""

    max_data_size: Bytes = 1_048_576
    """Size of one message's data."""

    max_in_memory_publish_backlog: CountOrZero = 1000
    """Messages with `queue_in_memory` that may wait, for each worker, while the store is away;
    more are refused."""

    keepalive_interval: SecondsOrZero = 60.0
    """A message of our own goes through Redis or PostgreSQL so often, which proves that
    announcements arrive; 0 sends none."""

    codec: CodecName = "json"
    """How Redis or PostgreSQL keep a message and its audience: `json`, which Ruby processes read;
    `compact`, which packs audiences of 100 ids and more; or `package.module:Codec`, a Python class.
    Whoever shares the store has to read what this daemon writes: docs/operations.md says how to
    change it. The memory store has none."""

    memory: MemorySettings = MemorySettings()
    redis: RedisSettings = RedisSettings()
    postgres: PostgresSettings = PostgresSettings()

    @model_validator(mode="after")
    def _codec_has_a_meaning(self) -> Self:
        if self.kind == "memory" and self.codec != "json":
            refuse(
                [("codec", 'must be "json" where backend.kind is "memory", which encodes nothing')]
            )
        return self

    @model_validator(mode="after")
    def _room_for_one_message(self) -> Self:
        if self.memory.max_bytes < self.max_data_size:
            small = f"must be at least backend.max_data_size, {self.max_data_size}"
            refuse([("memory.max_bytes", small)])
        return self
