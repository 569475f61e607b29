"""Errors as answers: problem documents (RFC 9457), built in this one place."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from multidict import CIMultiDict

from messagebusd.errors import RequestError
from messagebusd.http.call import Answer

PROBLEM_TYPE = "application/problem+json"


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


def problem_answer(
    error: RequestError, request_id: str, headers: Iterable[tuple[str, str]] = ()
) -> Answer:
    """A RequestError as an answer; ``headers`` are those of the route, the error's own win."""
    merged = CIMultiDict(headers)
    merged.update(error.headers)
    merged["Content-Type"] = PROBLEM_TYPE
    merged["X-Request-Id"] = request_id
    document = problem(error.status, error.code, error.detail, request_id)
    # The rest of a body would be taken for the next request, or waited for.
    unread = error.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT)
    return Answer(error.status, msgspec.json.encode(document), tuple(merged.items()), closes=unread)
