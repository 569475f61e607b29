"""The rules of publishing: one place, whatever the door (SPEC 3.1).

`parse_publication` turns one JSON object into a `Publication` that every store may keep, or raises
a RequestError that says what to change. What leaves here has a usable channel, an audience that
names somebody, and data that any peer can read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from messagebusd.errors import (
    InvalidAudience,
    LimitExceeded,
    MalformedRequest,
    ReservedChannel,
)
from messagebusd.protocol.channels import (
    CACHE_CHANNEL,
    GLOBAL_PREFIX,
    INTERNAL_CHANNELS,
    MAX_CHANNEL_BYTES,
    validate_channel,
    validate_site,
)
from messagebusd.protocol.message import Audience, Id
from messagebusd.protocol.rules import ChannelRules

T = TypeVar("T")

# The Ruby library's JSON parser gives up at 100 levels, and the stored form adds one: deeper data
# would poison the channel for every Ruby reader.
MAX_DEPTH = 99


@dataclass(frozen=True, slots=True)
class PublishRules:
    """What is configured of the rules; sizes in bytes."""

    max_data: int = 1024 * 1024
    max_channel: int = MAX_CHANNEL_BYTES
    channels: ChannelRules = field(default_factory=ChannelRules)


@dataclass(slots=True)
class Publication:
    """Something that may be published; ``data`` is compact JSON, ``None`` stands for defaults.

    ``max_backlog_age`` is in seconds and, like ``max_backlog_size``, concerns this channel only.
    Immutable by agreement: to make a frozen one takes several times as long.
    """

    channel: str
    data: bytes
    site_id: str | None = None
    audience: Audience | None = None
    max_backlog_size: int | None = None
    max_backlog_age: int | None = None
    queue_in_memory: bool = False


Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a publish request."""

    channel: str
    data: msgspec.Raw
    site_id: str | None = None
    user_ids: list[Id] | None = None
    group_ids: list[Id] | None = None
    client_ids: list[Id] | None = None
    max_backlog_size: Count | None = None
    max_backlog_age: Count | None = None
    queue_in_memory: bool = False


def _decoder(kind: Any) -> Callable[[bytes | msgspec.Raw], Any]:
    return msgspec.json.Decoder(kind).decode


_object = _decoder(dict[str, msgspec.Raw])
_request = _decoder(_Request)
_FIELDS = {each.name: _decoder(each.type) for each in msgspec.structs.fields(_Request)}
# Text as a whole, so that brackets in it are none.
_BRACKET_OR_TEXT = re.compile(rb'[\[\]{}]|"(?:[^"\\]++|\\.)*+"')
_AUDIENCE_FIELDS = ("user_ids", "group_ids", "client_ids")
_WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse_publication(body: bytes | msgspec.Raw, rules: PublishRules) -> Publication:
    """Read and check one publish request. Raises RequestError."""
    try:
        bytes(body).decode()  # also what is decoded no further
        request = _request(body)
    except _WRONG:
        # Again, field by field: that tells which one is wrong, and how.
        request = _Request(**parse_object(body, _FIELDS, required=("channel", "data")))
    return check_publication(
        request.channel,
        bytes(request.data),
        rules,
        site_id=request.site_id,
        user_ids=request.user_ids,
        group_ids=request.group_ids,
        client_ids=request.client_ids,
        max_backlog_size=request.max_backlog_size,
        max_backlog_age=request.max_backlog_age,
        queue_in_memory=request.queue_in_memory,
    )


