"""Who may call the API: keys, what they allow, and how a request shows one (SPEC 4).

A key is sent as ``Authorization: Bearer <key>`` and nowhere else: query strings end up in logs.
Only SHA-256 digests of keys are kept here. A request's digest is compared with all of them, each
in constant time, so that the time of an answer tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from messagebusd.errors import ConfigurationError, Forbidden, Unauthorized
from messagebusd.http.call import Headed
from messagebusd.http.limits import take_messages
from messagebusd.protocol.channels import GLOBAL_PREFIX, ChannelPatterns
from messagebusd.protocol.ratelimit import Bucket
from messagebusd.settings import ApiKey, ApiSettings, Rate, Scope

# The names of the keys that are no entry of api.keys; the space keeps them apart from those.
SINGLE_KEY_NAME = "api key"
GENERATED_KEY_NAME = "generated key"

_ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Key:
    """What a key may do; None stands for all channels, all sites, never, and as much as it likes.

    ``expires_at`` is in seconds since the epoch; ``allowance`` counts published messages, so many
    (``rate``) at most.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope] = _ALL_SCOPES
    channels: ChannelPatterns | None = None
    sites: tuple[str, ...] | None = None
    expires_at: float | None = None
    rate: Rate | None = None
    allowance: Bucket | None = None

    def may_do_as(self, other: Key) -> bool:
        """Whether it is the same key as the other one and may do the same, however often."""
        return self._rights() == other._rights()

    def _rights(self) -> tuple[object, ...]:
        patterns = None if self.channels is None else self.channels.patterns
        return (self.name, self.digest, self.scopes, patterns, self.sites)

    def require_scope(self, scope: Scope) -> None:
        """Raise Forbidden unless the key has this scope."""
        if scope not in self.scopes:
            raise Forbidden(f"this call needs the scope {scope!r}, which this key does not have")

    def require_channel(self, channel: str, site_id: str | None, *, changes: bool = False) -> None:
        """Raise Forbidden unless the key may be used for this channel of this site.

        ``changes`` says that more than reading is meant: on a ``/global/`` channel that concerns
        every site.
        """
        if self.channels is not None and channel not in self.channels:
            raise Forbidden(f"this key may be used for the channels {self.channels} only")
        if self.sites is None:
            return
        self.require_site(site_id)
        if changes and channel.startswith(GLOBAL_PREFIX):
            raise Forbidden(
                f"{GLOBAL_PREFIX} channels belong to all sites, and this key is for "
                f"{', '.join(self.sites)} only"
            )

    def require_site(self, site_id: str | None) -> None:
        """Raise Forbidden unless the key may be used for this site; None is no certain one."""
        if self.sites is not None and site_id not in self.sites:
            raise Forbidden(f"this key may be used with the site_id {' or '.join(self.sites)} only")

    def count(self, messages: int) -> None:
        """Raise RateLimited unless the key may publish so many messages now."""
        if self.allowance is not None:
            take_messages(self.allowance, messages)

    def require_all_channels(self) -> None:
        """Raise Forbidden if the key is for certain channels: the call concerns all of them."""
        if self.channels is not None:
            raise Forbidden(
                f"this call concerns all channels, and this key is for {self.channels} only"
            )

    def require_unrestricted(self) -> None:
        """Raise Forbidden if the key is for certain channels or sites."""
        self.require_all_channels()
        if self.sites is not None:
            raise Forbidden(
                f"this call concerns all sites, and this key is for {', '.join(self.sites)} only"
            )


