"""The header ``Idempotency-Key``: publish once, however often the request is sent (SPEC 4).

A publisher whose connection broke cannot know whether its message was taken. It sends the request
again with the same key, and gets the first answer. The store remembers, see `backends.base`: a key
belongs to one API key and one call, and used again with another body it is refused. Only what was
published is remembered: a refused request may be corrected and sent with its key again.
"""

from __future__ import annotations

import hashlib

from messagebusd.backends.base import Once
from messagebusd.errors import MalformedRequest
from messagebusd.http.call import Headed

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
MAX_KEY_LENGTH = 255


def idempotency_key(request: Headed) -> str | None:
    """The request's key, if it has one. Raises MalformedRequest."""
    sent = request.headers.getall(HEADER, ())
    if not sent:
        return None
    key = sent[0]
    usable = key.isascii() and key.isprintable() and 0 < len(key) <= MAX_KEY_LENGTH
    if len(sent) > 1 or not usable:
        raise MalformedRequest(
            f"{HEADER} must be one value of 1 to {MAX_KEY_LENGTH} printable ASCII characters",
            code="invalid_idempotency_key",
        )
    return key


class OnceOnly:
    """One request with a key: what the store knows it by, as a whole and message by message.

    ``caller`` and ``call`` are the API key's name and the route.
    """

    def __init__(self, caller: str, call: str, key: str, body: bytes) -> None:
        self._parts = (caller.encode(), call.encode(), key.encode())
        self._fingerprint = _digest(body)

    @property
    def whole(self) -> Once:
        return Once(_digest(*self._parts), self._fingerprint)

    def message(self, index: int) -> Once:
        """For the message at this place of a batch."""
        return Once(_digest(*self._parts, b"%d" % index), self._fingerprint)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
