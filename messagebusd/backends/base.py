"""The store's contract.

A store keeps messages and counts ids. Every store promises the same, and one suite
(``tests/backends/test_contract.py``) holds each of them to it. *Channel* below means the stored
name: site included, see ``protocol.channels``.

**Ids.** ``publish`` gives each message the channel's next id, ascending by one from 1, and a global
id that ascends over all channels. A publish that fails uses up no id.

**Backlog.** A channel keeps its newest messages: ``max_backlog_size`` of them (the store's default,
or the publication's), for ``max_backlog_age`` seconds after its latest publish. Then the channel is
forgotten, and its ids start from 1 again. A global backlog keeps the newest messages of all
channels, as long as their channels keep them. Trimming happens on every ``clear_every``-th id.

**Reading.** All reads come in ascending order and are bounded by the caller. A channel nobody
published to has last id 0 and an empty backlog.

**Announcing.** Whoever called ``subscribe`` is handed every message published after that, by this
process or another, in the order of their global ids, each once, in small batches. (Whoever follows
all channels resumes by one global id.) The *read barrier*: a read
returns only after all that it has seen has been announced. A poll that is registered before it
reads therefore misses nothing and sees nothing twice: what is announced while it reads is either
in the read or newer.

**Errors.** Every method may raise StoreUnavailable. Nothing else comes out of a store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication

Listener = Callable[[Sequence[Message]], None]


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a store keeps; the defaults are the Ruby library's. Age in seconds."""

    max_backlog_size: int = 1000
    max_global_backlog_size: int = 2000
    max_backlog_age: int = 7 * 24 * 3600
    clear_every: int = 1


class Published(NamedTuple):
    """What a publish was given."""

    message_id: int
    global_id: int


class Backlog(NamedTuple):
    """A part of a backlog; ``more`` says that it goes on after the last of these messages."""

    messages: Sequence[Message]
    more: bool


class ChannelInfo(NamedTuple):
    """What a store knows of a channel."""

    channel: str
    last_id: int
    backlog_size: int
    backlog_bytes: int


class Backend(ABC):
    """A store. Opened once, closed once; methods may be called concurrently in between."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, or load. Raises StoreUnavailable or SnapshotError."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; nothing is announced afterwards."""

    @abstractmethod
    def subscribe(self, listener: Listener) -> None:
        """Announce messages to this function from now on. It must not raise and does not wait."""

    @abstractmethod
    async def publish(self, publication: Publication) -> Published:
        """Store a message and announce it; durable, as far as the store is, on return."""

    @abstractmethod
    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, int]:
        """The last id of each of these channels, in one round trip."""

    @abstractmethod
    async def backlog(
        self, channel: str, after_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        """The channel's messages after an id, oldest first.

        Stops at max_messages, or where the wire form would exceed max_bytes, but returns at least
        one message if there is one.
        """

    @abstractmethod
    async def lookback(self, channel: str, count: int) -> int:
        """The id after which the channel's last ``count`` stored messages come."""

    @abstractmethod
    async def global_backlog(
        self, after_global_id: int, *, max_messages: int, max_bytes: int
    ) -> Backlog:
        """The messages of all channels after a global id, as far as the global backlog goes.

        Bounded as `backlog` is.
        """

    @abstractmethod
    async def last_global_id(self) -> int:
        """The global id of the latest publish."""

    @abstractmethod
    async def message(self, channel: str, message_id: int) -> Message | None:
        """One stored message."""

    @abstractmethod
    async def delete_backlog(self, channel: str) -> None:
        """Forget the channel's messages; its ids continue."""

    @abstractmethod
    async def channels(self, after: str, limit: int) -> Sequence[ChannelInfo]:
        """Up to ``limit`` channels in order of their names, after a name."""

    @abstractmethod
    async def check(self) -> None:
        """Prove that the store can be read and written, and that announcements come back."""
