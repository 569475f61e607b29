"""Server-side subscribers of a worker: they follow some channels, or all, and see everything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from messagebusd.protocol.message import Message


class Feed(Protocol):
    """A server-side subscriber: sees everything, and must not raise or wait."""

    def offer(self, messages: Sequence[Message]) -> None: ...
    def interrupt(self) -> None: ...
    def restart(self) -> None: ...
    def end(self) -> None: ...


class Feeds:
    """All of them, with the channels (stored names) that each follows; None for all."""

    def __init__(self) -> None:
        self._feeds: dict[Feed, frozenset[str] | None] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def add(self, feed: Feed, channels: frozenset[str] | None) -> None:
        self._feeds[feed] = channels

    def remove(self, feed: Feed) -> None:
        self._feeds.pop(feed, None)

    def channels(self) -> set[str]:
        """The channels that are followed by name."""
        names: set[str] = set()
        return names.union(*(each for each in self._feeds.values() if each is not None))

    def offer(self, messages: Sequence[Message]) -> None:
        """Hand each what it follows."""
        for feed, channels in tuple(self._feeds.items()):
            wanted = (
                messages
                if channels is None
                else [each for each in messages if each.stored_channel in channels]
            )
            if wanted:
                feed.offer(wanted)

    def interrupt(self) -> None:
        """Messages were missed on channels that nobody named: who follows all of them ends."""
        for feed, channels in tuple(self._feeds.items()):
            if channels is None:
                feed.interrupt()

    def restart(self, channels: Collection[str]) -> None:
        """The ids of these channels count from 0 anew."""
        for feed, followed in tuple(self._feeds.items()):
            if followed is not None and not followed.isdisjoint(channels):
                feed.restart()

    def end(self) -> None:
        """End them all."""
        for feed in tuple(self._feeds):
            feed.end()
