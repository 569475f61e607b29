"""Bytes for subscribers: arrays, frames, chunks and response heads (SPEC 2.4, 2.5).

A *frame* is one JSON array followed by the separator. Every frame is exactly one HTTP chunk and
leaves in one write: clients are known that read one frame per chunk (REFERENCE H5). The separator
can stand nowhere inside a frame, because JSON text has no pipe between raw line breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from http import HTTPStatus

import msgspec

from messagebusd.protocol.channels import STATUS_CHANNEL

SEPARATOR = b"\r\n|\r\n"
EMPTY_ARRAY = b"[]"
LAST_CHUNK = b"0\r\n\r\n"

# message-bus.js compares the JSON type as a string (REFERENCE H8); without nosniff on text/plain
# Chrome holds back the first progress event (H7).
JSON_TYPE = "application/json; charset=utf-8"
STREAM_TYPE = "text/plain; charset=utf-8"
# Names in lower case. A tuple, because a parked poll keeps its headers: those that nobody adds to
# are one object for all.
Headers = tuple[tuple[str, str], ...]

# no-transform and x-accel-buffering keep proxies from compressing and buffering.
COMMON_HEADERS: Headers = (
    ("cache-control", "must-revalidate, private, max-age=0, no-transform"),
    ("pragma", "no-cache"),
    ("expires", "0"),
    ("x-accel-buffering", "no"),
)
STREAM_HEADERS: Headers = (
    ("content-type", STREAM_TYPE),
    ("x-content-type-options", "nosniff"),
    ("transfer-encoding", "chunked"),
    ("connection", "close"),
)
COOKIE = "set-cookie"

_STREAM_NAMES = frozenset(name for name, _ in STREAM_HEADERS)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def array(encoded: Iterable[bytes]) -> bytes:
    """One JSON array of encoded messages."""
    return b"[%b]" % b",".join(encoded)


def frame(body: bytes) -> bytes:
    """A JSON array as one frame in one HTTP chunk."""
    return b"%x\r\n%b\r\n|\r\n\r\n" % (len(body) + len(SEPARATOR), body)


EMPTY_FRAME = frame(EMPTY_ARRAY)


def status_message(last_ids: Mapping[str, int]) -> bytes:
    """The encoded message that moves a client's positions, to be last in its array."""
    return b'{"global_id":-1,"message_id":-1,"channel":"%b","data":%b}' % (
        STATUS_CHANNEL.encode(),
        msgspec.json.encode(last_ids),
    )


def merge_headers(*parts: Iterable[tuple[str, str]]) -> Headers:
    """Headers with their names in lower case; what a later part says of a name replaces the rest.

    Lower-casing keeps each name in one place: two content types on one answer once broke every
    page behind a proxy that kept the first (REFERENCE H12). Cookies are added to each other.
    """
    merged: dict[str, list[tuple[str, str]]] = {}
    for part in parts:
        lines: dict[str, list[tuple[str, str]]] = {}
        for name, value in part:
            lower = name.lower()
            lines.setdefault(lower, []).append((lower, value))
        if (cookies := lines.get(COOKIE)) is not None and COOKIE in merged:
            lines[COOKIE] = merged[COOKIE] + cookies
        merged |= lines
    return tuple(line for lines in merged.values() for line in lines)


def poll_headers(*extra: Iterable[tuple[str, str]]) -> Headers:
    """The headers of every answer to a poll. The type is not for anybody to change."""
    return merge_headers(COMMON_HEADERS, *extra, (("content-type", JSON_TYPE),))


@lru_cache(maxsize=256)
def stream_head(headers: Headers) -> bytes:
    """The head of a stream."""
    others = (each for each in headers if each[0] not in _STREAM_NAMES)
    return head(200, (*others, *STREAM_HEADERS))


def json_answer(headers: Headers, body: bytes) -> bytes:
    """A whole JSON answer that ends the connection: what a parked long poll is answered with."""
    framing = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return ok_lines(headers) + framing + body


def head(status: int, headers: Headers) -> bytes:
    """A response head. Headers were checked where they came in: see `is_header`."""
    return head_lines(status, headers) + b"\r\n"


def head_lines(status: int, headers: Headers) -> bytes:
    """A response head to which more can be added."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    return "".join(lines).encode("utf-8", "surrogateescape")


# Most answers have the same few headers.
ok_lines = lru_cache(maxsize=256)(partial(head_lines, 200))


def is_header(name: str, value: str) -> bool:
    """Whether this can stand in a head: nothing in it ends a line or a header, or is no text.

    Bytes that are no UTF-8 (surrogates, as HTTP parsers hand them on) are none.
    """
    if not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value) is not None:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
