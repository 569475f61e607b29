"""Time that tests move by hand."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class FakeClock:
    """A clock, and the part of an event loop that schedules by it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._order = count()

    def __call__(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callable[[], object], /) -> FakeTimer:
        return self.call_at(self.now, callback)

    @property
    def scheduled(self) -> int:
        """How many timers are waiting."""
        return sum(not timer.cancelled for _, _, timer in self._timers)

    @property
    def due(self) -> int:
        """How many calls are due by now."""
        return sum(when <= self.now and not timer.cancelled for when, _, timer in self._timers)

    def turn(self) -> None:
        """Call what is due by now, but not what that schedules: one turn of a loop."""
        due = []
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            if not timer.cancelled:
                timer.callback()

    def advance(self, seconds: float) -> None:
        """Let time pass, calling what becomes due in order."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
        self.now = until


class FakeTimer:
    """What ``call_at`` returns."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
