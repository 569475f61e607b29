"""The shapes in the API's description: what goes in and comes out, and the codes of problems."""

from __future__ import annotations

from typing import Any, get_args

from messagebusd.explain.answer import Conclusion
from messagebusd.explain.words import About
from messagebusd.http.following import Ending
from messagebusd.http.publishing import MAX_BATCH_MESSAGES
from messagebusd.protocol.channels import STATUS_CHANNEL
from messagebusd.protocol.requests import MAX_ID

Schema = dict[str, Any]

PROBLEM_CODES = {
    "invalid_json": "the body is not JSON, or not a JSON object",
    "invalid_request": "a field or parameter is missing or has a wrong value",
    "unknown_field": "a field or query parameter that the call does not know",
    "invalid_body": "the body's transfer broke off or is wrongly encoded",
    "invalid_form": "a poll's form cannot be read",
    "unsupported_encoding": "the body is compressed",
    "invalid_client_id": "a poll's client id cannot be used",
    "invalid_channel": "a channel name that cannot be used",
    "invalid_idempotency_key": "the Idempotency-Key is empty, too long, or not printable ASCII",
    "limit_exceeded": "more channels, messages or nesting than are allowed",
    "unauthorized": "no key, an unknown one, or one that has expired",
    "invalid_token": "a poll's token (JWT) is not valid, or not any more",
    "forbidden": "the key lacks the scope, or is not for this channel or site",
    "not_found": "no such message, or no such path",
    "method_not_allowed": "the path exists, but not for this method; see Allow",
    "request_timeout": "the body did not come in time",
    "payload_too_large": "the data or the body is too large",
    "reserved_channel": "the channel belongs to the bus itself",
    "invalid_audience": "an empty or malformed list of ids",
    "restricted_global": "user_ids or group_ids on a /global/ channel",
    "audience_required": "the channel's rule asks for user_ids, group_ids or client_ids",
    "store_refused": "the store will never take this message",
    "idempotency_conflict": "the Idempotency-Key was used before with another body",
    "rate_limited": "too much at present; see Retry-After",
    "internal_error": "a fault of the daemon; its log says more under the request_id",
    "store_unavailable": "the store does not answer; see Retry-After",
}
"""Every code that a problem may have, and what it means."""


