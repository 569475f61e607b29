"""The parts that the API's description is put together from: calls, parameters, answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from messagebusd.http.exchange import NDJSON
from messagebusd.http.idempotency import REPLAYED_HEADER
from messagebusd.http.openapi_schemas import COUNT, Schema, ref
from messagebusd.http.problems import PROBLEM_TYPE
from messagebusd.http.subscribe import EVENT_STREAM
from messagebusd.settings import Scope

JSON = "application/json"
ITEM_SCHEMA = "x-item-schema"
"""Beside the schema of a stream: the shape of each of its lines or events."""

Operation = dict[str, Any]

PROBLEMS = {
    400: "The request is not as described here",
    401: "No key, or none that is valid",
    403: "The key does not allow this",
    404: "There is no such thing",
    408: "The body did not come in time",
    413: "The data or the body is too large",
    422: "What is asked for cannot be done",
    429: "Too much at present",
    500: "A fault of the daemon",
    503: "The store does not answer",
}
_BODY_PROBLEMS = {408, 413}

TEXT: Schema = {"type": "string"}


def operation(
    name: str,
    summary: str,
    scope: Scope | None = "read",
    answer: dict[str, Any] | None = None,
    *,
    parameters: list[Schema] | None = None,
    body: dict[str, Schema] | None = None,
    items: dict[str, str] | None = None,
    problems: tuple[int, ...] = (),
) -> Operation:
    """One call. Problems that any call of its kind may have need not be named."""
    statuses = {400, 500, *problems}
    call: Operation = {"operationId": name, "summary": summary}
    if scope is None:
        call["security"] = []
    else:
        call["security"] = [{"key": [scope]}]
        statuses |= {401, 403}
    if parameters:
        call["parameters"] = parameters
    if body is not None:
        statuses |= _BODY_PROBLEMS
        kinds = {kind: {"schema": schema} for kind, schema in body.items()}
        for kind, item in (items or {}).items():
            kinds[kind][ITEM_SCHEMA] = ref(item)
        call["requestBody"] = {"required": True, "content": kinds}
    call["responses"] = (answer or {}) | {
        str(status): {"$ref": f"#/components/responses/Problem{status}"}
        for status in sorted(statuses)
        if str(status) not in (answer or {})
    }
    return call


def query(
    name: str, schema: Schema, description: str | None = None, *, required: bool = False
) -> Schema:
    parameter = {"name": name, "in": "query", "required": required, "schema": schema}
    return parameter | ({"description": description} if description else {})


def header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def content(kind: str, schema: Schema) -> Schema:
    return {kind: {"schema": schema}}


def json_answer(name: str, description: str = "OK") -> dict[str, Any]:
    return {"200": {"description": description, "content": content(JSON, ref(name))}}


def replayable(name: str, description: str) -> dict[str, Any]:
    answer = json_answer(name, description)
    answer["200"]["headers"] = {
        REPLAYED_HEADER: {"schema": {"const": "true"}, "description": "The first answer again"}
    }
    return answer


def stream() -> dict[str, Any]:
    each = {"schema": TEXT, ITEM_SCHEMA: ref("SubscriptionLine")}
    return {
        "200": {
            "description": "Messages as they come, until either side ends it",
            "content": {NDJSON: each, EVENT_STREAM: each},
        }
    }


def problem(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": PROBLEMS[status],
        "content": content(PROBLEM_TYPE, ref("Problem")),
    }
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        response["headers"] = {
            "Retry-After": {"required": True, "schema": COUNT, "description": "Seconds"}
        }
    return response
