"""Who is logged in to the admin page.

People log in with an API key. From then on a cookie stands for it: signed, and worth nothing
without a secret that is made at start and that all workers of a daemon share, so that any of them
can read it and nothing has to be kept. It names the key without telling it, and what the key may do
is looked up every time: where it is taken out of the configuration or changed, its sessions end.

A session ends with its key, ``IDLE_SECONDS`` after somebody last did something, and
``ABSOLUTE_SECONDS`` after the login. Who logs out is told to the other workers, and one that begins
asks them; until it would have ended anyway the session is remembered as ended.

Browsers send cookies with whatever asks for them. So a request counts only if the page itself made
it: it carries a header that no other origin may send, and what the browser says of its origin, if
it does, is true of the page.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from messagebusd.errors import Forbidden, Unauthorized
from messagebusd.http.auth import Key, KeyRing
from messagebusd.identity.base import RequestHeaders

COOKIE = "messagebusd_admin"
# Where the page and all that it asks for are served; the cookie is sent there only.
PATH = "/admin/"
# The page sends it with everything. Its value says whether somebody is sitting in front of it.
HEADER = "X-Messagebusd-Admin"
ACTIVE = "active"

IDLE_SECONDS = 30 * 60
ABSOLUTE_SECONDS = 12 * 60 * 60
# A cookie younger than this is not made anew.
_RENEWAL_SECONDS = 60
MAX_ENDED = 10_000
# Pages of other ports can add cookies of the same name; so many are tried.
_MAX_COOKIES = 8


class Headed(Protocol):
    """Whatever has a request's headers."""

    @property
    def headers(self) -> RequestHeaders: ...


class _Claims(msgspec.Struct, array_like=True, frozen=True):
    """What a cookie says. Times are whole seconds since the epoch."""

    session: str
    key: str
    proof: str
    began_at: int
    seen_at: int
    is_safe: bool


class Ended(msgspec.Struct, array_like=True):
    """What was ended before its time: sessions, with when they would have ended by themselves, and
    all that began before a certain time."""

    sessions: dict[str, float] = {}
    before: int = 0


@dataclass(frozen=True, slots=True)
class SessionKey(Key):
    """The key of somebody who is logged in; it expires with the session.

    ``is_safe`` says that the cookie travels by https only.
    """

    session: str = ""
    began_at: int = 0
    seen_at: int = 0
    is_safe: bool = False


