"""Bytes for subscribers: arrays, frames, chunks and response heads (SPEC 2.4, 2.5).

A *frame* is one JSON array followed by the separator. Every frame is exactly one HTTP chunk and
leaves in one write: clients are known that read one frame per chunk (REFERENCE H5). The separator
can stand nowhere inside a frame, because JSON text has no pipe between raw line breaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
# no-transform and x-accel-buffering keep proxies from compressing and buffering.
COMMON_HEADERS: Mapping[str, str] = {
    "cache-control": "must-revalidate, private, max-age=0, no-transform",
    "pragma": "no-cache",
    "expires": "0",
    "x-accel-buffering": "no",
}
STREAM_HEADERS: Mapping[str, str] = {
    "content-type": STREAM_TYPE,
    "x-content-type-options": "nosniff",
    "transfer-encoding": "chunked",
    "connection": "close",
}


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


def poll_headers(*extra: Mapping[str, str]) -> dict[str, str]:
    """The headers of every answer to a poll, names in lower case, later mappings winning.

    Lower-casing makes each name unique: two content types on one answer once broke every page
    behind a proxy that kept the first (REFERENCE H12). The type is not for anybody to change.
    """
    headers = dict(COMMON_HEADERS)
    for mapping in extra:
        headers.update((name.lower(), value) for name, value in mapping.items())
    headers["content-type"] = JSON_TYPE
    return headers


def stream_head(headers: Mapping[str, str]) -> bytes:
    """The head of a stream."""
    return head(200, {**headers, **STREAM_HEADERS})


def json_answer(headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole JSON answer that ends the connection: what a parked long poll is answered with."""
    length = {"content-length": str(len(body)), "connection": "close"}
    return head(200, {**headers, **length}) + body


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """A response head. Header values were checked for line breaks where they came in."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
