"""Who polls says a signed token that the host application made (SPEC 5, RFC 7519).

Without a token a visitor is anonymous. With one that is not valid nobody is anybody: the poll is
refused with 401, never answered as an anonymous one. What a token says is believed only once its
signature is, which is verified with keys of the settings alone (`jwks.py`): a header that names a
key's address, or brings a key, is not even read.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError
from jwt.utils import base64url_decode

from messagebusd.errors import InvalidToken, MalformedRequest, Unauthorized
from messagebusd.identity.base import (
    ANONYMOUS,
    Caller,
    Identity,
    IdentityLookup,
    IdType,
    RequestHeaders,
    normalise_id,
    refuse_nobody,
)
from messagebusd.identity.jwks import Keys, open_keys
from messagebusd.identity.jwt_keys import MAX_KEY_ID, Key, read_json
from messagebusd.protocol.channels import ChannelPatterns, validate_site
from messagebusd.protocol.message import Id
from messagebusd.settings import LookupJwt, LookupSettings

# Longer ones are not looked at; the HTTP parser takes 8190 bytes for a header's value.
MAX_TOKEN_BYTES = 8000
# Verified tokens are remembered: verifying takes 65 (HS256) to 120 µs (EdDSA), finding it again 2,
# and an empty poll without either about 150. One takes about a kilobyte.
MAX_REMEMBERED = 4096

# Three parts in base64url, and nothing around them: no padding, no fourth part, no other alphabet.
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token says, and with which key it was verified. ``not_before`` is like its claim."""

    identity: Identity
    key_id: str | None
    key: Key
    not_before: float
    expires_at: float


class JwtLookup(IdentityLookup):
    """See the module's docstring. ``wall`` is the time of day, in seconds since the epoch."""

    def __init__(
        self,
        keys: Keys,
        settings: LookupJwt,
        id_type: IdType = "as_is",
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self.is_immediate = keys.is_immediate
        self._settings = settings
        self._id_type = id_type
        self._wall = wall
        self._header = settings.header.lower()
        self._jws = PyJWS(algorithms=["HS256", "RS256", "ES256", "EdDSA"])
        self._remembered: OrderedDict[bytes, _Verified] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: LookupSettings) -> JwtLookup:
        """The configured one. Raises ConfigurationError where its keys cannot be used."""
        return cls(open_keys(settings.jwt), settings.jwt, settings.id_type)

    async def open(self) -> None:
        await self._keys.open()

    async def close(self) -> None:
        await self._keys.close()

    async def identify(self, caller: Caller) -> Identity:
        token = self._find_token(caller.headers)
        if token is not None:
            return await self.verify(token)
        if self._settings.required:
            raise Unauthorized("a poll needs a token here, and this one has none")
        return ANONYMOUS

    async def verify(self, token: str) -> Identity:
        """Whose token this is. Raises InvalidToken, or LookupUnavailable while keys are missing."""
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken(f"the token has more than {MAX_TOKEN_BYTES} bytes")
        if (shape := _TOKEN.fullmatch(token)) is None:
            raise InvalidToken("the token is not three parts of base64url with dots between them")
        digest = hashlib.sha256(token.encode()).digest()
        found = self._remembered.get(digest)
        if found is None or await self._keys.find(found.key_id) != found.key:
            self._remembered.pop(digest, None)
            found = await self._verify(token, shape[1])
            self._check_time(found)
            self._remembered[digest] = found
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        else:
            self._check_time(found)
            self._remembered.move_to_end(digest)
        return found.identity

    def _check_time(self, found: _Verified) -> None:
        now, leeway = self._wall(), self._settings.leeway
        if now >= found.expires_at + leeway:
            raise InvalidToken("the token has expired")
        if now < found.not_before - leeway:
            raise InvalidToken("the token is not valid yet")

    # -- where it is -------------------------------------------------------------------------

    def _find_token(self, headers: RequestHeaders) -> str | None:
        """The request's token; raises InvalidToken for two, of which neither can be preferred:
        who sets one of them (a cookie of a sibling domain) need not be who sets the other."""
        found = set(self._tokens(headers.items()))
        if len(found) > 1:
            raise InvalidToken("the request has two different tokens")
        return found.pop() if found else None

    def _tokens(self, headers: Iterable[tuple[str, str]]) -> Iterator[str]:
        # All headers, because one may be there twice, of which a look-up shows only the first.
        cookie = self._settings.cookie
        for name, value in headers:
            lower = name.lower()
            if lower == "cookie" and cookie is not None:
                yield from _cookies(value, cookie)
            elif lower == self._header:
                if lower == "authorization":
                    value = _bearer(value)
                if value := value.strip():
                    yield value

    # -- what it says ------------------------------------------------------------------------

    async def _verify(self, token: str, header_part: str) -> _Verified:
        """Check everything that stays as it is while the key does."""
        key_id = _key_id(header_part)
        key = await self._keys.find(key_id)
        if key is None:
            raise InvalidToken(
                "the token names no key (kid)" if key_id is None else "the token's key is not known"
            )
        try:
            # The header's alg must be the one that this key is for.
            signed = self._jws.decode_complete(token, key.material, algorithms=[key.algorithm])
        except PyJWTError:
            raise InvalidToken("the token's signature is not valid") from None
        try:
            claims = read_json(signed["payload"])
        except ValueError as error:
            raise InvalidToken(f"the token's claims cannot be read: {error}") from None
        if not isinstance(claims, dict):
            raise InvalidToken("the token's claims are no object")
        self._check_origin(claims)
        expires_at = _time(claims, "exp")
        if expires_at is None:
            raise InvalidToken("the token has no exp")
        try:
            identity = self._identity(claims, expires_at)
        except (ValueError, MalformedRequest) as error:
            raise InvalidToken(f"the token's claims cannot be used: {error}") from None
        not_before = _time(claims, "nbf")
        return _Verified(identity, key_id, key, not_before or -math.inf, expires_at)

    def _check_origin(self, claims: Mapping[str, Any]) -> None:
        issuer, audience = self._settings.issuer, self._settings.audience
        if issuer is not None and claims.get("iss") != issuer:
            raise InvalidToken("the token's iss is not lookup.jwt.issuer")
        named = claims.get("aud", [])
        names = [named] if isinstance(named, str) else named
        if not isinstance(names, list):
            raise InvalidToken("the token's aud is neither text nor a list")
        # RFC 7519, 4.1.3: whoever does not find itself in it must refuse.
        if audience is not None and audience not in names:
            raise InvalidToken("the token's aud does not have lookup.jwt.audience")
        if audience is None and names:
            raise InvalidToken("the token has an aud, and lookup.jwt.audience is not set")

    def _identity(self, claims: Mapping[str, Any], expires_at: float) -> Identity:
        """Raises ValueError and MalformedRequest."""
        names = self._settings
        user = _claim(claims, names.user_claim)
        user_id = None if user is _MISSING else self._id(user, names.user_claim)
        refuse_nobody(user_id)
        groups = _list(claims, names.groups_claim) or []
        site = _claim(claims, names.site_claim)
        if site is not _MISSING:
            validate_site(_text(site, names.site_claim))
        channels = _list(claims, names.channels_claim)
        if channels is not None:
            channels = [_text(each, names.channels_claim) for each in channels]
        return Identity(
            user_id,
            frozenset(self._id(each, names.groups_claim) for each in groups),
            None if site is _MISSING else site,
            allowed_channels=None if channels is None else ChannelPatterns(channels),
            expires_at=expires_at,
        )

    def _id(self, value: object, name: str) -> Id:
        if isinstance(value, str):
            _text(value, name)
        found = normalise_id(value, self._id_type)
        if found is None:
            raise ValueError("an id is an integer or a string")
        return found


