"""Who must see what: the account of a soak, kept while it goes on.

Publishers say what they begin to publish and as what it was stored; readers say what they got and
where they are. `Ledger.audit` compares the two for everything that is settled, and forgets it, so
that an hour needs no more memory than a minute.

*Settled* is what lies at or below a channel's horizon: ids ascend in a channel, so a publish that
is under way will get an id above all that were known when it began. Up to the lowest of those the
ledger knows everything there is.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_KEPT_WRONGS = 200


@dataclass(frozen=True, slots=True)
class Who:
    """A subscriber. A server, to which audiences do not apply, has no client id."""

    client_id: str | None = None
    user_id: int | None = None
    group_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom a message is for (SPEC 3.1). None restricts nothing."""

    user_ids: tuple[int, ...] | None = None
    group_ids: tuple[int, ...] | None = None
    client_ids: tuple[str, ...] | None = None

    def allows(self, who: Who) -> bool:
        if who.client_id is None:
            return True
        if self.client_ids is not None and who.client_id not in self.client_ids:
            return False
        if self.user_ids is None and self.group_ids is None:
            return True
        return who.user_id in (self.user_ids or ()) or not who.group_ids.isdisjoint(
            self.group_ids or ()
        )

    def fields(self) -> dict[str, list[int] | list[str]]:
        """As the API wants it."""
        named = {"user_ids": self.user_ids, "group_ids": self.group_ids}
        fields: dict[str, list[int] | list[str]] = {
            name: list(ids) for name, ids in named.items() if ids is not None
        }
        if self.client_ids is not None:
            fields["client_ids"] = list(self.client_ids)
        return fields


EVERYBODY = Audience()


@dataclass(order=True, slots=True)
class _Entry:
    """A stored message. ``token`` is its data's own name, one for each publish."""

    message_id: int
    token: str = field(compare=False)
    audience: Audience = field(compare=False)


class _Channel:
    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.newest = 0
        # What is under way, with the newest id that was known when it began.
        self.open: dict[str, tuple[int, Audience]] = {}

    @property
    def horizon(self) -> int:
        return min((floor for floor, _ in self.open.values()), default=self.newest)

    def between(self, after: int, until: int) -> Sequence[_Entry]:
        """The entries with ids above ``after``, up to ``until``."""
        ids = [
            bisect_right(self.entries, at, key=lambda each: each.message_id)
            for at in (after, until)
        ]
        return self.entries[ids[0] : ids[1]]


class _Track:
    """A reader on one channel. ``position`` None: it has not been told yet where it is."""

    def __init__(self, position: int | None, known: int) -> None:
        self.position = position
        self.newest = 0 if position is None else position
        self.audited = position
        # Where it is at least, even if it has not been told: what is newer must be remembered.
        self.needs = known if position is None else position
        self.got: list[tuple[int, str]] = []


class Reader:
    """What one subscriber got. Made by `Ledger.reader`."""

    def __init__(
        self, ledger: Ledger, name: str, who: Who, starts: Mapping[str, int | None]
    ) -> None:
        self.name = name
        self.who = who
        self.received = 0
        self._ledger = ledger
        self.tracks = {
            channel: _Track(start, ledger.newest(channel)) for channel, start in starts.items()
        }

    def positions(self) -> dict[str, int]:
        """What it asks for next: -1 where it does not know yet."""
        return {
            channel: -1 if track.position is None else track.position
            for channel, track in self.tracks.items()
        }

    def take(self, channel: str, message_id: int, token: str) -> None:
        """It was handed a message."""
        track = self.tracks.get(channel)
        if track is None:
            self._ledger.wrong("foreign", f"{self.name} got {channel} {message_id} unasked")
            return
        if message_id <= track.newest and track.position is not None:
            kind = "twice" if (message_id, token) in track.got else "order"
            self._ledger.wrong(
                kind, f"{self.name} got {channel} {message_id} ({token}) after {track.newest}"
            )
            return
        if track.position is None:  # live, before it was told where it is
            track.audited = message_id - 1
        track.got.append((message_id, token))
        track.position = track.newest = message_id
        self.received += 1

    def told(self, positions: Mapping[str, int]) -> None:
        """It was handed a status."""
        for channel, position in positions.items():
            track = self.tracks.get(channel)
            if track is None:
                self._ledger.wrong("foreign", f"{self.name} got a status of {channel} unasked")
            elif track.position is None:
                track.position = track.newest = track.audited = position
            elif position < track.newest:
                self._ledger.wrong(
                    "status", f"{self.name} at {channel} {track.newest} is told {position}"
                )
            else:
                track.position = track.newest = position


