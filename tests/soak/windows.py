"""What may be seen, and when: faults last for a while, and excuse some errors and no others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# How long after a fault its errors may still come in: answers that were on their way; messages that
# waited for the store go first, and are tried every two seconds or after a timeout.
GRACE_SECONDS = 5.0
# The same for the daemon's log: a keepalive that got lost in the fault is missed only now, and
# announcements are subscribed to once more.
LOG_GRACE_SECONDS = 10.0
# How long after a fault the daemons are taken to be at rest again.
SETTLE_SECONDS = 6.0
# What needs no excuse: who reads too slowly is cut off, and notices when he reads on.
ALWAYS_EXCUSED = frozenset({"slow poll broken"})
MAX_EXAMPLES = 100


class Windows:
    """The faults of one installation, and the errors that its clients met.

    ``clock`` is monotonic, in seconds. An error is named by a few words (``poll 429``); which of
    them a fault excuses stands beside the fault.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.done: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.unexcused: Counter[str] = Counter()
        self.examples: list[str] = []
        self.history: list[tuple[str, float, float]] = []
        """Each fault with its begin and end, in seconds since the start."""
        self.now: list[str] = []
        """The names of the faults that are active."""
        self._clock = clock
        self._began = clock()
        self._allowed: list[tuple[frozenset[str], float | None]] = []

    @contextmanager
    def open(self, name: str, allows: frozenset[str]) -> Iterator[None]:
        """While this fault lasts."""
        self.now.append(name)
        began = self._clock()
        self._allowed.append((allows, None))
        try:
            yield
        finally:
            self.now.remove(name)
            self._allowed.remove((allows, None))
            now = self._clock()
            self._allowed = [
                (each, ended)
                for each, ended in self._allowed
                if ended is None or ended > now - LOG_GRACE_SECONDS
            ]
            self._allowed.append((allows, now))
            self.history.append((name, round(began - self._began, 1), round(now - self._began, 1)))
        self.done[name] += 1

    def met(self, error: str, detail: str = "") -> None:
        """A client met an error, or a log has a line that asks for attention."""
        now = self._clock()
        grace = LOG_GRACE_SECONDS if error.startswith("log ") else GRACE_SECONDS
        if error in ALWAYS_EXCUSED or any(
            error in allows and (ended is None or now <= ended + grace)
            for allows, ended in self._allowed
        ):
            self.excused[error] += 1
            return
        self.unexcused[error] += 1
        if len(self.examples) < MAX_EXAMPLES:
            during = ", ".join(self.now) or f"after {self.history[-1:]}"
            self.examples.append(f"at {now - self._began:.1f} s, {during}: {error} {detail}")

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is done to the daemons, nor was lately."""
        return all(
            ended is not None and self._clock() > ended + SETTLE_SECONDS
            for _, ended in self._allowed
        )
