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
from messagebusd.http.problems import problem_response, request_id
from messagebusd.metrics import Metrics

API_PREFIX = "/api/"
# A store that comes back is not met by everybody in the same second.
RETRY_AFTER_SECONDS = (1, 5)

_HEADERS = {"Cache-Control": "no-store"}

_log = logging.getLogger(__name__)


def problem_middleware(metrics: Metrics) -> Middleware:
    """Answer every error with a problem, and count it. Cancellation passes."""

    def answer(request: web.Request, error: RequestError, **headers: str) -> web.Response:
        door = "api" if request.path.startswith(API_PREFIX) else "http"
        metrics.refused(door, error.counted_as)
        return problem_response(request, error, {**_HEADERS, **headers}.items())

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return answer(request, error)
        except StoreUnavailable as error:
            _log.warning(
                "store unavailable",
                extra={"reason": str(error), "request_id": request_id(request)},
            )
            headers = {"Retry-After": str(random.randint(*RETRY_AFTER_SECONDS))}
            return answer(request, store_unavailable(), **headers)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return answer(request, _translate(request, error))
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                # The client has gone while its body was read: nobody is left to answer.
                return web.Response(status=400)
            _log.exception("request failed", extra={"request_id": request_id(request)})
            return answer(request, internal_error())

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
