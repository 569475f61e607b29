"""A transport that remembers what was written to it."""

from __future__ import annotations

import asyncio
import json


class RecordingTransport(asyncio.Transport):
    """``unsent`` plays the bytes that the peer has not taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.unsent = 0
        self.closed = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "write after close"
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    @property
    def frames(self) -> list[object]:
        """The JSON arrays of all frames written."""
        body = b"".join(self.writes)
        frames = []
        while body and not body.startswith(b"0\r\n"):
            size, _, rest = body.partition(b"\r\n")
            length = int(size, 16)
            frames.append(json.loads(rest[:length].removesuffix(b"\r\n|\r\n")))
            body = rest[length + 2 :]
        return frames

    @property
    def answers(self) -> list[object]:
        """The JSON arrays of all whole answers written."""
        return [json.loads(each.partition(b"\r\n\r\n")[2]) for each in self.writes]
