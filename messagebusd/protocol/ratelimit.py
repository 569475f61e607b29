"""How often something may happen: an allowance for each who does it, refilled evenly.

Values and arithmetic only: times are monotonic seconds, and the clock is passed in. What is counted
by whom, and what the refused are told, is decided at the doors (``http/limits.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

MAX_BUCKETS = 50_000
# Below this, looking for buckets that are full again is not worth it.
_MIN_BUCKETS = 1024
# Where nearly all are in use, that look is not repeated for every newcomer.
_LOOK_AGAIN_SECONDS = 1.0


class Bucket:
    """An allowance of ``amount``, of which so much comes back in each ``seconds``.

    All of it may be used at once. Kept as one number, the time at which it is full again, so that
    nothing has to be refilled and a full bucket is as good as a new one.
    """

    __slots__ = ("_clock", "_each", "_full_at", "_window")

    def __init__(self, amount: int, seconds: float, clock: Callable[[], float]) -> None:
        self._window = seconds
        self._each = seconds / amount
        self._clock = clock
        self._full_at = 0.0

    def take(self, amount: int = 1) -> float:
        """Take so much, and return 0.0; or nothing, and return the seconds until it could be had.

        More than the bucket holds can be taken from a full one: what is missing is owed.
        """
        now = self._clock()
        full_at = self._full_at
        if full_at < now:
            full_at = now
        cost = amount * self._each
        wait = full_at - now + min(cost, self._window) - self._window
        if wait > 1e-9:  # less is what adding up fractions leaves
            return wait
        self._full_at = full_at + cost
        return 0.0

    def change(self, amount: int, seconds: float) -> None:
        """Be another allowance, of which as much has been used: all of it at most, whatever was
        owed besides. The same one again changes nothing."""
        if (self._window, self._each) == (seconds, seconds / amount):
            return
        now = self._clock()
        used = min((self._full_at - now) / self._each, float(amount))
        self._window = seconds
        self._each = seconds / amount
        if used > 0:
            self._full_at = now + used * self._each

    def give_back(self) -> None:
        """Put one back."""
        self._full_at -= self._each

    def is_full(self, now: float) -> bool:
        """Whether nothing is missing."""
        return self._full_at <= now


class Buckets:
    """A bucket for each key, and at most ``max_buckets`` of them.

    Full buckets are dropped. They fill up by themselves, so that it is the recent traffic that
    takes memory, not the number of keys ever seen. Should there be too many all the same, newcomers
    are not limited: an empty bucket is never dropped, and nobody is refused for want of memory.
    """

    def __init__(
        self,
        amount: int,
        seconds: float,
        clock: Callable[[], float],
        max_buckets: int = MAX_BUCKETS,
    ) -> None:
        self.seconds = seconds
        self._amount = amount
        self._clock = clock
        self._max = max_buckets
        self._buckets: dict[Hashable, Bucket] = {}
        self._tidy_at = min(_MIN_BUCKETS, max_buckets)
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._buckets)

    def change(self, amount: int, seconds: float) -> None:
        """Allow everybody something else, of which each has used as much as before."""
        if (amount, seconds) == (self._amount, self.seconds):
            return
        self._amount, self.seconds = amount, seconds
        for each in self._buckets.values():
            each.change(amount, seconds)

    def of(self, key: Hashable) -> Bucket:
        """This key's bucket, to be used at once."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = Bucket(self._amount, self.seconds, self._clock)
            if len(self._buckets) < self._tidy_at or self._has_tidied():
                self._buckets[key] = bucket
        return bucket

    def _has_tidied(self) -> bool:
        """Drop the full ones; whether there is room now. Its cost is spread over as many keys."""
        now = self._clock()
        if now < self._not_before:
            return False
        self._buckets = {key: each for key, each in self._buckets.items() if not each.is_full(now)}
        left = len(self._buckets)
        self._tidy_at = min(max(_MIN_BUCKETS, 2 * left), self._max)
        if 2 * left > self._max:
            self._not_before = now + _LOOK_AGAIN_SECONDS
        return left < self._max
