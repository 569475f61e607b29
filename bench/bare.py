"""The floor: what the reads and writes cost on this machine when nothing else is done.

A uvloop protocol that parses nothing, knows one channel, stores nothing, answers each request with
ready-made bytes, and writes one ready-made frame to every transport.

``python -m bench.bare`` serves on a free port and says which on stderr.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

from bench.dialects import PAYLOAD

_ENCODED = json.dumps(
    {"global_id": 100000, "message_id": 100000, "channel": "/crowd", "data": PAYLOAD},
    separators=(",", ":"),
)


def _chunk(array: str) -> bytes:
    frame = f"{array}\r\n|\r\n"
    return f"{len(frame):x}\r\n{frame}\r\n".encode()


def _answer(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


FIRST = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + _chunk("[]")
FRAME = _chunk(f"[{_ENCODED}]")
EMPTY = _answer("[]")
PUBLISHED = _answer('{"channel":"/crowd","message_id":100000,"global_id":100000}')

_parked: dict[Bare, asyncio.Transport] = {}


class Bare(asyncio.Protocol):
    """A connection: a stream once it has polled, otherwise a publisher's."""

    __slots__ = ("_transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        # Requests are small and come one at a time: each in one piece.
        if data.find(b"?dlp=t ", 0, 100) > 0:
            self._transport.write(EMPTY)
        elif data.startswith(b"POST /message-bus/"):
            _parked[self] = self._transport
            self._transport.write(FIRST)
        elif data.startswith(b"POST /api/v1/publish"):
            self._transport.write(PUBLISHED)
            for transport in _parked.values():
                transport.write(FRAME)
        else:
            held = {"clients": {"stream": len(_parked)}}
            self._transport.write(_answer(json.dumps(held)))

    def connection_lost(self, exc: Exception | None) -> None:
        _parked.pop(self, None)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0, backlog=4096)
    host, port = server.sockets[0].getsockname()
    for record in ({"message": "listening", "address": f"{host}:{port}"}, {"message": "ready"}):
        print(json.dumps(record), file=sys.stderr, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
