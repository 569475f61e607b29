"""Leave an application alone that does not answer, and notice when it does again."""

from __future__ import annotations

import random
from collections.abc import Callable

# So many failures, with no answer between them, make a pause.
FAILURES = 10
# The first pause, and the longest: each is twice the one before while trials fail.
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0


class CircuitBreaker:
    """Closed: everybody may ask. Open: nobody, for a pause. Then one trial decides.

    Whoever was let in by `admit` says how it went, once: `succeeded`, `failed` or `abandoned`.
    ``clock`` is monotonic; ``changed`` is told whether it is open.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        changed: Callable[[bool], object],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._changed = changed
        self._jitter = jitter
        self._failures = 0
        self._pause = 0.0
        # While it is open: until when the pause lasts, and whether a trial is under way.
        self._open_until: float | None = None
        self._on_trial = False

    @property
    def is_paused(self) -> bool:
        """What ``changed`` was told last."""
        return self._open_until is not None

    @property
    def is_open(self) -> bool:
        """Whether `admit` would refuse."""
        until = self._open_until
        return until is not None and (self._on_trial or self._clock() < until)

    def admit(self) -> bool:
        """Whether to ask; after a pause for one only, until it is known how it went."""
        if self._open_until is None:
            return True
        if self.is_open:
            return False
        self._on_trial = True
        return True

    def succeeded(self) -> None:
        """The application has answered, whatever; also to a question from before the pause."""
        self._failures, self._pause = 0, 0.0
        self._on_trial = False
        if self._open_until is not None:
            self._open_until = None
            self._changed(False)

    def failed(self) -> None:
        """It has not. Failures of questions from before the pause make it no longer."""
        if self._open_until is None:
            self._failures += 1
            if self._failures >= FAILURES:
                self._open()
                self._changed(True)
        elif self._on_trial and self._clock() >= self._open_until:
            self._open()

    def abandoned(self) -> None:
        """Nobody waited for the answer."""
        self._on_trial = False

    def _open(self) -> None:
        self._failures, self._on_trial = 0, False
        self._pause = min(max(FIRST_PAUSE_SECONDS, 2 * self._pause), LONGEST_PAUSE_SECONDS)
        # Daemons that failed together do not all come back together.
        self._open_until = self._clock() + self._pause * (0.5 + 0.5 * self._jitter())
