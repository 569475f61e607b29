"""A call to the API as a *flow*: what to ask, when to ask again, what the answer means.

A flow is a generator that yields requests and pauses and is sent answers; it does no I/O of its
own, so that `Client` and `AsyncClient` share every rule. `_http` carries flows out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from messagebus_client import _json, _schedule
from messagebus_client._schedule import Random
from messagebus_client.errors import (
    ConnectionFailed,
    InvalidRequest,
    MessageBusError,
    NotAllowed,
    RequestRefused,
    TemporarilyRefused,
    UnexpectedAnswer,
)

T = TypeVar("T")

_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 5.0
_MAX_DETAIL = 500
# What proxies answer when they do not reach the daemon.
_NOT_REACHED = (502, 504)


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` is below the daemon's URL. The query's None values are left out."""

    method: str
    path: str
    query: Mapping[str, str | int | list[str] | None] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as a whole; the names of ``headers`` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Flow: TypeAlias = Generator[Request | Pause, Any, T]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: ``seconds`` altogether, by a monotonic ``clock``."""

    seconds: float
    clock: Callable[[], float]
    random: Random

    def deadline(self) -> float:
        return self.clock() + self.seconds


def send(request: Request, patience: Patience) -> Flow[Response]:
    """Ask until there is an answer, and return it if it is a good one.

    Connection failures, 429 and 503 are tried again, within the time that ``patience`` allows:
    only for requests that may be sent twice. Raises MessageBusError.
    """
    deadline = patience.deadline()
    attempt = 0
    while True:
        try:
            response: Response = yield request
            check(response)
        except (ConnectionFailed, TemporarilyRefused) as error:
            delay = retry_delay(error, attempt, patience.random)
            if patience.clock() + delay >= deadline:
                raise
            attempt += 1
            yield Pause(delay)
        else:
            return response


def retry_delay(
    error: MessageBusError,
    attempt: int,
    random: Random,
    base: float = _BACKOFF_SECONDS,
    limit: float = _MAX_BACKOFF_SECONDS,
) -> float:
    """Seconds to wait after this failure."""
    retry_after = error.retry_after if isinstance(error, TemporarilyRefused) else None
    return _schedule.after_refusal(attempt, retry_after, base, limit, random)


def check(response: Response) -> None:
    """Raise the error that an answer stands for, if it is none of 2xx."""
    status = response.status
    if 200 <= status < 300:
        return
    if status in _NOT_REACHED:
        raise ConnectionFailed(f"a proxy does not reach the daemon: {status}")
    code, detail, request_id = _problem(response)
    match status:
        case 401 | 403:
            raise NotAllowed(status, code, detail, request_id)
        case 429 | 503:
            retry_after = _schedule.retry_after_seconds(response.headers.get("retry-after"))
            raise TemporarilyRefused(status, code, detail, request_id, retry_after)
        case _ if 400 <= status < 500:
            raise InvalidRequest(status, code, detail, request_id)
        case _ if status >= 500:
            raise RequestRefused(status, code, detail, request_id)
        case _:
            raise UnexpectedAnswer(f"an answer with status {status}; is the URL right?")


def refusal(problem: Any) -> RequestRefused:
    """The error that a problem document within an answer stands for."""
    status = problem.get("status") if isinstance(problem, dict) else None
    if not isinstance(status, int) or not 400 <= status <= 599:
        raise UnexpectedAnswer("a refusal that gives no status")
    try:
        check(Response(status, {}, _json.encode(problem)))
    except RequestRefused as error:
        return error
    raise UnexpectedAnswer(f"a refusal with status {status}")


def _problem(response: Response) -> tuple[str, str, str | None]:
    """Code, detail and request id of a problem document; anything else is quoted."""
    try:
        document = _json.decode(response.body)
    except UnexpectedAnswer:
        document = None
    if isinstance(document, dict) and isinstance(document.get("code"), str):
        request_id = document.get("request_id")
        detail = str(document.get("detail", ""))[:_MAX_DETAIL]
        return document["code"], detail, request_id if isinstance(request_id, str) else None
    text = response.body[:_MAX_DETAIL].decode("utf-8", "replace")
    return "", text or "no reason given", None
