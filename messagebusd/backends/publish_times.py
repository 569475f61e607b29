"""How old our own messages are when they are announced, for the metrics.

What is announced comes from the store's server and does not say when it was published. What this
process published it recognises by channel and data.
"""

from __future__ import annotations

from collections.abc import Callable

from messagebusd.protocol.message import Message

# Publishes whose announcement is awaited; more are forgotten, all at once.
MAX_UNDER_WAY = 10_000


class PublishTimes:
    """See the module's docstring. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[int, float] = {}

    def note(self, stored_channel: str, data: bytes) -> None:
        """A message is on its way to the store."""
        if len(self._times) >= MAX_UNDER_WAY:
            self._times.clear()
        self._times[hash((stored_channel, data))] = self._clock()

    def mark(self, message: Message) -> None:
        """Give a message that comes back the time when it was published."""
        if self._times:
            key = hash((message.stored_channel, message.data))
            message.published_at = self._times.pop(key, 0.0)
