"""The API's description in OpenAPI 3.1, at ``/api/v1/openapi.json`` and `messagebusd openapi`.

Written by hand, next to the handlers and not generated from them: it says what was promised, and
the tests hold every request and answer against it.
"""

from __future__ import annotations

from typing import Any

from messagebusd import __version__
from messagebusd.http.exchange import DEFAULT_LIMIT, MAX_LIMIT, NDJSON
from messagebusd.http.idempotency import HEADER, MAX_KEY_LENGTH
from messagebusd.http.openapi_parts import (
    JSON,
    PROBLEMS,
    TEXT,
    Operation,
    content,
    header,
    json_answer,
    operation,
    problem,
    query,
    replayable,
    stream,
)
from messagebusd.http.openapi_schemas import CHANNEL, COUNT, POSITION, SCHEMAS, SITE, ref
from messagebusd.http.publishing import MAX_BATCH_MESSAGES


def document() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "messagebusd",
            "version": __version__,
            "license": {"name": "MIT", "identifier": "MIT"},
            "description": "Publish to, read and follow the channels of a MessageBus server.",
        },
        "security": [{"key": []}],
        "paths": {f"/api/v1/{path}": item for path, item in _calls().items()} | _other_paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
            "responses": {f"Problem{status}": problem(status) for status in PROBLEMS},
        },
    }


def _calls() -> dict[str, dict[str, Operation]]:
    channel = query("channel", CHANNEL, required=True)
    site = query("site_id", SITE)
    after_id = query("last_id", COUNT, "Only what came after this id")
    limit = query(
        "limit", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    )
    after = query("after", {"type": "string"}, "The next of the page before")
    once = header(
        HEADER,
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
        "With the same key and body the first answer is given again, for 24 hours",
    )
    resume = header("Last-Event-ID", COUNT, "Replaces last_id; one channel or all of them")
    return {
        "publish": {
            "post": operation(
                "publish",
                "Publish a message",
                scope="publish",
                parameters=[once],
                body={JSON: ref("Publication")},
                answer=replayable("Published", "What the message was given")
                | {
                    "202": {
                        "description": "The message waits for the store to come back",
                        "content": content(JSON, ref("Queued")),
                    }
                },
                problems=(422, 429, 503),
            )
        },
        "publish/batch": {
            "post": operation(
                "publish_batch",
                f"Publish up to {MAX_BATCH_MESSAGES} messages in order; 429 refuses all of them",
                scope="publish",
                parameters=[once],
                body={JSON: ref("Batch"), NDJSON: {"type": "string"}},
                items={NDJSON: "Publication"},
                answer=replayable("BatchResults", "One result for each message, in order"),
                problems=(422, 429, 503),
            )
        },
        "last_id": {
            "get": operation(
                "last_id",
                "The last id of a channel, 0 if nothing was published",
                parameters=[channel, site],
                answer=json_answer("LastId"),
                problems=(503,),
            )
        },
        "last_ids": {
            "post": operation(
                "last_ids",
                "The last ids of several channels",
                body={JSON: ref("Channels")},
                answer=json_answer("LastIds"),
                problems=(503,),
            )
        },
        "backlog": {
            "get": operation(
                "backlog",
                "A channel's stored messages",
                parameters=[channel, site, after_id, limit],
                answer=json_answer("Messages"),
                problems=(503,),
            ),
            "delete": operation(
                "delete_backlog",
                "Forget a channel's stored messages; its ids continue",
                scope="admin",
                parameters=[channel, site],
                answer={"204": {"description": "Done"}},
                problems=(503,),
            ),
        },
        "global_backlog": {
            "get": operation(
                "global_backlog",
                "The stored messages of all channels, by global id",
                parameters=[after_id, limit],
                answer=json_answer("Messages"),
                problems=(503,),
            )
        },
        "message": {
            "get": operation(
                "message",
                "One stored message: message_id, or last=true",
                parameters=[
                    channel,
                    site,
                    query("message_id", COUNT),
                    query("last", {"type": "string", "const": "true"}),
                ],
                answer=json_answer("Message"),
                problems=(404, 503),
            )
        },
        "subscribe": {
            "get": operation(
                "subscribe",
                "Follow channels from one position, or all channels from a global id",
                parameters=[
                    query("channel", {"type": "array", "items": CHANNEL}, "None: all channels"),
                    query("last_id", POSITION | {"type": "integer"}),
                    site,
                    resume,
                ],
                answer=stream(),
                problems=(429, 503),
            ),
            "post": operation(
                "subscribe_from",
                "Follow channels, each from its own position",
                parameters=[resume],
                body={JSON: ref("Positions")},
                answer=stream(),
                problems=(429, 503),
            ),
        },
        "channels": {
            "get": operation(
                "channels",
                "The channels that the store knows",
                scope="admin",
                parameters=[
                    after,
                    limit,
                    query("channel", {"type": "string"}, "A pattern such as /chat/*"),
                    site,
                ],
                answer=json_answer("ChannelPage"),
                problems=(503,),
            )
        },
        "clients": {
            "get": operation(
                "clients",
                "The polls that wait on this node",
                scope="admin",
                parameters=[
                    after,
                    limit,
                    query("client_id", {"type": "string"}),
                    query("user_id", {"type": "string"}, 'JSON (7, "7"), or else text'),
                    site,
                    query("channel", {"type": "string"}, "Polls that listen to this channel"),
                ],
                answer=json_answer("ClientPage"),
            )
        },
        "clients/disconnect": {
            "post": operation(
                "disconnect",
                "End the polls of a client or user; without site_id, of every site",
                scope="admin",
                body={JSON: ref("Disconnect")},
                answer=json_answer("Disconnected"),
                problems=(503,),
            )
        },
        "lookups/invalidate": {
            "post": operation(
                "invalidate",
                "Ask anew who somebody is: what is known of a user is dropped, their polls end",
                scope="admin",
                body={JSON: ref("Invalidate")},
                answer=json_answer("Disconnected"),
                problems=(503,),
            )
        },
        "explain": {
            "get": operation(
                "explain",
                "Why somebody got a message, or not, as far as this node knows",
                scope="admin",
                parameters=[
                    channel,
                    query("message_id", COUNT, required=True),
                    query("user_id", TEXT, "Read as JSON if it is JSON, else as text"),
                    query("client_id", TEXT, "With user_id: this client of that user"),
                    query("group_id", {"type": "array", "items": TEXT}, "Groups of the user"),
                    site,
                ],
                answer=json_answer("Explanation"),
                problems=(503,),
            )
        },
        "probes": {
            "post": operation(
                "announce_probe",
                "Make a client id, and have it noted how its polls arrive",
                scope="admin",
                answer=json_answer("Probe"),
            ),
            "get": operation(
                "probe",
                "How the latest poll of such a client id arrived",
                scope="admin",
                parameters=[query("client_id", TEXT, required=True)],
                answer=json_answer("Arrived"),
            ),
        },
        "stats": {
            "get": operation(
                "stats",
                "A few numbers about this node",
                scope="admin",
                answer=json_answer("Stats"),
                problems=(503,),
            )
        },
        "openapi.json": {
            "get": operation(
                "openapi",
                "This description",
                scope=None,
                answer={"200": {"description": "OpenAPI 3.1", "content": content(JSON, {})}},
            )
        },
    }


