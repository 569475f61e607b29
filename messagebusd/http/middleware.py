"""Errors become problem documents here: the API's, and those of paths that nobody serves.

The subscribers' door answers its own errors, because its answers carry headers of their own.
"""

from __future__ import annotations

import logging
import random

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from messagebusd.errors import (
    LimitExceeded,
    MethodNotAllowed,
    NotFound,
    RequestError,
    StoreUnavailable,
)
from messagebusd.http.call import Answer, request_id, to_response
from messagebusd.http.problems import problem_answer
from messagebusd.metrics import Metrics

API_PREFIX = "/api/"
# A store that comes back is not met by everybody in the same second.
RETRY_AFTER_SECONDS = (1, 5)

_log = logging.getLogger(__name__)


class Errors:
    """Answers every error with a problem, and counts it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answer(self, error: Exception, path: str, request_id: str) -> Answer:
        """What a call of this path is told."""
        headers = {"Cache-Control": "no-store"}
        match error:
            case RequestError():
                told = error
            case StoreUnavailable():
                _log.warning(
                    "store unavailable", extra={"reason": str(error), "request_id": request_id}
                )
                headers["Retry-After"] = str(random.randint(*RETRY_AFTER_SECONDS))
                told = store_unavailable()
            case _:
                _log.error("request failed", exc_info=error, extra={"request_id": request_id})
                told = internal_error()
        door = "api" if path.startswith(API_PREFIX) else "http"
        self._metrics.refused(door, told.counted_as)
        return problem_answer(told, request_id, headers.items())


def problem_middleware(errors: Errors) -> Middleware:
    """Answer every error of aiohttp's handlers, and its own. Cancellation passes."""

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            told: Exception = _translate(request, error)
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                # The client has gone while its body was read: nobody is left to answer.
                return web.Response(status=400)
            told = error
        return to_response(errors.answer(told, request.path, request_id(request)))

    return answer_errors


def store_unavailable() -> RequestError:
    """What callers are told while the store is away; the reason is in the log."""
    return RequestError(
        "the store does not answer, try again later", code="store_unavailable", status=503
    )


def internal_error() -> RequestError:
    """What callers are told of a fault of ours."""
    return RequestError(
        "something went wrong here; the log says more under this request id",
        code="internal_error",
        status=500,
    )


def _translate(request: web.Request, error: web.HTTPException) -> RequestError:
    """What aiohttp refuses by itself, in our words."""
    match error:
        case web.HTTPNotFound():
            return NotFound("there is nothing at this path")
        case web.HTTPMethodNotAllowed():
            return MethodNotAllowed(request.method, tuple(sorted(error.allowed_methods)))
        case web.HTTPRequestEntityTooLarge():
            return LimitExceeded("the body is too large", code="payload_too_large", status=413)
    return RequestError(error.reason, status=error.status)
