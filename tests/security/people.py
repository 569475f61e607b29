"""People, letters, and who may read what: the rule written down once more, as plainly as it can be.

The tests of this folder publish every kind of letter and poll as every kind of person. What they
got is compared with `may_read`, which shares no code with the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

CHANNEL = "/letters"
GLOBAL_CHANNEL = "/global/letters"
SITES = (None, "a", "b")

Id = int | str


@dataclass(frozen=True)
class Person:
    """Somebody who polls. ``user_id`` None is an anonymous visitor."""

    name: str
    user_id: Id | None = None
    group_ids: tuple[Id, ...] = ()
    site_id: str | None = None
    is_admin: bool = False

    @property
    def client_id(self) -> str:
        return f"client-of-{self.name}"


@dataclass(frozen=True)
class Letter:
    """Something published; None is no restriction of that kind."""

    channel: str
    site_id: str | None
    user_ids: tuple[Id, ...] | None = None
    group_ids: tuple[Id, ...] | None = None
    client_ids: tuple[str, ...] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The fields of a publish besides channel and data."""
        named = {
            "site_id": self.site_id,
            "user_ids": self.user_ids,
            "group_ids": self.group_ids,
            "client_ids": self.client_ids,
        }
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in named.items()
            if value is not None
        }

    @property
    def text(self) -> str:
        """The data: unique, and it says whom the letter is for."""
        return f"{self.channel} {self.options}"


_ON_ONE_SITE = (
    Person("nobody-known"),
    Person("seven", 7, (1,)),
    Person("seven-as-text", "7", ("1",)),
    Person("colleague", 8, (1, "staff")),
    Person("stranger", 9),
    Person("administrator", 10, is_admin=True),
    Person("unicode", "zoë", ("gruppe ü",)),
)
PEOPLE = tuple(
    Person(f"{each.name}-{site_id}", each.user_id, each.group_ids, site_id, each.is_admin)
    for site_id, each in product(SITES, _ON_ONE_SITE)
)

_USERS = (None, (7,), ("7",), (8, "7"), (-1,), ("zoë",), (123456789012345678,))
_GROUPS = (None, (1,), ("1",), ("staff", 99), ("gruppe ü",))
_CLIENTS = (None, ("client-of-seven-a",), ("client-of-seven-a", "client-of-stranger-b"), ("x",))

LETTERS = tuple(
    Letter(CHANNEL, site_id, users, groups, clients)
    for site_id, users, groups, clients in product(SITES, _USERS, _GROUPS, _CLIENTS)
) + tuple(Letter(GLOBAL_CHANNEL, None, client_ids=clients) for clients in _CLIENTS)


def may_read(person: Person, letter: Letter) -> bool:
    """SPEC 3.1: site, and client_ids AND (user_ids OR group_ids), ids strictly by type."""
    if letter.channel != GLOBAL_CHANNEL and person.site_id != letter.site_id:
        return False
    if letter.client_ids is not None and person.client_id not in letter.client_ids:
        return False
    if letter.user_ids is None and letter.group_ids is None:
        return True
    by_user = any(_same(person.user_id, each) for each in letter.user_ids or ())
    by_group = any(
        _same(mine, each) for mine in person.group_ids for each in letter.group_ids or ()
    )
    return by_user or by_group


def readable(person: Person) -> list[str]:
    """The texts of all letters that somebody may read, in order of publishing, per channel."""
    return [each.text for each in LETTERS if may_read(person, each)]


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other