class Sessions(KeyRing):
    """The keys of ``ring``, for those who show a cookie in their place.

    ``secret`` signs; ``wall`` is the time of day, in seconds since the epoch.
    """

    def __init__(self, ring: KeyRing, secret: bytes, wall: Callable[[], float] = time.time) -> None:
        super().__init__((), wall)
        self._ring = ring
        self._secret = secret
        self.ended = Ended()

    def begin(self, key: Key, request: Headed) -> SessionKey:
        """A new session of this key."""
        now = int(self._wall())
        # Behind a proxy that ends TLS only the browser knows how the page came to it.
        is_safe = request.headers.get("Origin", "").startswith("https:")
        claims = _Claims(secrets.token_urlsafe(18), key.name, "", now, now, is_safe)
        return self._session(key, claims)

    def set_cookie(self, key: SessionKey) -> str:
        """The header that gives a session, seen now, its cookie."""
        proof, now = self._proof(key), int(self._wall())
        claims = _Claims(key.session, key.name, proof, key.began_at, now, key.is_safe)
        content = _encode(msgspec.json.encode(claims))
        return _set_cookie(f"{content}.{self._sign(content)}", IDLE_SECONDS, key)

    def clear_cookie(self, key: SessionKey) -> str:
        """The header that takes it away."""
        return _set_cookie("", 0, key)

    def end(self, session: str) -> None:
        """Take this session for no longer valid. Twice is harmless."""
        self.learn(Ended({session: self._wall() + ABSOLUTE_SECONDS}))

    def learn(self, ended: Ended) -> None:
        """Take these for no longer valid, too."""
        now, ours = self._wall(), self.ended
        if len(ours.sessions) + len(ended.sessions) > MAX_ENDED:
            ours.sessions = {each: until for each, until in ours.sessions.items() if until > now}
        ours.before = max(ours.before, ended.before)
        if len(ours.sessions) + len(ended.sessions) > MAX_ENDED:
            # Rather all have to log in again than one that was ended comes back.
            ours.sessions = {}
            ours.before = int(now) + 1
        ours.sessions |= ended.sessions

    def identify(self, request: Headed) -> SessionKey:
        """Who is logged in. Raises Unauthorized, or Forbidden if the page did not ask."""
        require_page(request)
        for value in _cookies(request):
            if (key := self._verified(value)) is not None:
                return key
        raise Unauthorized("log in first, or again: this session has ended")

    def is_valid(self, key: Key) -> bool:
        """Whether the key, which is somebody's who is logged in, is valid and has not ended."""
        ended = isinstance(key, SessionKey) and self._is_ended(key.session, key.began_at)
        return not ended and self._ring.is_valid(key)

    def needs_renewal(self, key: SessionKey, request: Headed) -> bool:
        """Whether somebody does something, and has not been seen doing so just now."""
        is_active = request.headers.get(HEADER, "") == ACTIVE
        return is_active and self._wall() - key.seen_at >= _RENEWAL_SECONDS

    def _verified(self, value: str) -> SessionKey | None:
        content, _, signature = value.partition(".")
        if not hmac.compare_digest(
            self._sign(content).encode(), signature.encode("utf-8", "replace")
        ):
            return None
        # It is ours: what it says is what `cookie` wrote.
        claims = msgspec.json.decode(_decode(content), type=_Claims)
        key = self._ring.named(claims.key)
        if key is None or not hmac.compare_digest(self._proof(key), claims.proof):
            return None
        if self._wall() >= claims.seen_at + IDLE_SECONDS:
            return None
        session = self._session(key, claims)
        return session if self.is_valid(session) else None

    def _is_ended(self, session: str, began_at: int) -> bool:
        return session in self.ended.sessions or began_at < self.ended.before

    def _session(self, key: Key, claims: _Claims) -> SessionKey:
        ends_at = float(claims.began_at + ABSOLUTE_SECONDS)
        rights = {each.name: getattr(key, each.name) for each in fields(Key)}
        rights["expires_at"] = min(ends_at, key.expires_at or ends_at)
        return SessionKey(
            **rights,
            session=claims.session,
            began_at=claims.began_at,
            seen_at=claims.seen_at,
            is_safe=claims.is_safe,
        )

    def _proof(self, key: Key) -> str:
        """What only this key has under this name; it does not tell the key."""
        return self._sign(f"key {key.digest.hex()}")

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def require_page(request: Headed) -> None:
    """Raise Forbidden unless it is the page of this origin that asks."""
    headers = request.headers
    # The first is told only where the connection is safe, the other one only with changes.
    fetch_site, origin = headers.get("Sec-Fetch-Site", ""), headers.get("Origin", "")
    if fetch_site:
        is_own = fetch_site == "same-origin"
    else:
        is_own = not origin or _authority(origin) == headers.get("Host", "").lower()
    if not is_own or not headers.get(HEADER, ""):
        raise Forbidden("only the admin page itself may ask here")


def _set_cookie(value: str, max_age: int, key: SessionKey) -> str:
    attributes = f"Max-Age={max_age}; Path={PATH}; HttpOnly; SameSite=Strict"
    return f"{COOKIE}={value}; {attributes}{'; Secure' if key.is_safe else ''}"


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _cookies(request: Headed) -> Iterator[str]:
    found = 0
    for line in request.headers.getall("Cookie", ()):
        for pair in line.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE and found < _MAX_COOKIES:
                found += 1
                yield value


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
