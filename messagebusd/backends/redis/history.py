"""What a subscriber reads from the channels' backlogs when it has missed announcements.

Not from the global backlog: that is short, and Ruby's library lets it expire early.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from messagebusd.backends.redis.keys import Keys, count
from messagebusd.backends.redis.pipeline import Pipeline
from messagebusd.backends.redis.recent import Witness
from messagebusd.backends.redis.scripts import MISSED
from messagebusd.errors import StoreRefused, StoreUnavailable
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import Decode, decode_payload

# Channels asked about at a time, and messages and bytes read at a time.
CHANNELS_AT_A_TIME = 200
MESSAGES_AT_A_TIME = 500
BYTES_AT_A_TIME = 4 * 1024 * 1024

_log = logging.getLogger(__name__)


class Position(NamedTuple):
    """Where the store is. ``life`` is another after it has lost its data."""

    global_id: int
    life: bytes


class Missed(NamedTuple):
    """A stored message that was not announced to us."""

    global_id: int
    message_id: int
    channel: str
    size: int


class History:
    """See the module's docstring. Everything raises StoreUnavailable."""

    def __init__(
        self,
        reading: Pipeline,
        keys: Keys,
        on_malformed: Callable[[], None],
        decode: Decode,
    ) -> None:
        self._reading = reading
        self._keys = keys
        self._on_malformed = on_malformed
        self._decode = decode

    async def position(self) -> Position:
        """The last global id and the mark of the store's life, which is set if there is none."""
        keys = self._keys
        global_id, life = await self._reading.run("MGET", keys.global_id, keys.life)
        if life is None:
            mark = secrets.token_hex(8)
            try:
                await self._reading.run("SET", keys.life, mark, "NX")
                life = await self._reading.run("GET", keys.life)
            except StoreUnavailable:
                # No memory, or a replica. It can be read all the same.
                life = None
        return Position(count(global_id), life or b"")

    async def missed(self, channels: Collection[str], after: int, up_to: int) -> list[Missed]:
        """What these channels have stored in a range of global ids, in order."""
        found: list[Missed] = []
        rest = iter(channels)
        while portion := tuple(islice(rest, CHANNELS_AT_A_TIME)):
            answers = await asyncio.gather(
                *(self._missed_on(each, after, up_to) for each in portion)
            )
            for channel, numbers in zip(portion, answers, strict=True):
                each = iter(numbers)
                found += [
                    Missed(global_id, message_id, channel, size)
                    for global_id, message_id, size in zip(each, each, each, strict=True)
                ]
        found.sort()
        return found

    async def _missed_on(self, channel: str, after: int, up_to: int) -> Sequence[int]:
        keys = (self._keys.channel_id(channel), self._keys.backlog(channel))
        try:
            found: Sequence[int] = await self._reading.call(MISSED, keys, (after, up_to))
        except StoreRefused as error:
            # One channel that somebody spoilt must not keep all others from being healed.
            _log.warning("a channel cannot be read", extra={"reason": str(error)})
            return ()
        return found

    async def read(self, missed: Sequence[Missed]) -> AsyncIterator[tuple[int, int, list[Message]]]:
        """The messages themselves, those that still are there.

        In order, and in portions: up to which global id, how many are gone, and the messages.
        """
        for portion in _portions(missed):
            stored = await self._members(portion)
            messages = [
                message
                for each, members in zip(portion, stored, strict=True)
                if (message := self.find(members, each.global_id, each.channel)) is not None
            ]
            yield portion[-1].global_id, len(portion) - len(messages), messages

    async def still_has(
        self, witnesses: Sequence[Witness], is_known: Callable[[Message], bool]
    ) -> bool:
        """Whether these messages are in their places; some may have been trimmed."""
        stored = await self._members(witnesses)
        has_any = False
        for each, members in zip(witnesses, stored, strict=True):
            if members:
                message = self.find(members, each.global_id, each.channel)
                if message is None or not is_known(message):
                    return False
                has_any = True
        return has_any

    async def _members(self, places: Sequence[Missed] | Sequence[Witness]) -> list[list[bytes]]:
        """What is stored under each of these channels and message ids."""
        members: list[list[bytes]] = await asyncio.gather(
            *(
                self._reading.run(
                    "ZRANGEBYSCORE",
                    self._keys.backlog(each.channel),
                    each.message_id,
                    each.message_id,
                )
                for each in places
            )
        )
        return members

    def find(self, members: Sequence[bytes], global_id: int, channel: str) -> Message | None:
        """The message with this global id among members that have one message id."""
        start = b"%d|" % global_id
        for member in members:
            if member.startswith(start):
                try:
                    message = decode_payload(member, self._decode)
                except ValueError:
                    self._on_malformed()
                    continue
                if message.stored_channel == channel:
                    return message
                self._on_malformed()
        return None


def _portions(missed: Sequence[Missed]) -> Iterator[Sequence[Missed]]:
    start, size = 0, 0
    for index, each in enumerate(missed):
        full = index - start == MESSAGES_AT_A_TIME or size + each.size > BYTES_AT_A_TIME
        if index > start and full:
            yield missed[start:index]
            start, size = index, 0
        size += each.size
    if missed:
        yield missed[start:]
