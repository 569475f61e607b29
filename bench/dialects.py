"""How a peer is spoken to: the requests that differ from one kind of server to another.

Requests are made once and sent as they are. Those of browsers look as nginx would pass them on.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

MARK = b"~"
PAYLOAD = "~" + "x" * 197  # with its quotes, 199 bytes of JSON
# What stands for a client's id and its user where the requests of a crowd are made (crowd.c).
CLIENT, USER = "CLIENT!", "USER!"

BROWSER = (
    "Host: forum.example\r\n"
    "X-Real-IP: 203.0.113.9\r\n"
    "X-Forwarded-For: 203.0.113.9\r\n"
    "X-Forwarded-Proto: https\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:139.0) Gecko/20100101 Firefox/139.0\r\n"
    "Accept: text/plain, */*; q=0.01\r\n"
    "Accept-Language: en-US,en;q=0.5\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\n"
    "X-SILENCE-LOGGER: true\r\n"
    "Referer: https://forum.example/t/a-topic/4711\r\n"
    f"Cookie: _t={'c' * 120}; _forum_session={'s' * 120}\r\n"
)


class Dialect(Protocol):
    """Requests of one kind of server, and what its answers mean."""

    @property
    def first(self) -> str:
        """What ends the first part of a stream: it is parked then."""

    def stream(self, channel: str) -> str:
        """A request for a channel's news from now on, of `CLIENT` and `USER`."""

    def publish(self, key: str, channel: str, data: str = PAYLOAD, **options: Any) -> bytes:
        """Publish one message."""

    def clients(self, key: str) -> bytes:
        """Ask how many subscribers there are."""

    def count(self, answer: bytes, mode: str) -> int:
        """How many of a mode there are, by that answer."""


class Bus:
    """That of messagebusd and of the Ruby library."""

    first = "|"

    def stream(self, channel: str) -> str:
        return poll_text(CLIENT, USER, f"{channel}=-1")

    def publish(self, key: str, channel: str, data: str = PAYLOAD, **options: Any) -> bytes:
        return _api_request(key, "publish", {"channel": channel, "data": data, **options})

    def clients(self, key: str) -> bytes:
        return (
            f"GET /api/v1/stats HTTP/1.1\r\nHost: bus.internal\r\n"
            f"Authorization: Bearer {key}\r\n\r\n"
        ).encode()

    def count(self, answer: bytes, mode: str) -> int:
        held: dict[str, int] = json.loads(answer[answer.index(b"\r\n\r\n") :])["clients"]
        return held[mode]


class Nchan:
    """That of nginx with nchan, configured as in ``nchan.conf``: a channel is a path."""

    first = "\r\n\r\n"

    def stream(self, channel: str) -> str:
        return f"GET /sub{channel} HTTP/1.1\r\n{BROWSER}TE: chunked\r\n\r\n"

    def publish(self, key: str, channel: str, data: str = PAYLOAD, **options: Any) -> bytes:
        if options:
            raise ValueError("nchan has no audiences")
        body = json.dumps(data)
        return (
            f"POST /pub{channel} HTTP/1.1\r\nHost: bus.internal\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def clients(self, key: str) -> bytes:
        return b"GET /status HTTP/1.1\r\nHost: bus.internal\r\n\r\n"

    def count(self, answer: bytes, mode: str) -> int:
        found = re.search(rb"^subscribers: (\d+)", answer, re.MULTILINE)
        return int(found[1]) if found else 0


BUS = Bus()
NCHAN = Nchan()


def poll_text(
    client: str, user: str, form: str, *, immediate: bool = False, chunks: bool = True
) -> str:
    """A poll; ``form`` are its channels and positions."""
    query = "?dlp=t" if immediate else ""
    refusal = "" if chunks else "Dont-Chunk: true\r\n"
    return (
        f"POST /message-bus/{client}/poll{query} HTTP/1.1\r\n{BROWSER}"
        f"X-MessageBus-User: {user}\r\nX-MessageBus-Groups: [10,11]\r\n{refusal}"
        f"Content-Length: {len(form)}\r\n\r\n{form}"
    )


def poll_request(user: int, form: str, *, immediate: bool = False, chunks: bool = True) -> bytes:
    """A poll of this user."""
    return poll_text(f"{user:032x}", str(user), form, immediate=immediate, chunks=chunks).encode()


def get_request(path: str) -> bytes:
    """Ask for what needs no key."""
    return f"GET {path} HTTP/1.1\r\nHost: bus.internal\r\n\r\n".encode()


def batch_request(key: str, channel: str, count: int) -> bytes:
    """Publish some messages at once."""
    messages = [{"channel": channel, "data": PAYLOAD}] * count
    return _api_request(key, "publish/batch", {"messages": messages})


def _api_request(key: str, call: str, fields: object) -> bytes:
    body = json.dumps(fields)
    return (
        f"POST /api/v1/{call} HTTP/1.1\r\nHost: bus.internal\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
