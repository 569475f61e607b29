"""Mint tokens for subscribers: JSON Web Tokens that messagebusd reads in lookup mode ``jwt``.

HS256 with the standard library alone. Whoever has the secret can be anybody: keep it on servers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

from messagebus_client import _json
from messagebus_client.types import Data, Id

_MIN_SECRET_BYTES = 32


def mint_token(
    secret: str | bytes,
    user_id: Id | None,
    *,
    expires_in: float,
    group_ids: Sequence[Id] | None = None,
    site_id: str | None = None,
    channels: Sequence[str] | None = None,
    audience: str | None = None,
    claims: Mapping[str, Data] | None = None,
    now: float | None = None,
) -> str:
    """Return a token that says who a subscriber is, for ``expires_in`` seconds from ``now``.

    A poll ends when its token expires. ``user_id`` None is an anonymous visitor, ``channels`` are
    patterns of what may be subscribed to, such as ``/chat/*``. Name the daemon's
    ``lookup.jwt.audience`` where the secret also signs other tokens. ``claims`` are added, or take
    the place of the others, for example where the daemon is told to read other names. Raises
    ValueError for a secret of fewer than 32 bytes, which could be guessed (RFC 7518, 3.2).
    """
    key = secret.encode() if isinstance(secret, str) else secret
    if len(key) < _MIN_SECRET_BYTES:
        raise ValueError(f"the secret must have at least {_MIN_SECRET_BYTES} bytes")
    issued_at = int(time.time() if now is None else now)
    payload: dict[str, Data] = {"iat": issued_at, "exp": issued_at + int(expires_in)}
    named = {
        "sub": user_id,
        "groups": group_ids,
        "site": site_id,
        "channels": channels,
        "aud": audience,
    }
    payload |= {name: value for name, value in named.items() if value is not None}
    payload |= claims or {}
    text = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(payload)}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).digest()
    return f"{text}.{_base64url(signature)}"


def _part(document: Mapping[str, Data]) -> str:
    return _base64url(_json.encode(document))


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
