"""A published message, and who may see it.

`Message` keeps its wire form, ``{"global_id":…,"message_id":…,"channel":…,"data":…}``, as the only
copy of its data: every frame, answer and stored payload is spliced from these bytes, so that what
was published is delivered character for character and JSON is never built per recipient.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

# Ids are compared strictly by type: user 7 is not user "7" (REFERENCE A4).
Id = int | str


class Audience:
    """Whom a message is for: ``client_ids`` and (``user_ids`` or ``group_ids``).

    None means no restriction of that kind (REFERENCE A1). A list that names nobody known is still
    a restriction. The lists are kept as published, for whoever reads the backlog; the sets are
    for looking people up.
    """

    __slots__ = ("client_ids", "clients", "group_ids", "groups", "user_ids", "users")

    def __init__(
        self,
        user_ids: Collection[Id] | None = None,
        group_ids: Collection[Id] | None = None,
        client_ids: Collection[Id] | None = None,
    ) -> None:
        self.user_ids = None if user_ids is None else tuple(user_ids)
        self.group_ids = None if group_ids is None else tuple(group_ids)
        self.client_ids = None if client_ids is None else tuple(client_ids)
        self.users = _members(self.user_ids)
        self.groups = _members(self.group_ids)
        self.clients = _members(self.client_ids)

    @property
    def is_for_clients_only(self) -> bool:
        """Whether it restricts neither users nor groups."""
        return self.users is None and self.groups is None

    def allows(self, user_id: Id | None, group_ids: frozenset[Id], client_id: str) -> bool:
        """Whether this person, polling as this client, may see the message."""
        if self.clients is not None and client_id not in self.clients:
            return False
        if self.users is None:
            return self.groups is None or not self.groups.isdisjoint(group_ids)
        # No user (None) is never a member: nobody can publish to None.
        return (user_id in self.users and is_id(user_id)) or (
            self.groups is not None and not self.groups.isdisjoint(group_ids)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Audience):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Audience({self.user_ids!r}, {self.group_ids!r}, {self.client_ids!r})"

    def _key(self) -> tuple[object, ...]:
        return (self.user_ids, self.group_ids, self.client_ids)


def is_id(value: object) -> bool:
    """Whether this may name somebody: True is no 1, nor is 1.0."""
    return type(value) is int or type(value) is str


def _members(ids: tuple[Id, ...] | None) -> frozenset[Id] | None:
    if ids is None:
        return None
    # Stored messages of other publishers may hold floats and booleans; in a Python set True would
    # equal 1 and 7.0 would equal 7. Such an id names nobody.
    return frozenset(filter(is_id, ids))


class Message:
    """One stored message. Immutable by agreement; ``audience`` None means everybody."""

    __slots__ = (
        "_data_at",
        "audience",
        "channel",
        "encoded",
        "global_id",
        "message_id",
        "published_at",
        "site_id",
        "stored_channel",
    )

    def __init__(
        self,
        global_id: int,
        message_id: int,
        stored_channel: str,
        channel: str,
        site_id: str | None,
        data: bytes,
        audience: Audience | None = None,
        published_at: float = 0.0,
    ) -> None:
        self.global_id = global_id
        self.message_id = message_id
        self.stored_channel = stored_channel
        self.channel = channel
        self.site_id = site_id
        self.audience = audience
        # Seconds on the publishing process' monotonic clock, 0.0 if published elsewhere.
        self.published_at = published_at
        head = b'{"global_id":%d,"message_id":%d,"channel":%b,"data":' % (
            global_id,
            message_id,
            msgspec.json.encode(channel),
        )
        self._data_at = len(head)
        self.encoded = b"%b%b}" % (head, data)

    @property
    def data(self) -> bytes:
        """The published data as JSON, character for character."""
        return self.encoded[self._data_at : -1]

    def with_audience(self) -> bytes:
        """The wire form for trusted readers (SPEC 4): with site and audience."""
        audience = self.audience or _EVERYBODY
        return b'%b,"site_id":%b,"user_ids":%b,"group_ids":%b,"client_ids":%b}' % (
            self.encoded[:-1],
            *map(
                msgspec.json.encode,
                (self.site_id, audience.user_ids, audience.group_ids, audience.client_ids),
            ),
        )

    def __repr__(self) -> str:
        return f"<Message {self.global_id}/{self.message_id} on {self.stored_channel}>"


_EVERYBODY = Audience()