class KeyRing:
    """All keys that are valid here. ``wall`` is the time of day, in seconds since the epoch.

    The ring stays when settings change: it takes over the keys of another one (`adopt`).
    """

    def __init__(self, keys: Sequence[Key], wall: Callable[[], float] = time.time) -> None:
        self._keys = tuple(keys)
        self._wall = wall
        names: dict[bytes, str] = {}
        for key in self._keys:
            if (other := names.setdefault(key.digest, key.name)) != key.name:
                raise ConfigurationError([f"api: {other!r} and {key.name!r} are the same key"])

    @classmethod
    def from_settings(
        cls,
        settings: ApiSettings,
        generated_key: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> KeyRing:
        """The keys of the settings, and one made at start. Raises ConfigurationError."""
        keys = [_configured(each) for each in settings.keys]
        if settings.key is not None:
            token = digest(settings.key.get_secret_value())
            rate = settings.key_rate
            keys.append(Key(SINGLE_KEY_NAME, token, rate=rate, allowance=_allowance(rate)))
        if generated_key is not None:
            keys.append(Key(GENERATED_KEY_NAME, digest(generated_key)))
        return cls(keys, wall)

    def adopt(self, other: KeyRing) -> None:
        """Have these keys from now on; a key that stays keeps what it has used of its allowance."""
        digests = {each.digest for each in other._keys}
        self._keys = tuple(self._with_allowance(each, digests) for each in other._keys)

    def _with_allowance(self, key: Key, staying: Collection[bytes]) -> Key:
        """``staying`` are the digests of all keys: one of them keeps its allowance for itself, also
        where its name is another key's from now on."""
        known = self._find(key.digest)
        if known is None and (namesake := self.named(key.name)) is not None:
            known = None if namesake.digest in staying else namesake
        if known is None or known.allowance is None or key.rate is None:
            return key
        known.allowance.change(key.rate.amount, key.rate.seconds)
        return replace(key, allowance=known.allowance)

    def authorize(self, request: Headed, scope: Scope) -> Key:
        """The request's key, which has this scope. Raises Unauthorized or Forbidden."""
        key = self.identify(request)
        key.require_scope(scope)
        return key

    def identify(self, request: Headed) -> Key:
        """The request's key. Raises Unauthorized."""
        sent = request.headers.getall("Authorization", ())
        if not sent:
            raise Unauthorized("this call needs a key: Authorization: Bearer <key>")
        scheme, _, token = sent[0].strip().partition(" ")
        token = token.strip()
        if len(sent) > 1 or scheme.lower() != "bearer" or not token:
            raise Unauthorized("a key is sent as one header, Authorization: Bearer <key>")
        return self.recognise(token)

    def recognise(self, token: str) -> Key:
        """The key that this is. Raises Unauthorized."""
        key = self._find(digest(token))
        if key is None:
            raise Unauthorized("this key is not known")
        if key.expires_at is not None and self._wall() >= key.expires_at:
            raise Unauthorized("this key has expired")
        return key

    def named(self, name: str) -> Key | None:
        """The key of this name."""
        return next((each for each in self._keys if each.name == name), None)

    def is_valid(self, key: Key) -> bool:
        """Whether the key is still one of these, may still do the same, and has not expired."""
        known = self._find(key.digest)
        if known is None or not known.may_do_as(key):
            return False
        now = self._wall()
        return all(each.expires_at is None or now < each.expires_at for each in (key, known))

    def _find(self, wanted: bytes) -> Key | None:
        found = None
        for key in self._keys:  # all of them, whichever it is
            if hmac.compare_digest(key.digest, wanted):
                found = key
        return found


def digest(token: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _configured(key: ApiKey) -> Key:
    if key.token is not None:
        kept = digest(key.token.get_secret_value())
    else:
        assert key.sha256 is not None  # the settings checked that there is one of both
        kept = bytes.fromhex(key.sha256)
    return Key(
        key.name,
        kept,
        frozenset(key.scopes),
        None if key.channels is None else ChannelPatterns(key.channels),
        key.sites,
        None if key.expires is None else key.expires.timestamp(),
        key.rate,
        _allowance(key.rate),
    )


def _allowance(rate: Rate | None) -> Bucket | None:
    return None if rate is None else Bucket(rate.amount, rate.seconds, time.monotonic)
