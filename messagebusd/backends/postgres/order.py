"""From notifications in any order to announcements in order: the bookkeeping, without any I/O.

Ids ascend by one over all channels, with holes: a transaction that was rolled back has used one up.
``seen`` is the id up to which everything has been announced, or is known to be a hole. What is
beyond a missing id is *held* until that id turns up, or somebody says that it is a hole.

A message may come from its notification, from the table, or from both in either order. It is
announced once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from messagebusd.protocol.message import Message

# Ids that were announced from the table before their notification came: so many are remembered.
MAX_AHEAD = 10_000
# Channels whose latest announced id is remembered.
MAX_CHANNELS = 100_000
# What may be held; above it, what is beyond is forgotten, and read from the table later.
MAX_HELD = 10_000
MAX_HELD_BYTES = 64 * 1024 * 1024


class Latest(NamedTuple):
    """The latest message of a channel, and since when it is known."""

    id: int
    at: float


class Released(NamedTuple):
    """What may be announced now. ``replayed`` of the messages had no notification; so many ids
    of the way were ``missing``, that is, not notified."""

    messages: list[Message]
    replayed: int = 0
    missing: int = 0


class Order:
    """See the module's docstring. It starts after an id, and knows nothing of what came before."""

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        # The highest id that is known to be used; above `seen` while something is missing.
        self.target = seen
        self._held: dict[int, Message | None] = {}
        self._held_bytes = 0
        self._notified: set[int] = set()
        self._ahead: OrderedDict[int, None] = OrderedDict()
        self._latest: OrderedDict[str, Latest] = OrderedDict()
        self._forgotten_to = 0
        # What was read of channels whose messages may be trimmed away since.
        self._read: OrderedDict[str, Latest] = OrderedDict()

    @property
    def is_behind(self) -> bool:
        """Whether something is missing."""
        return self.target > self.seen

    def latest(self, channel: str) -> Latest | None:
        """The latest message of a channel, read or announced, as far as that is remembered."""
        announced, read = self._latest.get(channel), self._read.get(channel)
        if announced is None or read is None:
            return announced or read
        return max(announced, read)

    def expect(self, last_id: int) -> None:
        """Ids up to this one are in use: what is not announced of them is missing."""
        self.target = max(self.target, last_id)

    def notified(self, message_id: int, message: Message | None) -> bool:
        """Take a notification: the message, or None for an id that nothing can be made of.

        False if it comes too late: then it may be announced all the same, see `is_news`.
        """
        if message_id <= self.seen:
            is_known = message_id in self._ahead
            self._ahead.pop(message_id, None)
            return is_known
        self.expect(message_id)
        self._notified.add(message_id)
        self._hold(message_id, message)
        return True

    def found(self, messages: Iterable[Message]) -> None:
        """Take messages from the table."""
        for message in messages:
            if message.global_id > self.seen:
                self._hold(message.global_id, message)

    def release(self) -> list[Message]:
        """The messages that come next, up to the first missing id."""
        messages = []
        held = self._held
        while held and (self.seen + 1) in held:
            self.seen += 1
            if (message := self._take(self.seen)) is not None:
                messages.append(message)
        self.expect(self.seen)
        return messages

    def release_to(self, last_id: int) -> Released:
        """All messages up to an id; what is missing of them is a hole from now on."""
        if last_id <= self.seen:
            return Released([])
        ids = sorted(each for each in self._held if each <= last_id)
        notified = sum(each in self._notified for each in ids)
        found = [(each, each in self._notified, self._take(each)) for each in ids]
        missing = last_id - self.seen - notified
        self.seen = last_id
        self.expect(last_id)
        messages = [message for _, _, message in found if message is not None]
        replayed = sum(not was for _, was, message in found if message is not None)
        return Released(messages, replayed, missing)

    def held(self) -> list[int]:
        """The ids of what waits."""
        return list(self._held)

    def drop(self, ids: Iterable[int], given: int) -> None:
        """Forget these ids; of those that are not held, none is used above ``given``."""
        for each in ids:
            if each in self._held:
                self._forget(each)
        self.target = max(self.seen, *self._held, min(self.target, given))

    def is_news(self, message: Message) -> bool:
        """Whether nothing newer of its channel was announced, as far as that is known."""
        latest = self._latest.get(message.stored_channel)
        return message.global_id > (self._forgotten_to if latest is None else latest.id)

    def remember(self, channel: str, last_id: int, now: float) -> None:
        """Note the latest id of a channel, unless a later one is known."""
        latest = self._latest.get(channel)
        if latest is not None:
            if last_id <= latest.id:
                return
            del self._latest[channel]
        self._latest[channel] = Latest(last_id, now)
        if len(self._latest) > MAX_CHANNELS:
            _, oldest = self._latest.popitem(last=False)
            self._forgotten_to = max(self._forgotten_to, oldest.id)

    def remember_read(self, channel: str, last_id: int, now: float) -> None:
        """Note the latest id of a channel that a read has seen. It says nothing about what was
        announced: something older of the channel may still be."""
        latest = self._read.pop(channel, None)
        if latest is None or latest.id < last_id:
            latest = Latest(last_id, now)
        self._read[channel] = latest
        if len(self._read) > MAX_CHANNELS:
            self._read.popitem(last=False)

    def _hold(self, message_id: int, message: Message | None) -> None:
        if self._held.get(message_id) is not None:
            return
        self._held[message_id] = message
        self._held_bytes += 0 if message is None else len(message.encoded)
        if message_id != self.seen + 1 and (
            len(self._held) > MAX_HELD or self._held_bytes > MAX_HELD_BYTES
        ):
            self._forget(message_id)

    def _take(self, message_id: int) -> Message | None:
        if message_id not in self._notified:
            self._ahead[message_id] = None
            if len(self._ahead) > MAX_AHEAD:
                self._ahead.popitem(last=False)
        return self._forget(message_id)

    def _forget(self, message_id: int) -> Message | None:
        self._notified.discard(message_id)
        message = self._held.pop(message_id)
        self._held_bytes -= 0 if message is None else len(message.encoded)
        return message
