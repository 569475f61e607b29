"""The calls of the HTTP API (docs/http-api.md) as flows, and their answers as values."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from messagebus_client import _json
from messagebus_client._exchange import Flow, Patience, Pause, Request, Response, refusal, send
from messagebus_client.errors import InvalidRequest, RequestRefused, UnexpectedAnswer
from messagebus_client.types import Id, Message, Publication, Published

PREFIX = "/api/v1/"
PAGE_SIZE = 1000
_AWAY = "store_unavailable"
_RESUME_SECONDS = 1.0


def publish(
    publication: Publication, idempotency_key: str | None, patience: Patience
) -> Flow[Published]:
    body = _json.encode(_fields(publication))
    response = yield from send(_publishing("publish", body, idempotency_key), patience)
    return _published(_object(response), repeated=_is_repeated(response))


def publish_batch(
    publications: Sequence[Publication], idempotency_key: str | None, patience: Patience
) -> Flow[list[Published | RequestRefused]]:
    """A batch that was published in part, because the store went away, goes on where it was."""
    body = _json.encode({"messages": [_fields(each) for each in publications]})
    request = _publishing("publish/batch", body, idempotency_key)
    deadline = patience.deadline()
    while True:
        response = yield from send(request, patience)
        entries = _list(_object(response), "results")
        if len(entries) != len(publications):
            raise UnexpectedAnswer("there are not as many results as messages")
        repeated = _is_repeated(response)
        results = [_result(each, repeated=repeated) for each in entries]
        is_done = not any(
            isinstance(each, RequestRefused) and each.code == _AWAY for each in results
        )
        delay = _RESUME_SECONDS * (1 + patience.random())
        if is_done or patience.clock() + delay >= deadline:
            return results
        yield Pause(delay)


def last_id(channel: str, site_id: str | None, patience: Patience) -> Flow[int]:
    query = {"channel": channel, "site_id": site_id}
    response = yield from send(Request("GET", PREFIX + "last_id", query), patience)
    return _integer(_object(response), "last_id")


def last_ids(
    channels: Sequence[str], site_id: str | None, patience: Patience
) -> Flow[dict[str, int]]:
    body = _json.encode({"channels": list(channels), "site_id": site_id})
    request = Request("POST", PREFIX + "last_ids", body=body)
    answer = _object((yield from send(request, patience)))
    ids = answer.get("last_ids")
    if not isinstance(ids, dict) or any(each not in ids for each in channels):
        raise UnexpectedAnswer("last ids are missing")
    return {channel: _integer(ids, channel) for channel in channels}


def page(
    path: str, query: Mapping[str, Any], patience: Patience
) -> Flow[tuple[list[Message], bool]]:
    """A page of a backlog, and whether it goes on."""
    answer = _object((yield from send(Request("GET", PREFIX + path, query), patience)))
    messages = [message_of(each) for each in _list(answer, "messages")]
    return messages, bool(answer.get("more")) and bool(messages)


def message(
    channel: str, message_id: int | None, site_id: str | None, patience: Patience
) -> Flow[Message | None]:
    """One message, the last one if ``message_id`` is None."""
    which = {"last": "true"} if message_id is None else {"message_id": message_id}
    query = {"channel": channel, "site_id": site_id, **which}
    try:
        response = yield from send(Request("GET", PREFIX + "message", query), patience)
    except InvalidRequest as error:
        if error.code == "not_found":
            return None
        raise
    return message_of(_object(response))


def delete_backlog(channel: str, site_id: str | None, patience: Patience) -> Flow[None]:
    query = {"channel": channel, "site_id": site_id}
    yield from send(Request("DELETE", PREFIX + "backlog", query), patience)


def message_of(document: Any) -> Message:
    """Read a message as it is on the wire. Raises UnexpectedAnswer."""
    try:
        site_id = document.get("site_id")
        read = Message(
            document["channel"],
            document["message_id"],
            document["global_id"],
            document["data"],
            site_id,
            *(_ids(document.get(name)) for name in ("user_ids", "group_ids", "client_ids")),
        )
    except (AttributeError, KeyError, TypeError):
        raise UnexpectedAnswer("this is not a message") from None
    if (
        not isinstance(read.channel, str)
        or not isinstance(read.message_id, int)
        or not isinstance(read.global_id, int)
        or not isinstance(site_id, str | None)
    ):
        raise UnexpectedAnswer("this is not a message")
    return read


def _ids(ids: Any) -> tuple[Id, ...] | None:
    return None if ids is None else tuple(ids)


def _fields(publication: Publication) -> dict[str, Any]:
    """What is said of a message: what is None is left out."""
    fields: dict[str, Any] = {"channel": publication.channel, "data": publication.data}
    for name in ("site_id", "max_backlog_size", "max_backlog_age"):
        value = getattr(publication, name)
        if value is not None:
            fields[name] = value
    for name in ("user_ids", "group_ids", "client_ids"):
        ids = getattr(publication, name)
        if isinstance(ids, str):
            raise TypeError(f"{name} is a list of ids, not one text")
        if ids is not None:
            fields[name] = list(ids)
    if publication.queue_in_memory:
        fields["queue_in_memory"] = True
    return fields


def _publishing(call: str, body: bytes, idempotency_key: str | None) -> Request:
    """With a key, so that a request whose answer got lost can be sent again (SPEC 4)."""
    headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
    return Request("POST", PREFIX + call, body=body, headers=headers)


def _is_repeated(response: Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


def _result(entry: Any, *, repeated: bool) -> Published | RequestRefused:
    if not isinstance(entry, dict):
        raise UnexpectedAnswer("this is not a result")
    return refusal(entry["error"]) if "error" in entry else _published(entry, repeated=repeated)


def _published(answer: dict[str, Any], *, repeated: bool) -> Published:
    channel = answer.get("channel")
    if not isinstance(channel, str):
        raise UnexpectedAnswer("a publish's answer without its channel")
    if answer.get("queued") is True:
        return Published(channel, None, None, queued=True, repeated=repeated)
    message_id, global_id = _integer(answer, "message_id"), _integer(answer, "global_id")
    return Published(channel, message_id, global_id, repeated=repeated)


def _object(response: Response) -> dict[str, Any]:
    document = _json.decode(response.body)
    if not isinstance(document, dict):
        raise UnexpectedAnswer("the answer is not a JSON object")
    return document


def _list(answer: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(answer.get(name), list):
        raise UnexpectedAnswer(f"{name} is missing in the answer")
    return cast(list[Any], answer[name])


def _integer(answer: dict[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int):
        raise UnexpectedAnswer(f"{name} is missing in the answer")
    return value
