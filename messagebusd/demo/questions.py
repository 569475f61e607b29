"""What the daemon asks: who is polling? Signed as standardwebhooks.com says, and checked here.

The address that answers this can be reached by everybody who reaches the chat, so nothing in a
question is believed before its signature has been verified.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping

import msgspec

# How far the clocks may be apart, and how long a recorded question could be asked again.
TOLERANCE_SECONDS = 300


class Question(msgspec.Struct):
    """The part of a question that this application goes by."""

    headers: dict[str, str]


class NotSigned(Exception):
    """The question does not come from the daemon."""


def make_secret() -> str:
    """A secret for the daemon and the application to share."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def read(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Question:
    """Verify and read a question. Raises NotSigned, or msgspec's errors for what is none."""
    identifier = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{identifier}.{timestamp}.".encode(errors="surrogateescape") + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    # Several signatures, while a secret is being replaced.
    given = headers.get("webhook-signature", "").encode(errors="surrogateescape").split()
    if not any(hmac.compare_digest(expected, each) for each in given):
        raise NotSigned
    # After the signature: only the daemon's own numbers are read.
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise NotSigned
    return msgspec.json.decode(body, type=Question)