def ref(name: str) -> Schema:
    """A shape by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _nullable(kind: str, **more: Any) -> Schema:
    return {"type": [kind, "null"], **more}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


CHANNEL: Schema = {
    "type": "string",
    "minLength": 1,
    "description": "A channel name such as /chat/1, without control characters, $|$ and $$123$$",
}
SITE: Schema = {"type": "string", "minLength": 1, "description": "A site; none if left out"}
COUNT: Schema = {"type": "integer", "minimum": 0}
_ID: Schema = {"type": ["integer", "string"], "description": '7 and "7" are different ids'}
_NULLABLE_SITE = _nullable("string", minLength=1)
POSITION: Schema = {
    "type": ["integer", "null"],
    "minimum": -MAX_ID,
    "maximum": MAX_ID,
    "description": (
        "n >= 0: everything after message id n. -1: nothing old, a status tells the last id. "
        "-1-n: the last n messages. Ahead of the channel: as -1. null: from now on"
    ),
}
_AUDIENCE = {
    name: _list(_ID, minItems=1) | {"type": ["array", "null"], "description": f"Only {whom}"}
    for name, whom in (
        ("user_ids", "these users, or members of group_ids"),
        ("group_ids", "members of these groups, or user_ids"),
        ("client_ids", "these clients, of those whom user_ids and group_ids allow"),
    )
}
_MESSAGE = {"global_id": COUNT, "message_id": COUNT, "channel": CHANNEL, "data": {}}
_SHOWN_AUDIENCE = dict.fromkeys(_AUDIENCE, _list({}) | {"type": ["array", "null"]})
_PUBLISHED = {"channel": CHANNEL, "message_id": COUNT, "global_id": COUNT}

_UNAVAILABLE = {
    "unavailable_workers": _list({"type": "integer", "minimum": 1})
    | {"description": "Workers whose part is missing here: they did not answer in time"}
}

SCHEMAS: dict[str, Schema] = {
    "Publication": _object(
        {"channel": CHANNEL, "data": {"description": "Any JSON value"}},
        {
            "site_id": _NULLABLE_SITE,
            **_AUDIENCE,
            "max_backlog_size": _nullable("integer", minimum=0, description="Messages to keep"),
            "max_backlog_age": _nullable("integer", minimum=0, description="Seconds to keep them"),
            "queue_in_memory": {
                "type": "boolean",
                "description": "Keep the message in memory while the store is away, and publish it "
                "when it is back, before anything newer",
            },
        },
    ),
    "Published": _object(_PUBLISHED),
    "Queued": _object({"channel": CHANNEL, "queued": {"const": True}}),
    "Batch": _object(
        {"messages": _list(ref("Publication"), minItems=1, maxItems=MAX_BATCH_MESSAGES)}
    ),
    "BatchResults": _object(
        {
            "results": _list(
                {"oneOf": [ref("Published"), ref("Queued"), _object({"error": ref("Problem")})]},
                minItems=1,
            )
        }
    ),
    "LastId": _object({"channel": CHANNEL, "last_id": COUNT}),
    "Channels": _object({"channels": _list(CHANNEL)}, {"site_id": _NULLABLE_SITE}),
    "LastIds": _object({"last_ids": {"type": "object", "additionalProperties": COUNT}}),
    "Message": _object({**_MESSAGE, "site_id": _NULLABLE_SITE, **_SHOWN_AUDIENCE}),
    "Messages": _object(
        {
            "messages": _list(ref("Message")),
            "more": {"type": "boolean", "description": "It goes on after the last of these"},
        }
    ),
    "Positions": _object(
        {"channels": {"type": "object", "additionalProperties": POSITION, "minProperties": 1}},
        {"site_id": _NULLABLE_SITE},
    ),
    "SubscriptionLine": {
        "oneOf": [
            ref("Message"),
            _object(
                {
                    "global_id": {"type": "integer", "minimum": -1},
                    "message_id": {"const": -1},
                    "channel": {"const": STATUS_CHANNEL},
                    "data": {"type": "object", "additionalProperties": COUNT},
                }
            ),
            _object(
                {
                    "end": _object(
                        {
                            "code": {"enum": [ending.value for ending in Ending]},
                            "detail": {"type": "string"},
                        }
                    )
                }
            ),
        ]
    },
    "ChannelPage": _object(
        {
            "channels": _list(
                _object(
                    {
                        "channel": CHANNEL,
                        "site_id": _NULLABLE_SITE,
                        "last_id": COUNT,
                        "backlog_size": COUNT,
                        "backlog_bytes": COUNT,
                        "subscribers": COUNT | {"description": "Polls parked on this node"},
                    }
                )
            ),
            "next": _nullable("string", description="What to pass as after; null at the end"),
        },
        _UNAVAILABLE,
    ),
    "ClientPage": _object(
        {
            "clients": _list(
                _object(
                    {
                        "client_id": {"type": "string"},
                        "user_id": {"type": ["integer", "string", "null"]},
                        "site_id": _NULLABLE_SITE,
                        "mode": {"enum": ["long_poll", "stream"]},
                        "channels": COUNT,
                        "age": {"type": "number", "minimum": 0, "description": "Seconds"},
                    }
                )
            ),
            "next": _nullable("string", description="What to pass as after; null at the end"),
        },
        _UNAVAILABLE,
    ),
    "Explanation": _object(
        {
            "node": _text("Whose knowledge this is: the node's host name"),
            "conclusion": {"enum": list(get_args(Conclusion))},
            "answer": _text("The conclusion in words"),
            "facts": _list(
                _object(
                    {
                        "about": {"enum": list(get_args(About))},
                        "code": _text("What it says, for programs"),
                        "text": _text("The same in words"),
                    },
                    {
                        "at": {"type": "number", "description": "Seconds since the epoch"},
                        "until": {"type": "number", "description": "The end of what began then"},
                        "worker": {"type": "integer", "minimum": 1},
                        "client_id": {"type": "string"},
                    },
                )
            ),
        },
        _UNAVAILABLE,
    ),
    "Probe": _object({"client_id": {"type": "string"}}, _UNAVAILABLE),
    "Arrived": _object(
        {
            "arrival": _object(
                {
                    "method": {"type": "string"},
                    "version": {"type": "string"},
                    "peer": _text("Who connected"),
                    "trusted": {"type": "boolean"},
                    "remote_addr": _text("For whom he asks, if he is trusted"),
                    "host": _nullable("string"),
                    "forwarded_for": _nullable("string"),
                    "forwarded_proto": _nullable("string"),
                    "headers": _list({"type": "string"}, description="Their names"),
                }
            )
            | {"type": ["object", "null"]}
        },
        _UNAVAILABLE,
    ),
    "Stats": _object(
        {
            "version": {"type": "string"},
            "uptime": {"type": "number", "minimum": 0, "description": "Seconds"},
            "last_global_id": COUNT,
            "clients": _object({"long_poll": COUNT, "stream": COUNT}),
            "subscriptions": COUNT,
        },
        _UNAVAILABLE,
    ),
    "Disconnect": {
        **_object({}, {"client_id": {"type": "string"}, "user_id": _ID, "site_id": _NULLABLE_SITE}),
        "oneOf": [{"required": ["client_id"]}, {"required": ["user_id"]}],
    },
    "Invalidate": {
        "oneOf": [
            _object({"user_id": _ID}, {"site_id": _NULLABLE_SITE}),
            _object({"all": {"const": True}}, {"site_id": _NULLABLE_SITE}),
        ]
    },
    "Disconnected": _object({"disconnected": COUNT}),
    "Health": _object(
        {"status": {"enum": ["ok", "unavailable"]}},
        {"checks": {"type": "object", "additionalProperties": {"type": "string"}}},
    ),
    "PollPositions": {
        "type": "object",
        "description": "Positions by channel; __seq is the request's sequence number",
        "additionalProperties": True,
    },
    "PollMessages": _list(
        _object({name: {} for name in _MESSAGE}, None) | {"description": "A message or a status"}
    ),
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": _text("For the developer at the other end"),
            "code": {
                "enum": list(PROBLEM_CODES),
                "description": "\n".join(f"{code}: {text}" for code, text in PROBLEM_CODES.items()),
            },
            "request_id": _text("X-Request-Id of the request, or one made here"),
        }
    ),
}
