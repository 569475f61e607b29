"""Every error that this package raises on purpose.

::

    MessageBusError
    ├── ConnectionFailed        nobody answered, in time, or the answer broke off
    ├── UnexpectedAnswer        what answered is not understood: is it messagebusd?
    ├── RequestRefused          the daemon said no; knows status, code, detail, request_id
    │   ├── InvalidRequest          400, 404, 413, 422: the request must be changed
    │   ├── NotAllowed              401, 403: the key must be changed
    │   └── TemporarilyRefused      429, 503: the same request may succeed later; retry_after
    └── InvalidWebhook          a webhook that must not be trusted; knows the reason

``code`` is stable over versions (docs/http-api.md lists them all), so nobody needs to match texts.
A wrong argument is a plain ValueError or TypeError.
"""

from __future__ import annotations

import enum


class MessageBusError(Exception):
    """Base of everything below."""


class ConnectionFailed(MessageBusError):
    """The daemon was not reached, or its answer broke off; the cause is in ``__cause__``."""


class UnexpectedAnswer(MessageBusError):
    """The answer is not what messagebusd would say. Probably the URL is another server's."""


class RequestRefused(MessageBusError):
    """The daemon refused. ``code`` is its reason; empty if a proxy answered in its place."""

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(f"{status} {code}: {detail}" if code else f"{status}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id


class InvalidRequest(RequestRefused):
    """The request cannot be carried out as it is, however often it is sent."""


class NotAllowed(RequestRefused):
    """The key is missing, unknown or expired (401), or does not allow this (403)."""


class TemporarilyRefused(RequestRefused):
    """Not now: too much at present (429), or the store is away (503).

    ``retry_after`` are the seconds after which to come back, if the daemon said so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, request_id)
        self.retry_after = retry_after


class WebhookFault(enum.Enum):
    """What is wrong with a webhook."""

    MISSING_HEADER = "missing_header"
    INVALID_TIMESTAMP = "invalid_timestamp"
    TOO_OLD = "too_old"
    TOO_NEW = "too_new"
    NO_MATCHING_SIGNATURE = "no_matching_signature"


class InvalidWebhook(MessageBusError):
    """A webhook is not from whom it should be, or not of now. Answer it with 401."""

    def __init__(self, reason: WebhookFault) -> None:
        super().__init__(f"the webhook is not to be trusted: {reason.value}")
        self.reason = reason
