"""Lookups that ask nobody: everybody anonymous, or what a trusted proxy says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from messagebusd.errors import LookupRefused, MalformedRequest
from messagebusd.identity.base import ANONYMOUS, Caller, Identity, IdentityLookup
from messagebusd.protocol.channels import validate_site
from messagebusd.protocol.message import Id

# The Ruby library publishes to user -1 what nobody shall see; a person of that id would see it all.
NOBODY = -1


class AnonymousLookup(IdentityLookup):
    """Everybody is an anonymous visitor of the only site."""

    async def identify(self, caller: Caller) -> Identity:
        return ANONYMOUS


class HeaderLookup(IdentityLookup):
    """Believes the headers of trusted proxies (nginx ``auth_request``), and of nobody else.

    A value that is a JSON integer or string is read as such, any other value as text. Groups are
    a JSON array, or text with commas between them. ``id_type`` makes all ids one type.
    """

    def __init__(
        self,
        user: str,
        groups: str,
        site: str,
        id_type: Literal["as_is", "integer", "string"] = "as_is",
    ) -> None:
        self._user = user
        self._groups = groups
        self._site = site
        self._id_type = id_type

    async def identify(self, caller: Caller) -> Identity:
        if not caller.trusted:
            return ANONYMOUS
        user = self._read(caller.headers, self._user)
        groups = self._read(caller.headers, self._groups)
        site = caller.headers.get(self._site) or None
        if isinstance(user, list):
            raise LookupRefused(403, "the user header holds a list")
        if user == NOBODY or (isinstance(user, str) and user == str(NOBODY)):
            raise LookupRefused(403, "user -1 is nobody")
        if site is not None:
            try:
                validate_site(site)
            except MalformedRequest as error:
                raise LookupRefused(403, f"the site header cannot be used: {error}") from None
        members = groups if isinstance(groups, list) else () if groups is None else (groups,)
        return Identity(user, frozenset(members), site)

    def _read(self, headers: Mapping[str, str], name: str) -> Id | list[Id] | None:
        text = headers.get(name, "").strip()
        if not text:
            return None
        try:
            value: Any = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            value = text
        if isinstance(value, list):
            return [self._normalise(each) for each in value]
        if type(value) is not int and type(value) is not str:
            value = text
        if name == self._groups and type(value) is str and "," in value:
            return [self._normalise(each.strip()) for each in value.split(",") if each.strip()]
        return self._normalise(value)

    def _normalise(self, value: Any) -> Id:
        if type(value) is not int and type(value) is not str:
            raise LookupRefused(403, "an id is neither an integer nor a string")
        if self._id_type == "string":
            return str(value)
        if self._id_type == "integer" and type(value) is str:
            try:
                return int(value)
            except ValueError:
                raise LookupRefused(403, "an id is no integer") from None
        return value
