"""Check that a webhook comes from messagebusd: signatures as standardwebhooks.com says.

::

    verifier = WebhookVerifier(os.environ["WEBHOOK_SECRET"])

    def lookup(request):                     # of any framework
        verifier.verify(request.body, request.headers)

What is signed are the bytes of the body as they came: verify first, decode then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from messagebus_client.errors import InvalidWebhook, WebhookFault

TOLERANCE_SECONDS = 300

_PREFIX = "whsec_"
_VERSION = "v1,"
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class VerifiedWebhook:
    """Who repeats a webhook gives it the same ``id``. ``timestamp`` is in seconds since 1970."""

    id: str
    timestamp: int


class WebhookVerifier:
    """Verifies webhooks that are signed with one of ``secrets``.

    Each is ``whsec_`` and base64, or plain text, as in the daemon's ``lookup.webhook.secret``. To
    replace one, name both until the daemon signs with the new one. ``tolerance`` are the seconds
    by which a timestamp may be off, either way: it bounds for how long a recorded webhook can be
    repeated.
    """

    def __init__(self, *secrets: str, tolerance: float = TOLERANCE_SECONDS) -> None:
        if not secrets:
            raise ValueError("name at least one secret")
        self._keys = [_key(each) for each in secrets]
        self._tolerance = tolerance

    def verify(
        self, body: bytes | str, headers: Mapping[str, str], now: float | None = None
    ) -> VerifiedWebhook:
        """Check a request's signature and time. Raises InvalidWebhook.

        ``headers`` may be named in any case, also as in a WSGI environment
        (``HTTP_WEBHOOK_ID``).
        """
        identifier = _header(headers, "webhook-id")
        sent_at = _header(headers, "webhook-timestamp")
        signatures = _header(headers, "webhook-signature")
        if not _TIMESTAMP.fullmatch(sent_at):
            raise InvalidWebhook(WebhookFault.INVALID_TIMESTAMP)
        age = (time.time() if now is None else now) - int(sent_at)
        if age > self._tolerance:
            raise InvalidWebhook(WebhookFault.TOO_OLD)
        if age < -self._tolerance:
            raise InvalidWebhook(WebhookFault.TOO_NEW)
        content = body.encode() if isinstance(body, str) else body
        text = f"{identifier}.{sent_at}.".encode() + content
        if not self._is_signed(text, signatures):
            raise InvalidWebhook(WebhookFault.NO_MATCHING_SIGNATURE)
        return VerifiedWebhook(identifier, int(sent_at))

    def sign(self, body: bytes | str, identifier: str, timestamp: int) -> dict[str, str]:
        """Return the three headers, as signed with the first secret: for tests of an endpoint."""
        content = body.encode() if isinstance(body, str) else body
        digest = _digest(self._keys[0], f"{identifier}.{timestamp}.".encode() + content)
        return {
            "webhook-id": identifier,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": _VERSION + base64.b64encode(digest).decode(),
        }

    def _is_signed(self, text: bytes, signatures: str) -> bool:
        """Compare every signature of the known version with every key, in constant time."""
        expected = [base64.b64encode(_digest(key, text)) for key in self._keys]
        is_signed = False
        for signature in signatures.split(" "):
            if signature.startswith(_VERSION):
                given = signature.removeprefix(_VERSION).encode("utf-8", "replace")
                for each in expected:
                    is_signed |= hmac.compare_digest(each, given)
        return is_signed


def _digest(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).digest()


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        key = secret.encode()
    else:
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("what follows whsec_ must be base64") from None
    if not key:
        raise ValueError("the secret is empty")
    return key


def _header(headers: Mapping[str, str], name: str) -> str:
    wanted = (name, f"http_{name.replace('-', '_')}")
    for each, value in headers.items():
        if each.lower() in wanted and value:
            return value
    raise InvalidWebhook(WebhookFault.MISSING_HEADER)
