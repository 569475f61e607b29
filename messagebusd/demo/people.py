"""Who is in the chat, and the cookie that says so.

A person is made by choosing a name; the cookie is all that proves it later. The name is a label and
may change, the id is what messages are addressed to: who takes a name over does not take over what
was written to whoever had it before.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

COOKIE = "messagebusd_chat"
MAX_AGE_SECONDS = 12 * 60 * 60
# Waiting polls come back every 25 seconds, those of hidden tabs every minute: who has not been seen
# for so long has closed the page, and the name is free for somebody else.
AWAY_SECONDS = 150.0
MAX_PEOPLE = 1000


class NameTaken(Exception):
    """Somebody else has this name, and is here."""


class ChatFull(Exception):
    """There are as many people as may be."""


@dataclass(slots=True, eq=False)
class Person:
    """Somebody with a valid cookie. ``expires`` and ``seen`` are times of the clock, in seconds."""

    id: str
    name: str
    expires: int
    seen: float


class People:
    """Everybody who is logged in. ``clock`` tells the time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Made at start: cookies of an earlier run are worth nothing, as nobody knows these people.
        self._key = secrets.token_bytes(32)
        self._by_id: dict[str, Person] = {}
        self._by_name: dict[str, Person] = {}

    def enter(self, name: str) -> Person:
        """Log somebody in. Raises NameTaken or ChatFull."""
        self._make_free(name)
        now = self._clock()
        if len(self._by_id) >= MAX_PEOPLE:
            for person in [each for each in self._by_id.values() if self._is_away(each)]:
                self.leave(person)
        if len(self._by_id) >= MAX_PEOPLE:
            raise ChatFull
        person = Person(secrets.token_hex(8), name, int(now) + MAX_AGE_SECONDS, now)
        self._by_id[person.id] = self._by_name[_folded(name)] = person
        return person

    def rename(self, person: Person, name: str) -> None:
        """Give somebody another name. Raises NameTaken."""
        self._make_free(name, person)
        del self._by_name[_folded(person.name)]
        person.name = name
        self._by_name[_folded(name)] = person

    def leave(self, person: Person) -> None:
        """Log somebody out: their cookie is no longer taken. Twice is harmless."""
        if self._by_id.pop(person.id, None) is not None:
            del self._by_name[_folded(person.name)]

    def named(self, name: str) -> Person | None:
        """Who has this name, however it is capitalised."""
        return self._by_name.get(_folded(name))

    def cookie(self, person: Person) -> str:
        """The cookie's value for somebody: id, expiry and signature."""
        signed = f"{person.id}.{person.expires}"
        return f"{signed}.{self._signature(signed)}"

    def known_by(self, cookies: str) -> Person | None:
        """Whose valid cookie there is in a request's ``Cookie`` header; who it is has been seen.

        Pages of other ports share the browser's cookies and can add one of the same name, so all of
        them are tried.
        """
        for pair in cookies.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE and (person := self._verified(value)) is not None:
                person.seen = self._clock()
                return person
        return None

    def _verified(self, value: str) -> Person | None:
        signed, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self._signature(signed).encode(), signature.encode()):
            return None
        # Only what was signed here is looked at: the id and the expiry that `cookie` wrote.
        person = self._by_id.get(signed.partition(".")[0])
        if person is not None and person.expires <= self._clock():
            self.leave(person)
            return None
        return person

    def _signature(self, signed: str) -> str:
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()

    def _make_free(self, name: str, wanting: Person | None = None) -> None:
        holder = self.named(name)
        if holder is None or holder is wanting:
            return
        if not self._is_away(holder):
            raise NameTaken
        self.leave(holder)

    def _is_away(self, person: Person) -> bool:
        now = self._clock()
        return person.expires <= now or person.seen + AWAY_SECONDS <= now


def _folded(name: str) -> str:
    """One spelling for names that look the same."""
    return unicodedata.normalize("NFKC", name).casefold()
