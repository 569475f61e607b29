"""What the application said, and until when it may be used.

Time here is twofold. Seconds decide what is fresh, and what may be used while the application is
away. *Moments* count calls and invalidations in one order: an answer whose call began before an
invalidation that concerns it is never used again, wherever it comes from: out of this cache, or
off the wire just now. So invalidating takes no look at what is cached, and misses nothing that is
under way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from messagebusd.identity.base import Identity
from messagebusd.protocol.message import Id
from messagebusd.protocol.wire import Headers

# Room for all who poll: they come by every half a minute. In bytes of the answers as they came,
# of which Python makes a few times as much, and what else an entry takes.
MAX_BYTES = 32 * 1024 * 1024
ENTRY_BYTES = 400
# Users and sites whose invalidation is remembered by itself; past these, all that is older goes.
MAX_INVALIDATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """A 4xx of the application's, to be passed on."""

    status: int
    body: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer; its call began at ``moment``.

    ``said`` None is no answer but a note that this visitor's answers are for one poll only.
    ``shared`` says whether others with the same ``key`` may have it at all.
    """

    key: bytes
    said: Identity | Refusal | None
    moment: int
    shared: bool
    fresh_until: float
    stale_until: float
    size: int = 0


class AnswerCache:
    """See the module's docstring. ``clock`` is monotonic."""

    def __init__(self, clock: Callable[[], float], max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._invalidations = _Invalidations()
        self._moment = 0

    def __len__(self) -> int:
        return len(self._entries)

    def next_moment(self) -> int:
        """The moment of a call that begins now."""
        self._moment += 1
        return self._moment

    def forget(self, user_id: Id | None, site_id: str | None) -> None:
        """Make everything unusable that was asked before now about these; None is any."""
        if user_id is None and site_id is None:
            self._entries.clear()
            self._bytes = 0
        self._invalidations.note(user_id, site_id, self.next_moment())

    def is_valid(self, entry: Entry) -> bool:
        """Whether no identity is in it that was invalidated since.

        A refusal stays, to stand against identities of older calls.
        """
        said = entry.said
        return not (isinstance(said, Identity) and self._invalidations.concern(said, entry.moment))

    def is_fresh(self, entry: Entry) -> bool:
        """Whether it saves asking. About whom a refusal was is not known, so all invalidations
        end that."""
        if self._clock() >= entry.fresh_until:
            return False
        if isinstance(entry.said, Identity):
            return self.is_valid(entry)
        return entry.moment > self._invalidations.latest

    def get(self, key: bytes) -> Entry | None:
        """The newest valid answer, fresh or not."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.stale_until <= self._clock() or not self.is_valid(entry):
            self._drop(entry)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, entry: Entry) -> None:
        """Keep an answer in place of what was asked before it, if it is valid."""
        known = self._entries.get(entry.key)
        if known is not None:
            if known.moment > entry.moment:
                return
            self._drop(known)
        if not self.is_valid(entry):
            return
        self._entries[entry.key] = entry
        self._bytes += ENTRY_BYTES + entry.size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries.values())))

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._bytes -= ENTRY_BYTES + entry.size


class _Site:
    """Stands for any site, or all of them, in what is noted."""


_ANY = _Site()


class _Invalidations:
    """The latest moment at which each user, site, or everybody was invalidated."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[Id | None, str | _Site | None], int] = OrderedDict()
        # Everything up to this moment is invalid.
        self._floor = 0
        self.latest = 0

    def note(self, user_id: Id | None, site_id: str | None, moment: int) -> None:
        self.latest = moment
        if user_id is None and site_id is None:
            self._marks.clear()
            self._floor = moment
            return
        for key in ((user_id, site_id), (user_id, _ANY)):
            self._marks[key] = moment
            self._marks.move_to_end(key)
        while len(self._marks) > MAX_INVALIDATIONS:
            # Who that was is no longer known, so it was everybody.
            self._floor = max(self._floor, self._marks.popitem(last=False)[1])

    def concern(self, said: Identity, moment: int) -> bool:
        """Whether one of them came after this moment, and is about this identity."""
        if moment <= self._floor:
            return True
        if moment > self.latest:
            return False
        # Without a site of its own the identity may be placed at any.
        site_id = _ANY if said.site_id is None else said.site_id
        marks = self._marks
        return (
            marks.get((said.user_id, site_id), 0) > moment
            or marks.get((None, site_id), 0) > moment
            or (site_id is not _ANY and marks.get((said.user_id, None), 0) > moment)
        )