class Ledger:
    """See the module's docstring. One for each store."""

    def __init__(self) -> None:
        self.readers: set[Reader] = set()
        self.wrongs: dict[str, int] = {}
        self.examples: list[str] = []
        self.stored = 0
        self.checked = 0
        """Deliveries that were compared and found right."""
        self._channels: dict[str, _Channel] = {}

    def wrong(self, kind: str, text: str) -> None:
        """Note what must not be."""
        self.wrongs[kind] = self.wrongs.get(kind, 0) + 1
        if len(self.examples) < MAX_KEPT_WRONGS:
            self.examples.append(f"{kind}: {text}")

    # -- publishers ------------------------------------------------------------------------------

    def begin(self, channel: str, token: str, audience: Audience) -> None:
        """A message is about to be published, and will be until it is stored."""
        book = self._channels.setdefault(channel, _Channel())
        book.open[token] = (book.newest, audience)

    def store(self, channel: str, token: str, message_id: int) -> None:
        """The daemon said under which id it was stored."""
        book = self._channels[channel]
        floor, audience = book.open.pop(token)
        if message_id <= floor:
            self.wrong("order", f"{channel} {token} got id {message_id}, {floor} was known before")
        insort(book.entries, _Entry(message_id, token, audience))
        book.newest = max(book.newest, message_id)
        self.stored += 1

    def seen(self, channel: str, token: str, message_id: int) -> None:
        """A server saw it. It may be the only one to say what id a message got that had waited."""
        if token.startswith("queued-") and self.is_open(channel, token):
            self.store(channel, token, message_id)

    def is_open(self, channel: str, token: str) -> bool:
        """Whether it was begun and is not known to be stored."""
        book = self._channels.get(channel)
        return book is not None and token in book.open

    def newest(self, channel: str) -> int:
        """The newest id that is known."""
        book = self._channels.get(channel)
        return 0 if book is None else book.newest

    @property
    def unsettled(self) -> list[str]:
        """What was begun and is not known to be stored."""
        return [token for book in self._channels.values() for token in book.open]

    @property
    def kept(self) -> int:
        """How many messages it remembers."""
        return sum(len(book.entries) for book in self._channels.values())

    # -- readers ---------------------------------------------------------------------------------

    def reader(self, name: str, who: Who, starts: Mapping[str, int | None]) -> Reader:
        """Somebody who must see everything after these positions; None: after the first status."""
        reader = Reader(self, name, who, starts)
        self.readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """It goes for good: what it should have had until now is looked at."""
        self._audit(reader)
        self.readers.discard(reader)

    def audit(self) -> None:
        """Compare all that is settled, and forget it."""
        for reader in self.readers:
            self._audit(reader)
        for name, book in self._channels.items():
            needed = [
                track.needs if track.audited is None else track.audited
                for reader in self.readers
                if (track := reader.tracks.get(name)) is not None
            ]
            forget = bisect_right(
                book.entries, min(needed, default=book.horizon), key=lambda each: each.message_id
            )
            del book.entries[:forget]

    def _audit(self, reader: Reader) -> None:
        for name, track in reader.tracks.items():
            if track.audited is None or track.position is None or name not in self._channels:
                continue
            book = self._channels[name]
            until = min(book.horizon, track.position)
            if until <= track.audited:
                continue
            due = [
                (each.message_id, each.token)
                for each in book.between(track.audited, until)
                if each.audience.allows(reader.who)
            ]
            count = bisect_right(track.got, until, key=lambda each: each[0])
            got, track.got = track.got[:count], track.got[count:]
            if got == due:
                self.checked += len(got)
            else:
                self._differ(reader, name, set(due), set(got))
            track.audited = until

    def _differ(
        self, reader: Reader, channel: str, due: set[tuple[int, str]], got: set[tuple[int, str]]
    ) -> None:
        who = f"{reader.name} on {channel}"
        for message_id, token in sorted(due - got):
            self.wrong("lost", f"{who}: {message_id} ({token})")
        for message_id, token in sorted(got - due):
            self.wrong("not for it", f"{who}: {message_id} ({token})")

    def behind(self) -> list[str]:
        """Who has not got yet what it must get, with the channel; what is under way left out."""
        return [
            f"{reader.name} on {name} at {track.position}"
            for reader in self.readers
            for name, track in reader.tracks.items()
            if name in self._channels
            and (track.position is None or self._awaits(reader, name, track.position))
        ]

    def _awaits(self, reader: Reader, channel: str, position: int) -> bool:
        book = self._channels[channel]
        return any(each.audience.allows(reader.who) for each in book.between(position, book.newest))

    def close(self) -> None:
        """The end: whatever is missing now is lost."""
        for token in self.unsettled:
            self.wrong("lost", f"{token} was begun, or accepted, and never stored")
        for reader in self.readers:
            for name, track in reader.tracks.items():
                if name not in self._channels:
                    continue
                if track.position is None:
                    self.wrong("lost", f"{reader.name} on {name} was never told where it is")
                else:
                    track.position = max(track.position, self._channels[name].newest)
        self.audit()
        for reader in self.readers:
            for name, track in reader.tracks.items():
                for message_id, token in track.got:
                    self.wrong("not for it", f"{reader.name} on {name}: {message_id} ({token})")
