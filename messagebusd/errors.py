"""Every error this package raises on purpose.

::

    MessageBusError
    ├── RequestError               the caller must change something; knows status and code
    │   ├── MalformedRequest       400 invalid_json, invalid_request, unknown_field
    │   ├── LimitExceeded          400 or 413, a limit of SPEC 2.9 or 3.1
    │   ├── InvalidChannel         400 invalid_channel
    │   ├── ReservedChannel        422 reserved_channel
    │   ├── InvalidAudience        422 invalid_audience, restricted_global, audience_required
    │   ├── Unauthorized           401 unauthorized
    │   │   └── InvalidToken       401 invalid_token
    │   ├── Forbidden              403 forbidden
    │   ├── NotFound               404 not_found
    │   ├── MethodNotAllowed       405 method_not_allowed
    │   ├── RequestTimeout         408 request_timeout
    │   ├── IdempotencyConflict    422 idempotency_conflict
    │   └── RateLimited            429 rate_limited, with retry_after
    ├── LookupRefused              the host application answered a lookup with 4xx: pass it on
    ├── LookupUnavailable          the host application could not be asked
    │   └── LookupUnusable         it answered, but nothing that can be used
    ├── StoreUnavailable           the store cannot be reached
    │   └── StoreRefused           it works, but will never take this
    ├── SnapshotError              the snapshot file cannot be read or written
    └── ConfigurationError         the settings are wrong

Text is composed from attributes, so that nobody needs to match on strings. The HTTP floor turns
a ``RequestError`` into a problem document in one place (``http/problems.py``).
"""

from __future__ import annotations

from collections.abc import Mapping


class MessageBusError(Exception):
    """Base of everything below."""


def problems_of(error: Exception) -> list[str]:
    """What to say of an error that ends the process, or keeps it from changing."""
    if isinstance(error, ConfigurationError):
        return error.problems
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return [error.strerror]  # as text it begins with "[Errno 98]"
    return [str(error)]


class RequestError(MessageBusError):
    """The request cannot be served as it is.

    ``status`` is the HTTP status, ``code`` the stable machine-readable reason (SPEC 4), and
    ``detail`` a sentence for the developer at the other end. It never holds secrets.
    """

    status: int = 400
    code: str = "invalid_request"

    def __init__(self, detail: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that belong to this error's answer."""
        return {}

    @property
    def counted_as(self) -> str:
        """What the metrics call it."""
        return self.code


class MalformedRequest(RequestError):
    """The request is not written in the form that the interface documents."""


class LimitExceeded(RequestError):
    """The request is larger than a configured limit allows."""

    code = "limit_exceeded"


class InvalidChannel(RequestError):
    """The channel name cannot be used."""

    code = "invalid_channel"


class ReservedChannel(InvalidChannel):
    """The channel belongs to the bus itself."""

    status = 422
    code = "reserved_channel"


class InvalidAudience(RequestError):
    """The audience says nobody, or something that has no meaning, or is missing."""

    status = 422
    code = "invalid_audience"


class Unauthorized(RequestError):
    """No key, or one that is not known or no longer valid."""

    status = 401
    code = "unauthorized"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class InvalidToken(Unauthorized):
    """A subscriber's token says nothing that can be believed, or nothing any more."""

    code = "invalid_token"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class Forbidden(RequestError):
    """The key is known, but it does not allow this."""

    status = 403
    code = "forbidden"


class NotFound(RequestError):
    """There is nothing here by that name."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """The resource exists, the method does not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"{method} is not allowed here, only {', '.join(allowed)}")
        self.allowed = allowed

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Allow": ", ".join(self.allowed)}


class RequestTimeout(RequestError):
    """The rest of the request did not come in time."""

    status = 408
    code = "request_timeout"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Connection": "close"}


class IdempotencyConflict(RequestError):
    """The idempotency key was used before with another request."""

    status = 422
    code = "idempotency_conflict"

    def __init__(self) -> None:
        super().__init__("this idempotency key was used before, with another request")


class RateLimited(RequestError):
    """Come back later; ``retry_after`` is in whole seconds, ``limit`` says which one it was."""

    status = 429
    code = "rate_limited"

    def __init__(self, detail: str, *, retry_after: int, limit: str | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.limit = limit

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after)}

    @property
    def counted_as(self) -> str:
        return self.code if self.limit is None else f"{self.code}_{self.limit}"


class LookupRefused(MessageBusError):
    """The host application does not let this visitor poll: its answer is passed on.

    ``headers`` have their names in lower case, and may name one more than once.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(f"lookup answered {status}")
        self.status = status
        self.body = body
        self.headers = headers


class LookupUnavailable(MessageBusError):
    """The host application could not be asked, or did not answer in a usable way."""


class LookupUnusable(LookupUnavailable):
    """It answered this lookup, but nothing that can be used: it is there, for others at least."""


class StoreUnavailable(MessageBusError):
    """The store cannot be reached or does not answer in time."""


class StoreRefused(StoreUnavailable):
    """The store works, but this it does not take, however often it is tried."""


class SnapshotError(MessageBusError):
    """The memory store's snapshot file cannot be read or written."""


class ConfigurationError(MessageBusError):
    """The settings cannot be used; ``problems`` names each one."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
