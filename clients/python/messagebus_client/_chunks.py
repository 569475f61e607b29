"""Take streams apart: the frames of a poll, and the lines of a subscription.

A frame is one JSON array followed by ``\\r\\n|\\r\\n``. Proxies cut streams anew, so frames have
nothing to do with HTTP chunks or reads (REFERENCE H4). Nothing here waits or does I/O.
"""

from __future__ import annotations

from messagebus_client.errors import UnexpectedAnswer

SEPARATOR = b"\r\n|\r\n"
# How senders of other data than JSON write the separator within the data.
_ESCAPED = b"\r\n||\r\n"

MAX_BYTES = 64 * 1024 * 1024


class Splitter:
    """Cuts a stream at a separator, however it comes in.

    ``max_bytes`` bounds what is kept of a part whose end has not come.
    """

    def __init__(self, separator: bytes, max_bytes: int = MAX_BYTES) -> None:
        self._separator = separator
        self._max_bytes = max_bytes
        self._kept = bytearray()

    @property
    def rest(self) -> bytes:
        """What came after the last separator."""
        return bytes(self._kept)

    def feed(self, data: bytes) -> list[bytes]:
        """The parts that are complete now. Raises UnexpectedAnswer for one that is too long."""
        # A separator may have begun in what was kept; before that, there is none.
        start = max(0, len(self._kept) - len(self._separator) + 1)
        self._kept += data
        parts = []
        taken = 0
        while (end := self._kept.find(self._separator, start)) >= 0:
            parts.append(bytes(self._kept[taken:end]))
            taken = start = end + len(self._separator)
        del self._kept[:taken]
        if len(self._kept) > self._max_bytes:
            raise UnexpectedAnswer(f"more than {self._max_bytes} bytes without an end")
        return parts


class FrameSplitter(Splitter):
    """Gives the JSON text of each frame of a poll's stream."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(SEPARATOR, max_bytes)

    def feed(self, data: bytes) -> list[bytes]:
        return [frame.replace(_ESCAPED, SEPARATOR) for frame in super().feed(data)]
