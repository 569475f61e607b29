"""Reading a poll: channels, positions and mode, from whatever a client sends (SPEC 2.1, 2.3).

Sixteen years of clients send forms, JSON, both with strange content types, numbers as text, and
cache busters. What they mean is decided here; what is no poll at all raises a RequestError.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import msgspec

from messagebusd.errors import LimitExceeded, MalformedRequest
from messagebusd.protocol.catchup import Position
from messagebusd.protocol.channels import MAX_CHANNEL_BYTES, exceeds_bytes, validate_channel

SEQ_KEY = "__seq"
# Positions beyond 64 bits mean the same as this one: ahead of, or long before, anything.
MAX_ID = 2**63 - 1

# The polls of a site name the same channels again and again: so many texts of forms are remembered
# as they were read, of so many characters at most, and as many channels as valid.
_REMEMBERED = 4096
_REMEMBERED_LENGTH = 200
_unquote_remembered = lru_cache(_REMEMBERED)(partial(unquote_plus, errors="strict"))
_validate_remembered = lru_cache(_REMEMBERED)(validate_channel)

_TO_I = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+(?:_[0-9]+)*)")
_UNREADABLE = object()
_MAX_PART_HEAD = 4096
_BOUNDARY = re.compile(r'(?i)boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))')
_FIELD_NAME = re.compile(r'(?im)^content-disposition:[^\r\n]*?[;\s]name="([^"\r\n]*)"')


class Mode(enum.Enum):
    """How a poll is answered."""

    __hash__ = object.__hash__  # Enum's own is a function in Python; these count polls

    POLL = "poll"
    LONG_POLL = "long_poll"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class PollLimits:
    """What a poll may ask for; sizes in bytes."""

    max_channels: int = 500
    max_channel: int = MAX_CHANNEL_BYTES
    max_client_id: int = 128


class PollRequest(NamedTuple):
    """What a client asks for. ``ignored`` counts keys whose value was no position."""

    positions: dict[str, Position]
    seq: int = 0
    ignored: int = 0


def to_i(text: str) -> int:
    """Read leading digits as Ruby's String#to_i does: ``"4abc"`` is 4, ``"abc"`` is 0."""
    if text.isascii() and text.isdigit() and len(text) <= 18:  # nearly all
        return int(text)
    found = _TO_I.match(text)
    if found is None:
        return 0
    sign = -1 if found[1][0] == "-" else 1
    digits = found[1].lstrip("+-").replace("_", "").lstrip("0")
    if len(digits) > 18:  # 64 bits and more: how much more no longer matters
        return sign * MAX_ID
    return sign * int(digits or "0")


def _read_position(value: Any) -> Any:
    """A position as sent, or _UNREADABLE. The types are tested from the most frequent on."""
    kind = type(value)
    if kind is int:
        return value if -MAX_ID <= value <= MAX_ID else MAX_ID if value > 0 else -MAX_ID
    if kind is str:
        return to_i(value) if value else None
    if value is None:
        return None
    if kind is float:
        return int(max(-MAX_ID, min(value, MAX_ID)))
    return _UNREADABLE


def parse_poll(pairs: Iterable[tuple[str, Any]], limits: PollLimits) -> PollRequest:
    """Build a request from decoded keys and values; of a repeated key the last value counts.

    Raises LimitExceeded for too many channels, InvalidChannel for an unusable name.
    """
    positions: dict[str, Position] = {}
    seq = ignored = 0
    for key, value in pairs:
        position = _read_position(value)
        if key == SEQ_KEY:
            seq = 0 if position is None or position is _UNREADABLE else position
        elif position is _UNREADABLE or not key:
            ignored += 1
        else:
            _validate_remembered(key, limits.max_channel)
            positions[key] = position
    if len(positions) > limits.max_channels:
        raise LimitExceeded(f"a poll may name {limits.max_channels} channels at most")
    return PollRequest(positions, seq, ignored)


def json_pairs(body: bytes) -> Iterable[tuple[str, Any]]:
    """Decode a JSON body, which must be an object. Raises MalformedRequest."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(decoded, dict):
        raise MalformedRequest("the body must be a JSON object", code="invalid_json")
    return decoded.items()


def form_pairs(body: bytes, max_fields: int) -> Iterable[tuple[str, str]]:
    """Decode an urlencoded body. Raises MalformedRequest, or LimitExceeded for too many fields."""
    if not body:
        return ()
    if body.count(b"&") >= max_fields:
        raise LimitExceeded(f"a form may have {max_fields} fields at most")
    try:
        pairs = (each.partition("=") for each in body.decode().split("&") if each)
        return [(_unquoted(name), _unquoted(value)) for name, _, value in pairs]
    except UnicodeDecodeError:
        raise MalformedRequest("the form is not valid UTF-8", code="invalid_form") from None


def _unquoted(text: str) -> str:
    """A name or value of a form. Raises UnicodeDecodeError."""
    if "%" in text or "+" in text:
        if len(text) <= _REMEMBERED_LENGTH:
            return _unquote_remembered(text)
        return unquote_plus(text, errors="strict")
    return text


def multipart_pairs(body: bytes, content_type: str, max_fields: int) -> Iterable[tuple[str, str]]:
    """Decode a multipart form. Raises MalformedRequest, or LimitExceeded for too many fields.

    Nothing but field names and values is looked at: what else multipart can hold is no poll.
    """
    if body.count(b"\n--") > max_fields:
        raise LimitExceeded(f"a form may have {max_fields} fields at most")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedRequest("the form is not valid UTF-8", code="invalid_form") from None
    boundary = _BOUNDARY.search(content_type)
    delimiter = f"\r\n--{boundary[1] or boundary[2]}" if boundary is not None else ""
    before, *parts = f"\r\n{text}".split(delimiter) if delimiter else [""]
    if before.strip() or not parts or not parts.pop().startswith("--"):
        raise MalformedRequest("the multipart form is broken", code="invalid_form")
    pairs = []
    for part in parts:
        head, separator, content = part.partition("\r\n\r\n")
        if len(head) > _MAX_PART_HEAD:
            raise LimitExceeded("the head of a form field is too long")
        name = _FIELD_NAME.search(head)
        if not separator or name is None:
            raise MalformedRequest("a part of the form has no name", code="invalid_form")
        pairs.append((name[1], content))
    return pairs


def validate_client_id(client_id: str, limits: PollLimits) -> None:
    """Refuse a client id that is too long. Raises MalformedRequest.

    Control characters cannot occur: ids are taken from the path as sent, escapes and all.
    """
    if exceeds_bytes(client_id, limits.max_client_id):
        raise MalformedRequest(
            f"a client id must not be longer than {limits.max_client_id} bytes",
            code="invalid_client_id",
        )


def choose_mode(query: str, http_version: tuple[int, int], *, chunks: bool) -> Mode:
    """How this client wants to be, and can be, answered.

    ``chunks`` is whether the client did not object to them and they are enabled. The request's
    real version counts, not a header: a proxy that speaks HTTP/1.0 to us cannot pass on chunks
    (REFERENCE H14).
    """
    if query and "dlp=t" in query.split("&"):
        return Mode.POLL
    return Mode.STREAM if chunks and http_version >= (1, 1) else Mode.LONG_POLL
