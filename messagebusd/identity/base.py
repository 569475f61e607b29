"""Who is asking: the identity of a poll, and the contract of whatever finds it out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from messagebusd.protocol.catchup import Position
from messagebusd.protocol.channels import ChannelPatterns
from messagebusd.protocol.message import Id
from messagebusd.protocol.wire import Headers

# The Ruby library publishes to user -1 what nobody shall see; a person of that id would see it all.
NOBODY = -1

IdType = Literal["as_is", "integer", "string"]
_INTEGER = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Identity:
    """The person behind a poll; user_id None is an anonymous visitor.

    ``response_headers`` go onto the answer, whatever kind it is; they have been checked.
    ``allowed_channels`` restricts what may be asked for; ``forced_channels`` replaces it, with
    positions. ``expires_at`` is when this stops being true, in seconds since the epoch; None is
    never.
    """

    user_id: Id | None = None
    group_ids: frozenset[Id] = frozenset()
    site_id: str | None = None
    is_admin: bool = False
    response_headers: Headers = ()
    allowed_channels: ChannelPatterns | None = None
    forced_channels: Mapping[str, Position] | None = None
    expires_at: float | None = None


ANONYMOUS = Identity()


class RequestHeaders(Protocol):
    """As they came: bytes that are no UTF-8 are surrogates, and a name may come twice."""

    def get(self, name: str, default: str, /) -> str: ...
    def getall(self, name: str, default: Sequence[str], /) -> Sequence[str]: ...
    def items(self) -> Iterable[tuple[str, str]]: ...


class Caller(Protocol):
    """What a lookup may go by; found out only when it is asked for."""

    @property
    def headers(self) -> RequestHeaders: ...
    @property
    def trusted(self) -> bool:
        """Whether the peer is a trusted proxy."""

    @property
    def client_id(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def remote_addr(self) -> str:
        """The address in front of all trusted proxies; "" where it is unknown."""


class LookupObserver(Protocol):
    """Where a lookup reports what happened, for the metrics."""

    def lookup_cached(self, outcome: str) -> None:
        """An identity came from the cache or not: hit, miss, shared, stale or bypass."""

    def lookup_paused(self, paused: bool) -> None:
        """The application is left alone for a moment, because it failed; or asked again."""


class IdentityLookup(ABC):
    """Finds out who polls; asked once per poll, before the poll is registered.

    ``is_immediate`` says that it waits for nothing and nobody, and so needs neither a task nor a
    timeout.
    """

    is_immediate = False

    @property
    def is_paused(self) -> bool:
        """Whether the application is left alone for a moment."""
        return False

    async def open(self) -> None:
        """Get ready; called once, before anything else."""
        return

    async def close(self) -> None:
        """Release everything."""
        return

    def forget(self, user_id: Id | None = None, site_id: str | None = None) -> None:
        """Use nothing any more that was found out before now about this user at this site.

        None is any. A lookup that is under way finds out anew.
        """
        return

    @abstractmethod
    async def identify(self, caller: Caller) -> Identity:
        """Who this is. Raises LookupRefused, Unauthorized or LookupUnavailable; never guesses
        anonymous."""


def normalise_id(value: object, id_type: IdType) -> Id | None:
    """An id as the configured type; None stays None.

    An audience is matched by type: ids that come from different places must be made one type.
    Raises ValueError for what is no id.
    """
    if value is None:
        return None
    if type(value) is not int and type(value) is not str:
        raise ValueError("an id is an integer or a string")
    if value == "":
        # What templates and languages make of nobody; it would be somebody who is logged in.
        raise ValueError("an id is not empty")
    if id_type == "string":
        return str(value)
    if id_type == "integer" and isinstance(value, str):
        # int() would take "4_2" and other scripts' digits for 42, which is somebody else.
        if not _INTEGER.fullmatch(value):
            raise ValueError("an id is no integer, which lookup.id_type asks for")
        return int(value)
    return value


def refuse_nobody(user_id: Id | None) -> None:
    """Refuse a user who would see what is published to nobody. Raises ValueError."""
    if user_id in (NOBODY, str(NOBODY)):
        raise ValueError("user -1 is nobody")


def as_text(value: str) -> str:
    """A part of a request as text, whatever bytes it was made of.

    Bytes that are no UTF-8 are read as Latin-1, as HTTP once had it: each one stays apart.
    """
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value
