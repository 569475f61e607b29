"""What the application's answer means: an identity, a refusal, or nothing usable (SPEC 5).

The application is believed, but not its care: nothing in here may break a response apart, let a
cache keep somebody's poll, or make of a mistake an anonymous visitor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec

from messagebusd.errors import (
    InvalidChannel,
    LookupUnavailable,
    LookupUnusable,
    MalformedRequest,
)
from messagebusd.identity.base import Identity, IdType, normalise_id, refuse_nobody
from messagebusd.identity.cache import Refusal
from messagebusd.protocol.channels import ChannelPatterns, validate_channel, validate_site
from messagebusd.protocol.message import Id
from messagebusd.protocol.wire import COOKIE, Headers, is_header, merge_headers

MAX_ANSWER_BYTES = 64 * 1024
# A parked long poll keeps its headers, and browsers accept no more.
MAX_HEADER_BYTES = 16 * 1024
# Nothing is known for longer, whatever the answer says.
LONGEST_TTL_SECONDS = 86_400.0
# A visitor who is let in the next moment is not kept out for much longer.
REFUSAL_TTL_SECONDS = 5.0

# What makes a response a response, and is for the server to decide.
_FRAMING = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# An answer to a poll is for one client and this moment, whatever a framework adds to all answers.
_CACHING = frozenset({"age", "cache-control", "etag", "expires", "last-modified", "pragma"})
# What is answered while the application is not there, by itself or what stands in front of it.
_AWAY = frozenset({502, 503, 504})
# About the application's own connection with us. The prefixes are for proxies in front of us.
_NOSNIFF = "x-content-type-options"
_OWN = frozenset({"alt-svc", "date", "server", _NOSNIFF})
_PROXY_PREFIXES = ("proxy-", "x-accel-", "x-sendfile")


class Reply(NamedTuple):
    """An HTTP response of the application's, as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def size(self) -> int:
        """What keeping it takes, roughly, in bytes."""
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """What it means. ``ttl`` seconds it may be used for others who ask the same.

    What is not ``shared`` is for one poll only: it sets a cookie, or its ttl is 0.
    """

    said: Identity | Refusal
    ttl: float
    shared: bool


class _Body(msgspec.Struct):
    """The JSON of a 200; fields of later versions are ignored."""

    user_id: Id | None = None
    group_ids: list[Id] | None = None
    site_id: str | None = None
    is_admin: bool = False
    response_headers: dict[str, str | list[str]] = {}
    allowed_channels: list[str] | None = None
    forced_channels: dict[str, int | None] | None = None
    cache_ttl: Annotated[float, msgspec.Meta(ge=0)] | None = None


class AnswerReader:
    """Reads replies. ``ttl`` is that of identities whose answer names none."""

    def __init__(self, id_type: IdType, ttl: float) -> None:
        self._id_type = id_type
        self._ttl = ttl
        self._decode = msgspec.json.Decoder(_Body).decode

    def read(self, reply: Reply) -> Answer:
        """Raises LookupUnusable, or LookupUnavailable for the answer of a proxy in its place;
        neither quotes the answer: it may hold secrets."""
        try:
            if 400 <= reply.status < 500:
                return self._refusal(reply)
            if reply.status != HTTPStatus.OK:
                kind = LookupUnavailable if reply.status in _AWAY else LookupUnusable
                raise kind(f"the application answered {reply.status}")
            return self._identity(self._decode(reply.body))
        except RecursionError:
            raise LookupUnusable("the application's answer is nested too deeply") from None
        except msgspec.ValidationError as error:  # names types and fields, no values
            raise LookupUnusable(f"the application's answer is not usable: {error}") from None
        except msgspec.DecodeError:
            raise LookupUnusable("the application's answer is no JSON") from None
        except (ValueError, InvalidChannel, MalformedRequest) as error:
            raise LookupUnusable(f"the application's answer is not usable: {error}") from None

    def _refusal(self, reply: Reply) -> Answer:
        headers = _passed_on(reply.headers)
        shared = not _sets_cookie(headers)
        lasts = shared and reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        ttl = min(REFUSAL_TTL_SECONDS, self._ttl) if lasts else 0.0
        return Answer(Refusal(reply.status, reply.body, headers), ttl, shared)

    def _identity(self, body: _Body) -> Answer:
        user_id = normalise_id(body.user_id, self._id_type)
        refuse_nobody(user_id)
        if body.site_id is not None:
            validate_site(body.site_id)
        for channel in body.forced_channels or ():
            validate_channel(channel)
        groups: list[Any] = [normalise_id(each, self._id_type) for each in body.group_ids or ()]
        allowed = body.allowed_channels
        headers = _response_headers(body.response_headers)
        identity = Identity(
            user_id,
            frozenset(groups),
            body.site_id,
            body.is_admin,
            headers,
            None if allowed is None else ChannelPatterns(allowed),
            body.forced_channels,
        )
        ttl = self._ttl if body.cache_ttl is None else min(body.cache_ttl, LONGEST_TTL_SECONDS)
        return Answer(identity, ttl, ttl > 0 and not _sets_cookie(headers))


def _response_headers(headers: dict[str, str | list[str]]) -> Headers:
    """The headers that an identity adds. What the server decides is a mistake to name."""
    lines = []
    for name, values in headers.items():
        lower = name.lower()
        if lower in _FRAMING:
            raise ValueError(f"{lower} cannot be a response header: the server decides it")
        for value in [values] if isinstance(values, str) else values:
            if not is_header(name, value):
                raise ValueError(f"{name[:64]!r} cannot be sent as a response header")
            if not _is_own(lower):
                lines.append((lower, value))
    return _bounded(lines)


def _passed_on(headers: Iterable[tuple[str, str]]) -> Headers:
    """A refusal's headers as far as they are for the visitor; its type is that of its body, and
    so is that no browser may guess another."""
    lines = [(name.lower(), value) for name, value in headers]
    named = {
        each.strip().lower()
        for name, value in lines
        if name == "connection"
        for each in value.split(",")
    }
    passed = {}
    rest = []
    for name, value in lines:
        if not is_header(name, value):
            continue
        if name == "content-type":
            passed[name] = value
        elif name == _NOSNIFF or (name not in _FRAMING | named and not _is_own(name)):
            rest.append((name, value))
    return _bounded([*passed.items(), *rest])


def _is_own(name: str) -> bool:
    return name in _CACHING or name in _OWN or name.startswith(_PROXY_PREFIXES)


def _bounded(lines: list[tuple[str, str]]) -> Headers:
    if sum(len(name) + len(value) for name, value in lines) > MAX_HEADER_BYTES:
        raise ValueError(f"its headers take more than {MAX_HEADER_BYTES} bytes")
    return merge_headers(lines)


def _sets_cookie(headers: Headers) -> bool:
    return any(name == COOKIE for name, _ in headers)
