"""Which comes first of things whose place changes: by a key that grows.

Outdated entries are corrected when they come up, which keeps one heap entry a thing and costs a
change nothing. A key that shrinks after all is noticed late, which is good enough for making room.
Things that have left are swept out whenever the heap has doubled.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Agenda(Generic[T]):
    """See the module's docstring. ``key`` gives a thing's place, None for one that has left."""

    def __init__(self, key: Callable[[T], float | None]) -> None:
        self._key = key
        self._heap: list[tuple[float, int, T]] = []
        self._members: set[T] = set()
        self._sweep_at = 64

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, thing: T) -> None:
        """Take it in, unless it is here or has left."""
        if thing in self._members or (key := self._key(thing)) is None:
            return
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        self._members.add(thing)
        heapq.heappush(self._heap, (key, id(thing), thing))

    def first(self) -> T | None:
        """The one with the smallest key."""
        while self._heap:
            key, order, thing = self._heap[0]
            current = self._key(thing)
            if current == key:
                return thing
            if current is None:
                heapq.heappop(self._heap)
                self._members.discard(thing)
            else:
                heapq.heapreplace(self._heap, (current, order, thing))
        return None

    def due(self, until: float) -> T | None:
        """The one with the smallest key, unless that is larger than this."""
        if not self._heap or self._heap[0][0] > until:  # it can only have grown
            return None
        first = self.first()
        return None if first is None or self._heap[0][0] > until else first

    def _sweep(self) -> None:
        self._heap = [
            (key, id(each), each)
            for _, _, each in self._heap
            if (key := self._key(each)) is not None
        ]
        heapq.heapify(self._heap)
        self._members = {each for _, _, each in self._heap}
        self._sweep_at = 2 * len(self._heap) + 64
