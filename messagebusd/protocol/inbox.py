"""Entries of the Redis publish door (SPEC 4): fields of text instead of one JSON object.

``data`` and the lists of ids are JSON, everything else is plain text. An entry may be signed, see
`signature`; that is for places where Redis' own access control does not tell publishers apart.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence

import msgspec

from messagebusd.errors import InvalidAudience, MalformedRequest, Unauthorized
from messagebusd.protocol.message import Id
from messagebusd.protocol.publication import (
    Count,
    Publication,
    PublishRules,
    check_publication,
)

SIGNATURE = b"signature"
IDEMPOTENCY_KEY = b"idempotency_key"
MAX_KEY_BYTES = 255

_TEXTS = (b"channel", b"site_id")
_LISTS = (b"user_ids", b"group_ids", b"client_ids")
_COUNTS = (b"max_backlog_size", b"max_backlog_age")
_KNOWN = frozenset({*_TEXTS, *_LISTS, *_COUNTS, b"data", IDEMPOTENCY_KEY, SIGNATURE})

Fields = Mapping[bytes, bytes]

_ids = msgspec.json.Decoder(list[Id]).decode
_count = msgspec.json.Decoder(Count).decode


def read_fields(words: Sequence[bytes]) -> Fields:
    """The fields of an entry, which Redis hands out as names and values in turn.

    Raises MalformedRequest where a name stands twice: Redis keeps both, and readers differ in
    which of them counts.
    """
    fields = dict(zip(words[::2], words[1::2], strict=True))
    if 2 * len(fields) != len(words):
        raise MalformedRequest("a field is given twice")
    return fields


def parse_entry(fields: Fields, rules: PublishRules) -> Publication:
    """Check one entry, under the rules of every door. Raises RequestError."""
    for name in fields:
        if name not in _KNOWN:
            shown = name[:64].decode("utf-8", "replace")
            raise MalformedRequest(f"unknown field {shown!r}", code="unknown_field")
    for required in (b"channel", b"data"):
        if required not in fields:
            raise MalformedRequest(f"the field {required.decode()!r} is missing")
    if not 0 < len(fields.get(IDEMPOTENCY_KEY, b"-")) <= MAX_KEY_BYTES:
        raise MalformedRequest(
            f"idempotency_key must have 1 to {MAX_KEY_BYTES} bytes", code="invalid_idempotency_key"
        )
    texts = {name: _text(name, fields[name]) for name in _TEXTS if name in fields}
    lists = {name: _list(name, fields[name]) for name in _LISTS if name in fields}
    counts = {name: _number(name, fields[name]) for name in _COUNTS if name in fields}
    return check_publication(
        texts[b"channel"],
        fields[b"data"],
        rules,
        site_id=texts.get(b"site_id"),
        user_ids=lists.get(b"user_ids"),
        group_ids=lists.get(b"group_ids"),
        client_ids=lists.get(b"client_ids"),
        max_backlog_size=counts.get(b"max_backlog_size"),
        max_backlog_age=counts.get(b"max_backlog_age"),
    )


def signed_text(fields: Fields) -> bytes:
    """What of an entry is signed, which is all that it says.

    These are all fields but ``signature``, in the order of their names (as bytes), each written as
    name, space, length of the value in bytes, line feed, value, line feed.
    """
    return b"".join(
        b"%b %d\n%b\n" % (name, len(value), value)
        for name, value in sorted(fields.items())
        if name != SIGNATURE
    )


def signature(fields: Fields, secret: bytes) -> bytes:
    """The HMAC-SHA256 of an entry's `signed_text`, in hexadecimal."""
    return hmac.digest(secret, signed_text(fields), "sha256").hex().encode()


def verify(fields: Fields, secret: bytes) -> None:
    """Refuse an entry that is not signed with this secret. Raises Unauthorized."""
    given = fields.get(SIGNATURE)
    if given is None:
        raise Unauthorized("the entry is not signed")
    if not hmac.compare_digest(given, signature(fields, secret)):
        raise Unauthorized("the entry's signature is wrong")


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise MalformedRequest(f"{name.decode()} is not UTF-8") from None


def _list(name: bytes, value: bytes) -> list[Id]:
    try:
        return _ids(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidAudience(f"{name.decode()}: {error}") from None


def _number(name: bytes, value: bytes) -> int:
    try:
        return _count(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"{name.decode()}: {error}") from None
