"""Parked polls, found by what an audience names: users, groups, clients.

An audience is looked up here if it names fewer than the channel has subscribers; otherwise the
subscribers are asked one by one. Either way `Audience.allows` has the last word, so that what is
found this way is never more than what may be seen.

Ids are keys of dictionaries as they are: 7 is not "7".
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import TypeVar

from messagebusd.connection import Connection
from messagebusd.protocol.channels import GLOBAL_PREFIX
from messagebusd.protocol.message import Audience, Id, Message

K = TypeVar("K", bound=Hashable)

# One connection is kept as it is: a dictionary for it would take more than the connection.
OneOrMany = Connection | dict[Connection, None]


def insert(index: dict[K, OneOrMany], key: K, connection: Connection) -> None:
    """Add a connection under a key."""
    found = index.setdefault(key, connection)
    if type(found) is dict:
        found[connection] = None
    elif found is not connection:
        index[key] = {found: None, connection: None}  # type: ignore[dict-item]


def discard(index: dict[K, OneOrMany], key: K, connection: Connection) -> None:
    """Remove a connection from under a key, if it is there."""
    found = index.get(key)
    if found is connection:
        del index[key]
    elif type(found) is dict:
        found.pop(connection, None)
        if len(found) == 1:
            [index[key]] = found


def below(index: dict[K, OneOrMany], key: K) -> Collection[Connection]:
    """The connections under a key."""
    found = index.get(key)
    if found is None:
        return ()
    return found if type(found) is dict else (found,)  # type: ignore[return-value]


class Circle:
    """Those of a site who are in the same groups. They share one set of ids."""

    __slots__ = ("group_ids", "members")

    def __init__(self, group_ids: frozenset[Id]) -> None:
        self.group_ids = group_ids
        self.members: dict[Connection, None] = {}


class Site:
    """The people of one site: the same id is somebody else on another."""

    __slots__ = ("circles", "groups", "users")

    def __init__(self) -> None:
        self.users: dict[Id, OneOrMany] = {}
        self.circles: dict[frozenset[Id], Circle] = {}
        # Not of connections but of circles: many people, few combinations of groups.
        self.groups: dict[Id, dict[Circle, None]] = {}

    def add(self, connection: Connection) -> None:
        if connection.user_id is not None:
            insert(self.users, connection.user_id, connection)
        if connection.group_ids:
            circle = self.circles.get(connection.group_ids)
            if circle is None:
                circle = self.circles[connection.group_ids] = Circle(connection.group_ids)
                for group_id in circle.group_ids:
                    self.groups.setdefault(group_id, {})[circle] = None
            connection.group_ids = circle.group_ids
            circle.members[connection] = None

    def remove(self, connection: Connection) -> None:
        if connection.user_id is not None:
            discard(self.users, connection.user_id, connection)
        circle = self.circles.get(connection.group_ids)
        if circle is not None:
            circle.members.pop(connection, None)
            if not circle.members:
                self._dissolve(circle)

    def _dissolve(self, circle: Circle) -> None:
        del self.circles[circle.group_ids]
        for group_id in circle.group_ids:
            others = self.groups[group_id]
            del others[circle]
            if not others:
                del self.groups[group_id]

    def named(self, audience: Audience) -> Iterator[Collection[Connection]]:
        """Everybody in the audience's users and groups, in parts."""
        for user_id in audience.users or ():
            yield below(self.users, user_id)
        for group_id in audience.groups or ():
            for circle in self.groups.get(group_id, ()):
                yield circle.members


class People:
    """All parked polls of a worker."""

    def __init__(self) -> None:
        self._count = 0
        self._clients: dict[str, OneOrMany] = {}
        self._sites: dict[str | None, Site] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Connection]:
        for client_id in self._clients:
            yield from below(self._clients, client_id)

    def add(self, connection: Connection) -> None:
        """Keep a poll, which is not here yet."""
        self._count += 1
        insert(self._clients, connection.client_id, connection)
        if connection.user_id is not None or connection.group_ids:
            site = self._sites.get(connection.site_id)
            if site is None:
                site = self._sites[connection.site_id] = Site()
            site.add(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a poll, which is here."""
        self._count -= 1
        discard(self._clients, connection.client_id, connection)
        site = self._sites.get(connection.site_id)
        if site is not None:
            site.remove(connection)
            if not site.users and not site.circles:
                del self._sites[connection.site_id]

    def of(self, client_id: str | None, user_id: Id | None) -> Iterable[Connection]:
        """The polls of a client, or of a user at any site; None is any."""
        if client_id is not None:
            return below(self._clients, client_id)
        if user_id is not None:
            return (each for site in self._sites.values() for each in below(site.users, user_id))
        return self

    def same_as(self, connection: Connection) -> Connection | None:
        """The poll that this one replaces, or is replaced by (SPEC 2.7)."""
        for each in below(self._clients, connection.client_id):
            if each.site_id == connection.site_id and each.user_id == connection.user_id:
                return each
        return None

    def recipients(
        self, message: Message, subscribers: Collection[Connection]
    ) -> Collection[Connection]:
        """Those of a channel's parked subscribers that a message's audience includes."""
        audience = message.audience
        assert audience is not None
        candidates = _together(self._named(message, audience, len(subscribers)), len(subscribers))
        if candidates is None:
            candidates = [each for each in subscribers if each.is_parked]
        else:
            candidates = [each for each in candidates if each in subscribers]
        return [
            each
            for each in candidates
            if audience.allows(each.user_id, each.group_ids, each.client_id)
        ]

    def _named(
        self, message: Message, audience: Audience, limit: int
    ) -> Iterable[Collection[Connection]] | None:
        """Those that an audience names, in parts; None if these would not be fewer."""
        if audience.clients is not None and len(audience.clients) < limit:
            clients = self._clients
            return (below(clients, each) for each in audience.clients if isinstance(each, str))
        # Restricted messages on channels of all sites come from other publishers only.
        if audience.is_for_clients_only or message.channel.startswith(GLOBAL_PREFIX):
            return None
        if len(audience.users or ()) + len(audience.groups or ()) >= limit:
            return None
        site = self._sites.get(message.site_id)
        return () if site is None else site.named(audience)


def _together(
    parts: Iterable[Collection[Connection]] | None, limit: int
) -> Collection[Connection] | None:
    """All of them, each once; None if those would be more than the limit."""
    if parts is None:
        return None
    found: dict[Connection, None] = {}
    visited = 0
    for part in parts:
        visited += len(part)
        if visited > limit:
            return None
        for each in part:
            found[each] = None
    return found
