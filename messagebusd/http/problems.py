"""Errors as answers: problem documents (RFC 9457), built in this one place."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from aiohttp import web

from messagebusd.errors import RequestError

PROBLEM_TYPE = "application/problem+json"
_REQUEST_ID_LENGTH = 64
_REQUEST_ID = web.RequestKey("request_id", str)


def request_id(request: web.BaseRequest) -> str:
    """The caller's ``X-Request-Id`` if it is fit for logs, else one of our own."""
    known = request.get(_REQUEST_ID)
    if known is None:
        sent = request.headers.get("X-Request-Id", "")
        usable = sent.isascii() and sent.isprintable() and 0 < len(sent) <= _REQUEST_ID_LENGTH
        known = request[_REQUEST_ID] = sent if usable else secrets.token_hex(8)
    return known


def problem(status: int, code: str, detail: str, request_id: str) -> dict[str, object]:
    """The members of a problem document."""
    return {
        "type": f"urn:messagebusd:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def problem_response(
    request: web.BaseRequest,
    error: RequestError,
    headers: Iterable[tuple[str, str]] = (),
) -> web.Response:
    """A RequestError as an answer; ``headers`` are those of the route, the error's own win."""
    identifier = request_id(request)
    response = web.Response(
        status=error.status,
        body=msgspec.json.encode(problem(error.status, error.code, error.detail, identifier)),
        headers=headers,
    )
    response.headers.update(error.headers)
    response.headers["Content-Type"] = PROBLEM_TYPE
    response.headers["X-Request-Id"] = identifier
    if error.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        # The rest of the body would be taken for the next request, or waited for.
        response.force_close()
    return response