def _other_paths() -> dict[str, dict[str, Operation]]:
    """What the daemon serves besides the API."""
    client_id = {"name": "client_id", "in": "path", "required": True, "schema": TEXT}
    frames = {
        "description": "An array of messages; or frames, each such an array, as they come",
        "content": content(JSON, ref("PollMessages")) | content("text/plain", TEXT),
    }
    metrics = {"description": "Prometheus' text format", "content": content("text/plain", TEXT)}
    unready = {"503": json_answer("Health", "Not ready; the checks say why")["200"]}
    return {
        "/message-bus/{client_id}/poll": {
            "post": operation(
                "poll",
                "Poll; this path is below server.base_route",
                scope=None,
                parameters=[client_id, query("dlp", {"const": "t"}, "Do not wait")],
                body={
                    JSON: ref("PollPositions"),
                    "application/x-www-form-urlencoded": ref("PollPositions"),
                },
                answer={"200": frames},
                problems=(404, 429),
            )
        },
        "/metrics": {"get": _open_operation("metrics", "Metrics", {"200": metrics})},
        "/livez": {"get": _open_operation("livez", "Whether it is alive", json_answer("Health"))},
        "/readyz": {
            "get": _open_operation("readyz", "Whether it is ready", json_answer("Health") | unready)
        },
    }


def _open_operation(name: str, summary: str, responses: dict[str, Any]) -> Operation:
    return {"operationId": name, "summary": summary, "security": [], "responses": responses}
