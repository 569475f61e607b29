"""The settings of identity lookups."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from messagebusd.settings.section import Section, refuse
from messagebusd.settings.values import (
    FilePath,
    HeaderName,
    Seconds,
    Text,
    Token,
    WebUrl,
)


class LookupHeaders(Section):
    """Headers that name the user, in mode `headers`."""

    user: HeaderName = "X-MessageBus-User"
    """User id. A value that is JSON (`7`, `"7"`) is read as JSON, any other as text."""

    groups: HeaderName = "X-MessageBus-Groups"
    """Group ids, as a JSON list."""

    site: HeaderName = "X-MessageBus-Site"
    """Site id."""

    @model_validator(mode="after")
    def _three_headers(self) -> Self:
        if len({name.lower() for name in (self.user, self.groups, self.site)}) < 3:
            raise ValueError("needs three different headers for user, groups and site")
        return self


class LookupWebhook(Section):
    """The host application that is asked, in mode `webhook`."""

    url: WebUrl | None = Field(default=None, examples=["http://127.0.0.1:8000/messagebus/lookup"])
    """Where each poll's request is described by `POST`; required in mode `webhook`."""

    timeout: Seconds = 1.5
    """How long one lookup may take altogether; then the subscriber is told to come back later."""

    forward_headers: tuple[Text, ...] = (
        "cookie",
        "authorization",
        "user-agent",
        "accept-language",
        "x-forwarded-*",
    )
    """Request headers that are passed on; `*` stands for anything. `x-forwarded-*` are passed on
    from trusted proxies only."""

    secret: Token | None = None
    """Secret that requests are signed with (standardwebhooks.com); `whsec_` and base64, or text."""

    secret_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/webhook.secret"])
    """File that holds this secret."""


class LookupSettings(Section):
    """How the daemon learns who is polling."""

    mode: Literal["none", "headers", "webhook"] = "none"
    """`none`: everybody is anonymous. `headers`: a trusted proxy sends the headers below.
    `webhook`: the host application is asked."""

    id_type: Literal["as_is", "integer", "string"] = "as_is"
    """What user and group ids are turned into; an audience matches by type, `7` is not `"7"`."""

    headers: LookupHeaders = LookupHeaders()
    webhook: LookupWebhook = LookupWebhook()

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> Self:
        if self.mode == "webhook" and self.webhook.url is None:
            refuse([("webhook.url", 'is required, because lookup.mode is "webhook"')])
        return self
