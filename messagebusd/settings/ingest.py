"""The settings of doors for publishers besides the HTTP API."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from messagebusd.settings.backend import BackendSettings, RedisConnection
from messagebusd.settings.section import Section, refuse
from messagebusd.settings.values import Count, FilePath, RedisUrl, Switch, Text, Token


class RedisInbox(RedisConnection):
    """Publishing through a stream in Redis: any language with a Redis client can add to it."""

    enabled: Switch = False
    """Whether the stream is read."""

    url: RedisUrl | None = Field(  # type: ignore[assignment]
        default=None, examples=["redis://127.0.0.1:6379/1"]
    )
    """Server and database, as in `backend.redis`. Unset: those of `backend.redis` with all that
    belongs to the connection, if that is the store, or else `redis://127.0.0.1:6379/0`."""

    stream: Text = "messagebusd:publish"
    """Key of the stream; no prefix is added. Entries that cannot be published are moved to this key
    with `:dead` at its end. In a cluster it needs a hash tag, such as `{bus}:publish`."""

    secret: Token | None = None
    """Secret that every entry must be signed with. Unset: whoever may add to the stream may
    publish."""

    secret_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/inbox.secret"])
    """File that holds the secret."""

    max_dead: Count = 10_000
    """Entries that could not be published and are kept to be looked at; the oldest go first."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems: list[tuple[str, str]] = []
        if not self.stream:
            problems.append(("stream", "must not be empty"))
        if self.url is None:
            # They would be silently ignored.
            problems += [
                (name, "needs url as well")
                for name, field in RedisConnection.model_fields.items()
                if getattr(self, name) != field.default and name != "url"
            ]
        refuse(problems)
        return self

    def connection(self, backend: BackendSettings) -> RedisConnection:
        """How the server is reached that has the stream."""
        if self.url is not None:
            return self
        return backend.redis if backend.kind == "redis" else RedisConnection()


class IngestSettings(Section):
    """Other ways to publish."""

    redis: RedisInbox = RedisInbox()
