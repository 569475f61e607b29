"""The settings of what is delivered to whom: channel rules and filters (SPEC 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from messagebusd.filters.expressions import Expression
from messagebusd.protocol.rules import ChannelRule, check_pattern, covered
from messagebusd.settings.section import Section
from messagebusd.settings.values import (
    CallableName,
    ChannelText,
    Count,
    Kind,
    Switch,
    Text,
    WholeSeconds,
)


def _pattern(text: str) -> str:
    check_pattern(text)
    return text


ChannelPattern = Annotated[
    Text, AfterValidator(_pattern), Kind('a pattern that begins with "/" or "*"')
]


def _expression(text: str) -> str:
    Expression(text)
    return text


CelExpression = Annotated[Text, AfterValidator(_expression), Kind("a CEL expression")]


class ChannelSettings(Section):
    """A rule for the channels of a pattern. The first rule that matches a channel decides alone;
    a channel that none matches is public. docs/channels.md says more."""

    pattern: ChannelPattern = Field(examples=["/user/{user_id}"])
    """Channels that it is for. `*` stands for any run of characters, also for slashes;
    `{user_id}` for one segment, which must be the subscriber's own user id."""

    subscribe: Literal["public", "authenticated", "granted", "none"] = Field(
        default="public", examples=["authenticated"]
    )
    """Who may subscribe: everybody, whoever has a user id, those for whom the lookup names the
    channel (`allowed_channels` or `forced_channels`), or nobody but servers. The lookup's
    `allowed_channels` restricts further."""

    require_audience: Switch = Field(default=False, examples=[True])
    """Whether a message that names no users, groups or clients is refused."""

    max_backlog_size: Count | None = Field(default=None, examples=[100])
    """Messages kept of each of these channels, where a publish does not say it. Unset: as
    `backend.max_backlog_size` says."""

    max_backlog_age: WholeSeconds | None = Field(default=None, examples=[86_400])
    """How long these channels keep their messages without a publish, where it does not say so.
    Unset: as `backend.max_backlog_age` says."""

    def rule(self) -> ChannelRule:
        """The same for those who know no settings."""
        return ChannelRule(**self.model_dump())


def rules_that_never_match(channels: Sequence[ChannelSettings]) -> list[tuple[str, str]]:
    """The keys of such patterns, and what is wrong with each."""
    return [
        (
            f"channels.{place}.pattern",
            f"can never match: channels[{earlier}] comes first, and its pattern "
            f'"{channels[earlier].pattern}" covers this one',
        )
        for place, earlier in covered([each.rule() for each in channels]).items()
    ]


class FilterSettings(Section):
    """A filter over messages on their way to a subscriber: it needs exactly one of `allow` and
    `callable`. Every filter whose prefix matches must allow a message; one that fails withholds
    it. docs/channels.md says more."""

    channel_prefix: ChannelText = Field(examples=["/chat/"])
    """Channels that it applies to."""

    allow: CelExpression | None = Field(
        default=None, examples=["now - message.data.published_at <= 20"]
    )
    """CEL expression over `message`, `client` and `now`; true lets the message pass."""

    callable: CallableName | None = None
    """Python function of message and client, `package.module:function`; `True` lets the message
    pass."""

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        if (self.allow is None) == (self.callable is None):
            raise ValueError("needs exactly one of allow and callable")
        return self
