"""Who is asking: the identity of a poll, and the contract of whatever finds it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from messagebusd.protocol.message import Id


@dataclass(frozen=True, slots=True)
class Identity:
    """The person behind a poll; user_id None is an anonymous visitor.

    ``response_headers`` go onto the answer, whatever kind it is.
    """

    user_id: Id | None = None
    group_ids: frozenset[Id] = frozenset()
    site_id: str | None = None
    is_admin: bool = False
    response_headers: Mapping[str, str] = field(default_factory=dict)


ANONYMOUS = Identity()


class Caller(NamedTuple):
    """What a lookup may go by. ``trusted`` says that the peer is a trusted proxy."""

    headers: Mapping[str, str]
    trusted: bool


class IdentityLookup(ABC):
    """Finds out who polls; asked once per poll, before the poll is registered."""

    @abstractmethod
    async def identify(self, caller: Caller) -> Identity:
        """Who this is. Raises LookupRefused or LookupUnavailable; never guesses anonymous."""
