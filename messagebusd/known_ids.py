"""Where channels are, as far as this worker knows it without asking the store.

A poll that is about to park, and whose every position is the known last id of its channel, has
missed nothing: what is newer has not been announced yet, and will find it parked. So it need not
ask the store. Everything else asks.

What is known comes from announcements and from what other polls have read. It is given up

* when it may be wrong: after a break of the announcements, see `MessageBus`
* when this worker has published on a channel, until that is announced: whoever was told so would
  otherwise poll, and not get it at once; or, coming with its id, get it a second time
* after `BELIEVED_SECONDS`. A store forgets channels that have expired, and may be reset behind our
  back, and says so to nobody; ids then begin anew. What is parked already learns that as late.

Channels are stored names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from messagebusd.protocol.catchup import LastId, Position
from messagebusd.protocol.message import Message

BELIEVED_SECONDS = 30.0
# Each takes some 250 bytes. Whoever was noted longest ago goes first.
MAX_CHANNELS = 20_000


class _Known(NamedTuple):
    """A channel's last id, None if it is not known; as of a global id, and since when."""

    message_id: int | None
    global_id: int
    since: float


class KnownIds:
    """See the module's docstring. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], max_channels: int = MAX_CHANNELS) -> None:
        self._clock = clock
        self._max_channels = max_channels
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def are(self, channels: Iterable[str], positions: Iterable[Position]) -> bool:
        """Whether these positions are known to be the last ids of these channels."""
        known, oldest = self._known, self._clock() - BELIEVED_SECONDS
        for channel, position in zip(channels, positions, strict=True):
            found = known.get(channel)
            if (
                found is None
                or position is None
                or found.message_id != position
                or found.since < oldest
            ):
                return False
        return True

    def announced(self, messages: Sequence[Message]) -> None:
        """Take note of what was announced, in its order and without a break before it."""
        now = self._clock()
        for message in messages:
            channel, global_id = message.stored_channel, message.global_id
            found = self._known.get(channel)
            if found is None or found.global_id <= global_id:
                self._note(channel, _Known(message.message_id, global_id, now))
            elif found.message_id is not None:
                # It came late, or from among ids that began anew: the store may say.
                del self._known[channel]

    def read(self, last_ids: Mapping[str, LastId]) -> None:
        """Take note of what was read, if nothing was announced on these channels meanwhile."""
        now = self._clock()
        for channel, (message_id, global_id) in last_ids.items():
            found = self._known.get(channel)
            if (
                found is None
                or found.global_id <= global_id
                or found.since < now - BELIEVED_SECONDS
            ):
                self._note(channel, _Known(message_id, global_id, now))

    def published(self, channel: str, global_id: int) -> None:
        """Take note that this worker has stored a message, which may not be announced yet."""
        found = self._known.get(channel)
        if found is None or found.global_id < global_id:
            self._note(channel, _Known(None, global_id, self._clock()))

    def clear(self) -> None:
        """Know nothing any more."""
        self._known.clear()

    def _note(self, channel: str, known: _Known) -> None:
        self._known.pop(channel, None)
        self._known[channel] = known
        if len(self._known) > self._max_channels:
            del self._known[next(iter(self._known))]
