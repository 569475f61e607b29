"""What was announced lately, to be compared with what a store has after it stepped back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from messagebusd.protocol.message import Message

# The latest ones, by which a store is recognised.
WITNESSES = 8
# A replica is rarely further behind when it is promoted.
REMEMBERED = 1024


class Witness(NamedTuple):
    """Where a message that was announced is stored, if it still is."""

    global_id: int
    message_id: int
    channel: str


class Recent:
    """The latest messages by global id, as digests."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int] | None] = [None] * REMEMBERED
        self._latest = deque[Witness](maxlen=WITNESSES)
        self._begin = 1

    def add(self, message: Message) -> None:
        """Remember a message that is announced."""
        self._entries[message.global_id % REMEMBERED] = _entry(message)
        self._latest.append(Witness(message.global_id, message.message_id, message.stored_channel))

    def witnesses(self) -> Sequence[Witness]:
        """The very latest."""
        return tuple(self._latest)

    def knows(self, message: Message) -> bool:
        """Whether this very message was announced under its id."""
        return self._entries[message.global_id % REMEMBERED] == _entry(message)

    def first(self, last: int) -> int:
        """From which global id on everything up to the last one is remembered."""
        return max(self._begin, last - REMEMBERED + 1)

    def begin_after(self, global_id: int) -> None:
        """Not all is known up to here."""
        self._begin = global_id + 1

    def clear(self) -> None:
        """Forget everything; ids begin anew."""
        self._entries = [None] * REMEMBERED
        self._latest.clear()
        self._begin = 1


def _entry(message: Message) -> tuple[int, int]:
    return message.global_id, hash((message.stored_channel, message.encoded))