def _bearer(header: str) -> str:
    """The token in an ``Authorization`` header; empty where it is of another scheme."""
    scheme, *rest = header.split(None, 1) or ["", ""]
    if not rest:  # such as a token without the word
        raise InvalidToken("in Authorization a token comes after the word Bearer")
    return rest[0] if scheme.lower() == "bearer" else ""


def _cookies(header: str, wanted: str) -> Iterator[str]:
    """The values of a cookie; one that is empty has been taken away by the application."""
    for pair in header.split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == wanted and (value := value.strip().strip('"')):
            yield value


def _key_id(part: str) -> str | None:
    """The key that a token's header names, of a header that asks for nothing else."""
    try:
        header = read_json(base64url_decode(part))
    except ValueError:
        raise InvalidToken("the token's header cannot be read") from None
    if not isinstance(header, dict) or not isinstance(header.get("alg"), str):
        raise InvalidToken("the token's header names no alg")
    if "crit" in header or "b64" in header:
        # RFC 7515, 4.1.11: what must be understood and is not.
        raise InvalidToken("the token's header has extensions, which are not known here")
    key_id = header.get("kid")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID):
        raise InvalidToken("the token's kid cannot be used")
    return key_id


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or else by its path; what is null is there, and of no use."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        if not isinstance(value, dict):
            raise ValueError(f"{name} leads into something that is no object")
        if (value := value.get(step, _MISSING)) is _MISSING:
            break
    return value


def _list(claims: Mapping[str, Any], name: str) -> list[Any] | None:
    value = _claim(claims, name)
    if value is _MISSING:
        return None
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    return value


def _text(value: object, name: str) -> str:
    """Text that can be written again: not empty, no control characters, no half characters."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} has something that is no text, or empty")
    if _CONTROL.search(value):
        raise ValueError(f"{name} has control characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half of a surrogate pair") from None
    return value


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A time in seconds since the epoch; None where there is none."""
    value = claims.get(name, _MISSING)
    if value is _MISSING:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e15:
        raise InvalidToken(f"the token's {name} is no time in seconds")
    return float(value)
