"""Lookups that ask nobody: everybody anonymous, or what a trusted proxy says."""

from __future__ import annotations

from typing import Any

import msgspec

from messagebusd.errors import LookupRefused, MalformedRequest
from messagebusd.identity.base import (
    ANONYMOUS,
    Caller,
    Identity,
    IdentityLookup,
    IdType,
    RequestHeaders,
    as_text,
    normalise_id,
    refuse_nobody,
)
from messagebusd.protocol.channels import validate_site

# So many identities are remembered, of headers of so many characters at most.
_REMEMBERED = 1024
_REMEMBERED_LENGTH = 512


class AnonymousLookup(IdentityLookup):
    """Everybody is an anonymous visitor of the only site."""

    is_immediate = True

    async def identify(self, caller: Caller) -> Identity:
        return ANONYMOUS


class HeaderLookup(IdentityLookup):
    """Believes the headers of trusted proxies (nginx ``auth_request``), and of nobody else.

    A value that is a JSON integer, string or list is read as such, any other value as text; groups
    in text have commas between them. What cannot be used is refused with 403: the proxy vouches
    for somebody, but not for whom. So is a bare ``null``, which applications write for nobody, and
    which would be somebody of that name.
    """

    is_immediate = True

    def __init__(self, user: str, groups: str, site: str, id_type: IdType = "as_is") -> None:
        self._user = user
        self._groups = groups
        self._site = site
        self._id_type = id_type
        # What was read before: users come back, and all their polls share one identity.
        self._known: dict[tuple[str | None, ...], Identity] = {}

    async def identify(self, caller: Caller) -> Identity:
        if not caller.trusted:
            return ANONYMOUS
        headers = caller.headers
        try:
            said = (
                _only(headers, self._user),
                _only(headers, self._groups),
                _only(headers, self._site),
            )
            if (identity := self._known.get(said)) is None:
                identity = self._read(*said)
                if sum(map(len, filter(None, said))) <= _REMEMBERED_LENGTH:
                    if len(self._known) >= _REMEMBERED:
                        self._known.clear()
                    self._known[said] = identity
        except (ValueError, MalformedRequest) as error:
            reason = f"the identity headers cannot be used: {error}"
            raise LookupRefused(403, reason.encode()) from None
        return identity

    def _read(self, user: str | None, groups: str | None, site_id: str | None) -> Identity:
        """Who is meant by these headers. Raises ValueError or MalformedRequest."""
        user_id = normalise_id(_read(user), self._id_type)
        refuse_nobody(user_id)
        group_ids = [normalise_id(each, self._id_type) for each in _read_list(groups)]
        site_id = site_id or None
        if site_id is not None:
            if not _is_text(site_id):
                raise ValueError("they are not written in UTF-8")
            validate_site(site_id)
        return Identity(user_id, frozenset(each for each in group_ids if each is not None), site_id)


def _only(headers: RequestHeaders, name: str) -> str | None:
    """The value of a header that may be there once. Where a proxy adds its own to what a visitor
    sent, nobody can tell which is which. Raises ValueError."""
    values = headers.getall(name, ())
    if len(values) > 1:
        raise ValueError(f"{name} is there {len(values)} times")
    return values[0] if values else None


def _read(text: str | None) -> Any:
    """The value of a header; None where it says nothing."""
    text = (text or "").strip()
    if not text:
        return None
    if not _is_text(text):
        raise ValueError("they are not written in UTF-8")
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text
    if value is None:
        raise ValueError("null is nobody, for whom the header is left out")
    return value if type(value) in (int, str, list) else text


def _is_text(value: str) -> bool:
    """Whether no byte of it was broken: such a user could be named nowhere else."""
    return as_text(value) == value


def _read_list(text: str | None) -> list[Any]:
    value = _read(text)
    if isinstance(value, list):
        # As outside lists: other scalars are text, as they would be written.
        return [each if _is_read(each) else msgspec.json.encode(each).decode() for each in value]
    if isinstance(value, str):
        return [part for each in value.split(",") if (part := _read(each)) is not None]
    return [] if value is None else [value]


def _is_read(value: Any) -> bool:
    return isinstance(value, str | list | dict) or type(value) is int