def parse_object(
    body: bytes | msgspec.Raw,
    fields: dict[str, Callable[[bytes | msgspec.Raw], Any]],
    required: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Decode a JSON object with just these fields, naming the one that is wrong."""
    try:
        bytes(body).decode()
        raw_fields = _object(body)
    except _WRONG as error:
        raise MalformedRequest(f"not a JSON object: {error}", code="invalid_json") from None
    decoded = {}
    for name, raw in raw_fields.items():
        decode = fields.get(name)
        if decode is None:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise MalformedRequest(f"unknown field {name[:64]!r}{hint}", code="unknown_field")
        try:
            decoded[name] = decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            kind = InvalidAudience if name in _AUDIENCE_FIELDS else MalformedRequest
            raise kind(f"{name}: {error}") from None
    for name in required:
        if name not in decoded:
            raise MalformedRequest(f"the field {name!r} is missing")
    return decoded


def check_publication(
    channel: str,
    data: bytes,
    rules: PublishRules,
    *,
    site_id: str | None = None,
    user_ids: list[Id] | None = None,
    group_ids: list[Id] | None = None,
    client_ids: list[Id] | None = None,
    max_backlog_size: int | None = None,
    max_backlog_age: int | None = None,
    queue_in_memory: bool = False,
) -> Publication:
    """Apply the rules to decoded values; ``data`` is JSON. Raises RequestError."""
    validate_channel(channel, rules.max_channel)
    if site_id is not None:
        validate_site(site_id)
    if len(data) > rules.max_data:
        raise LimitExceeded(
            f"the data has {len(data)} bytes, {rules.max_data} are allowed",
            code="payload_too_large",
            status=413,
        )
    data = compact(data)
    audience = _audience(channel, user_ids, group_ids, client_ids)
    if channel in INTERNAL_CHANNELS:
        data = _check_internal(channel, data, user_ids, group_ids, client_ids)
    rule = rules.channels.rule(channel)
    if rule.require_audience and audience is None:
        raise InvalidAudience(
            f"a message on {channel} must say whom it is for: user_ids, group_ids or client_ids",
            code="audience_required",
        )
    return Publication(
        channel,
        data,
        site_id,
        audience,
        rule.max_backlog_size if max_backlog_size is None else max_backlog_size,
        rule.max_backlog_age if max_backlog_age is None else max_backlog_age,
        queue_in_memory,
    )


def _audience(
    channel: str,
    user_ids: list[Id] | None,
    group_ids: list[Id] | None,
    client_ids: list[Id] | None,
) -> Audience | None:
    """Whom a message is for; None is everybody. Raises InvalidAudience."""
    restricted = user_ids is not None or group_ids is not None
    if not restricted and client_ids is None:
        return None
    for name, ids in zip(_AUDIENCE_FIELDS, (user_ids, group_ids, client_ids), strict=True):
        if ids is not None and not ids:
            # Read as "no restriction", an empty list would show everybody what was meant for
            # a group that happens to have no members (REFERENCE A2).
            raise InvalidAudience(f"{name} is empty: this message would be for nobody")
    if restricted and channel.startswith(GLOBAL_PREFIX):
        raise InvalidAudience(
            "a message on a /global/ channel cannot be restricted to users or groups: "
            "they are known per site",
            code="restricted_global",
        )
    return Audience(user_ids, group_ids, client_ids)


def compact(data: bytes) -> bytes:
    """Check JSON text and take the white space out, leaving every number and string as it is."""
    try:
        data.decode()
        data = msgspec.json.format(data, indent=-1)
    except _WRONG as error:
        raise MalformedRequest(f"data is not JSON: {error}", code="invalid_json") from None
    if _may_be_too_deep(data) and _depth(data) > MAX_DEPTH:
        raise LimitExceeded(f"data is nested more than {MAX_DEPTH} levels deep")
    return data


def _may_be_too_deep(data: bytes) -> bool:
    """Whether the exact depth is worth finding out: by length, then by brackets, also those that
    stand inside of strings."""
    return len(data) > 2 * MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH


def _depth(data: bytes) -> int:
    """How deep this JSON is nested. It is not decoded: numbers may be too large for that."""
    depth = deepest = 0
    for found in _BRACKET_OR_TEXT.finditer(data):
        if found[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in (b"]", b"}"):
            depth -= 1
    return deepest


class _CacheOperation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A message of the Ruby library's DistributedCache (REFERENCE 4.3)."""

    op: Literal["set", "delete", "clear"]
    key: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    marshalled: bool | msgspec.UnsetType = msgspec.UNSET
    origin: str
    hash_key: str
    app_version: str | msgspec.UnsetType = msgspec.UNSET


def _check_internal(
    channel: str,
    data: bytes,
    user_ids: list[Id] | None,
    group_ids: list[Id] | None,
    client_ids: list[Id] | None,
) -> bytes:
    """Refuse the bus' own channels, but for harmless cache operations.

    A Ruby peer unmarshals the value of a cache operation that says ``marshalled``: whoever can
    publish one can run code there. Returns the data rebuilt from what was checked, so that no
    second ``marshalled`` hides in it.
    """
    if channel != CACHE_CHANNEL:
        raise ReservedChannel(f"{channel} belongs to the bus")
    try:
        operation = msgspec.json.decode(data, type=_CacheOperation)
    except msgspec.DecodeError as error:
        raise ReservedChannel(f"{channel} takes only plain cache operations: {error}") from None
    if operation.marshalled is True:
        raise ReservedChannel(f"{channel} takes no marshalled values")
    if (operation.op != "clear" and operation.key is msgspec.UNSET) or (
        operation.op == "set" and operation.value is msgspec.UNSET
    ):
        raise ReservedChannel(f"{channel}: the operation {operation.op} is incomplete")
    if user_ids != [-1] or group_ids is not None or client_ids is not None:
        raise ReservedChannel(f"{channel} takes only messages for user_ids [-1]")
    return msgspec.json.encode(operation)
