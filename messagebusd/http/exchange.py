"""Requests in, answers out: what all calls of the API have in common.

Queries and bodies are read strictly: what a call does not know is refused by name, so that a
misspelt option is noticed where it was written and not where it was missed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any

import msgspec
from aiohttp import web

from messagebusd.errors import MalformedRequest
from messagebusd.http.bodies import read_body
from messagebusd.http.call import Answer, Asked, to_response
from messagebusd.protocol.channels import validate_channel, validate_site
from messagebusd.protocol.message import Id
from messagebusd.protocol.publication import parse_object
from messagebusd.protocol.requests import MAX_ID
from messagebusd.protocol.wire import Headers

# Bodies other than publications: the names of 500 channels of 512 bytes take a quarter of it.
MAX_BODY_BYTES = 1024 * 1024
DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

Position = Annotated[int, msgspec.Meta(ge=-MAX_ID, le=MAX_ID)]
Decode = Callable[[bytes | msgspec.Raw], Any]

NDJSON = "application/x-ndjson"

_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_MAX_JSON_ID = 640
# Names that people give to a key in a query.
_KEY_NAMES = frozenset({"key", "api_key", "apikey", "token", "access_token", "authorization"})


def answer(body: bytes) -> web.Response:
    """JSON text as an answer."""
    return to_response(json_answer(body))


def json_answer(body: bytes, status: int = 200, headers: Headers = ()) -> Answer:
    """JSON text as an answer, for whoever writes it."""
    return Answer(status, body, (*_HEADERS, *headers) if headers else _HEADERS)


class Query:
    """The query's parameters. Raises MalformedRequest for any that the call does not know."""

    def __init__(self, request: Asked, *names: str, repeatable: Collection[str] = ()) -> None:
        self._parameters = request.query
        for name in self._parameters:
            if name not in names:
                raise _unknown(name, names)
            if name not in repeatable and len(self._parameters.getall(name)) > 1:
                raise MalformedRequest(f"the query parameter {name!r} is given more than once")

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def text(self, name: str) -> str | None:
        """The parameter as it is."""
        return self._parameters.get(name)

    def texts(self, name: str) -> list[str]:
        """All values of a repeatable parameter."""
        return self._parameters.getall(name, [])

    def integer(self, name: str, minimum: int = 0, maximum: int = MAX_ID) -> int | None:
        """The parameter as a number in this range."""
        text = self._parameters.get(name)
        if text is None:
            return None
        value = int(text) if _INTEGER.fullmatch(text) else None
        if value is None or not minimum <= value <= maximum:
            raise MalformedRequest(
                f"the query parameter {name!r} must be an integer from {minimum} to {maximum}"
            )
        return value

    def last_id(self) -> int:
        """The id after which to read."""
        return self.integer("last_id") or 0

    def limit(self) -> int:
        """How much to read."""
        limit = self.integer("limit", 1, MAX_LIMIT)
        return DEFAULT_LIMIT if limit is None else limit

    def site_id(self) -> str | None:
        """The site, if one is named."""
        site_id = self._parameters.get("site_id")
        if site_id is not None:
            validate_site(site_id)
        return site_id

    def channel(self, max_bytes: int) -> str:
        """The channel, which must be named."""
        channel = self._parameters.get("channel")
        if channel is None:
            raise MalformedRequest("the query parameter 'channel' is missing")
        validate_channel(channel, max_bytes)
        return channel


def id_of(text: str) -> Id:
    """The id in a query: what is JSON is read as JSON, any other as text, as is what is longer than
    any integer that could be shown."""
    if len(text) > _MAX_JSON_ID:
        return text
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if type(value) in (int, str) else text


def refuse_query(request: Asked) -> None:
    """Raise MalformedRequest if there is a query at all."""
    if request.query:
        Query(request)


def decoder(kind: Any) -> Decode:
    """Read a field as this type, strictly."""
    return msgspec.json.Decoder(kind).decode


async def read_fields(
    request: web.Request,
    timeout_seconds: float,
    fields: dict[str, Decode],
    required: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The fields of a JSON body. Raises RequestError."""
    body = await read_body(request, MAX_BODY_BYTES, timeout_seconds)
    return parse_object(body, fields, required)


def _unknown(name: str, names: Collection[str]) -> MalformedRequest:
    """Names the parameter, never its value: it may be a key in the wrong place."""
    if name.lower() in _KEY_NAMES:
        hint = "; a key is sent as Authorization: Bearer <key>"
    elif near := difflib.get_close_matches(name, names, 1):
        hint = f", did you mean {near[0]!r}?"
    else:
        hint = f"; known here: {', '.join(names)}" if names else "; this call has none"
    return MalformedRequest(f"unknown query parameter {name[:64]!r}{hint}", code="unknown_field")
