"""The store's contract.

A store keeps messages and counts ids. Every store promises the same, and one suite
(``tests/backends/test_contract.py``) holds each of them to it; what a store does otherwise, it
lists at the top of its module. *Channel* below means the stored name: site included, see
``protocol.channels``.

**Ids.** ``publish`` gives each message the channel's next id, ascending by one from 1, and a global
id that ascends over all channels. A publish that fails uses up no id. What one process publishes is
stored in the order of its calls, also if they overlap.

**Once.** A publication may carry a `Once`: who publishes, and what exactly. A second publish with
the same one, within 24 hours and by whichever process, stores nothing and returns what the first
returned. That holds also if the first one's caller was told StoreUnavailable because the answer got
lost: publishing again under the same `Once` is how to find out.

**Backlog.** A channel keeps its newest messages: ``max_backlog_size`` of them (the store's default,
or the publication's), for ``max_backlog_age`` seconds after its latest publish. Then the channel is
forgotten, and its ids start from 1 again. A global backlog keeps the newest messages of all
channels, as long as their channels keep them. Trimming happens on every ``clear_every``-th id.

**Reading.** All reads come in ascending order and are bounded by the caller. A channel nobody
published to has last id 0 and an empty backlog.

**Announcing.** The `Listener` is handed every message published after ``subscribe``, by this
process or another, in the order of their global ids, each once, in small batches. (Whoever follows
all channels resumes by one global id.) The *read barrier*: a read returns only after all that it
has seen has been announced. A poll that is registered before it reads therefore misses nothing and
sees nothing twice: what is announced while it reads is either in the read or newer.

**Breaks.** A store on the network loses sight of its announcements now and then. Before it
announces anything newer, it reads what it has missed from the backlogs of the channels that the
listener names, and announces that. First it says that something else may be missing
(``interrupted``), unless it knows better, and which channels' ids began anew (``restarted``), where
the store lost its data. While the break lasts, reads wait or fail.

*Hearing* a store is from when it has announced all of that until it notices the next break. Of a
channel that the listener names from then on nothing is missed that was not announced before,
whether that break has happened already or not. So whoever knows where a channel was, as of what was
announced, may wait for what comes next without reading.

**Errors.** Every method may raise StoreUnavailable, and does so in bounded time. A publish that
raised it may have happened nevertheless; unless it is StoreRefused, which concerns this message or
channel only and for good. ``publish`` and ``claim`` may raise IdempotencyConflict.
Nothing else comes out of a store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.message import Message
from messagebusd.protocol.publication import Publication

# How long a store remembers a `Once`.
ONCE_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Retention:
    """How much a store keeps; the defaults are the Ruby library's. Age in seconds."""

    max_backlog_size: int = 1000
    max_global_backlog_size: int = 2000
    max_backlog_age: int = 7 * 24 * 3600
    clear_every: int = 1


class Once(NamedTuple):
    """What must happen at most once: digests (16 bytes) of who asked for it, and for what.

    The same ``slot`` with another ``fingerprint`` is a conflict.
    """

    slot: bytes
    fingerprint: bytes


class Published(NamedTuple):
    """What a publish was given; ``repeated`` says that this happened before, under its `Once`."""

    message_id: int
    global_id: int
    repeated: bool = False


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


class Listener(Protocol):
    """Whom a store announces to. None of this raises or waits."""

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Take messages, in the order of their global ids."""

    def channels(self) -> Collection[str]:
        """The channels of which nothing may be missed, as of now."""

    def interrupted(self) -> None:
        """Up to here, messages on channels that ``channels`` does not name may be missing."""

    def restarted(self, channels: Collection[str]) -> None:
        """The ids of these channels count from 0 anew; subscribers know higher ones."""


class Observer(Protocol):
    """Where a store reports what happened between it and its server, for the metrics."""

    def store_reconnected(self) -> None:
        """Announcements are heard again after a break."""

    def store_gap(self, messages: int) -> None:
        """So many global ids were not announced when a higher one was."""

    def store_replayed(self, messages: int) -> None:
        """So many messages were announced from backlogs, because their announcement was missed."""

    def store_ignored(self, reason: str) -> None:
        """An announcement was no use: ``malformed``, ``unsubscribe``, ``late`` or ``foreign``."""


class Backend(ABC):
    """A store. Opened once, closed once; methods may be called concurrently in between.

    ``is_immediate`` says that they wait for nothing and nobody, and so need neither a task nor a
    timeout.
    """

    is_immediate = False

    @property
    @abstractmethod
    def is_hearing(self) -> bool:
        """Whether announcements are heard; while not, a break is being healed."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, or load. Raises StoreUnavailable or SnapshotError."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; nothing is announced afterwards."""

    @abstractmethod
    def subscribe(self, listener: Listener) -> None:
        """Announce messages to this listener, the only one. To be called before ``open``."""

    @abstractmethod
    async def publish(self, publication: Publication, once: Once | None = None) -> Published:
        """Store a message and announce it; durable, as far as the store is, on return."""

    @abstractmethod
    async def claim(self, once: Once) -> None:
        """Take a slot for several publishes; raises IdempotencyConflict if it is another's.

        Each of them still needs a `Once` of its own.
        """

    @abstractmethod
    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        """Where each of these channels is, in one round trip."""

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
