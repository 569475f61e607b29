"""The settings of doors for publishers besides the HTTP API."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from messagebusd.settings.backend import RedisConnection
from messagebusd.settings.section import Section, refuse
from messagebusd.settings.values import Count, FilePath, Switch, Text, Token


class RedisInbox(RedisConnection):
    """Publishing through a stream in Redis: any language with a Redis client can add to it. It may
    be another server than the store's."""

    enabled: Switch = False
    """Whether the stream is read."""

    stream: Text = "messagebusd:publish"
    """Key of the stream. Entries that cannot be published go to this key with `:dead` at its
    end."""

    secret: Token | None = None
    """Secret that every entry must be signed with. Unset: whoever may add to the stream may
    publish."""

    secret_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/inbox.secret"])
    """File that holds the secret."""

    max_dead: Count = 10_000
    """Entries that could not be published and are kept to be looked at, about."""

    @model_validator(mode="after")
    def _stream_has_a_name(self) -> Self:
        if not self.stream:
            refuse([("stream", "must not be empty")])
        return self


class IngestSettings(Section):
    """Other ways to publish."""

    redis: RedisInbox = RedisInbox()
