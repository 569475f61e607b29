"""Publishing over HTTP, keys, and how every call refuses (SPEC 3.1, 4). On a real port."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from jsonschema import ValidationError

from messagebusd.http.auth import ChannelPatterns, Key, digest
from messagebusd.http.exchange import MAX_BODY_BYTES
from messagebusd.http.publishing import MAX_BATCH_BYTES, MAX_ENVELOPE_BYTES
from messagebusd.metrics import Metrics
from messagebusd.protocol.publication import PublishRules
from tests.support.api import DOCUMENT, KEY, Answer, ApiServer, check_answer
from tests.support.rawhttp import RawConnection, encode_request

KEYS = [
    Key("publisher", digest("publisher"), frozenset({"publish"})),
    Key("reader", digest("reader"), frozenset({"read"})),
    Key("chats", digest("chats"), channels=ChannelPatterns(["/chat/*"])),
    Key("forum", digest("forum"), sites=("forum",)),
    Key("old", digest("old"), expires_at=1.0),
]


@pytest.fixture
async def api():
    async with ApiServer(keys=KEYS, rules=PublishRules(max_data=1000)) as server:
        yield server


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


# -- publishing ----------------------------------------------------------------------------------


async def test_publish(api):
    first = await api.post("publish", {"channel": "/foo", "data": {"a": 1}})
    assert first.status == 200
    assert first.json == {"channel": "/foo", "message_id": 1, "global_id": 1}
    second = await api.post("publish", {"channel": "/bar", "data": None})
    assert second.json == {"channel": "/bar", "message_id": 1, "global_id": 2}
    assert sample(api.metrics, "messagebusd_publishes_total", door="http") == 2


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (
            '{"b": 1, "a": [ 1.50, 12345678901234567890 ]}',
            '{"b":1,"a":[1.50,12345678901234567890]}',
        ),
        ("null", "null"),
        ('"\\u00e9\\n"', '"\\u00e9\\n"'),
        ("1e400", "1e400"),
        ("-0.0", "-0.0"),
    ],
)
async def test_data_arrives_as_it_was_written(api, text, stored):
    body = f'{{"channel":"/foo","data": {text} }}'.encode()
    assert (await api.request("POST", "publish", raw=body)).status == 200
    message = await api.backend.message("/foo", 1)
    assert message.data.decode() == stored


async def test_all_options(api):
    answer = await api.post(
        "publish",
        {
            "channel": "/foo",
            "data": 1,
            "site_id": "forum",
            "user_ids": [1, "a"],
            "group_ids": [2],
            "client_ids": ["c"],
            "max_backlog_size": 2,
            "max_backlog_age": 60,
            "queue_in_memory": True,
        },
    )
    assert answer.json == {"channel": "/foo", "message_id": 1, "global_id": 1}
    message = await api.backend.message("/foo$|$forum", 1)
    assert message.audience.user_ids == (1, "a")


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"", 400, "invalid_json", "JSON"),
        (b"{", 400, "invalid_json", "JSON"),
        (b"[]", 400, "invalid_json", "JSON object"),
        (b'{"channel":"/foo","data":1} x', 400, "invalid_json", "JSON"),
        (b'{"channel":"/foo","data":"\xff"}', 400, "invalid_json", "JSON"),
        (b'{"channel":"/foo"}', 400, "invalid_request", "'data' is missing"),
        (b'{"data":1}', 400, "invalid_request", "'channel' is missing"),
        (b'{"channel":1,"data":1}', 400, "invalid_request", "channel"),
        (b'{"channel":"","data":1}', 400, "invalid_channel", "empty"),
        (b'{"channel":"/a\\n","data":1}', 400, "invalid_channel", "control"),
        (b'{"channel":"/a$|$b","data":1}', 400, "invalid_channel", "$|$"),
        (b'{"channel":"/foo","data":1,"user_id":[1]}', 400, "unknown_field", "'user_ids'"),
        (b'{"channel":"/foo","data":1,"site_id":""}', 400, "invalid_request", "site_id"),
        (b'{"channel":"/foo","data":1,"user_ids":[]}', 422, "invalid_audience", "empty"),
        (b'{"channel":"/foo","data":1,"user_ids":[1.5]}', 422, "invalid_audience", "user_ids"),
        (b'{"channel":"/foo","data":1,"max_backlog_size":-1}', 400, "invalid_request", ">= 0"),
        (b'{"channel":"/global/a","data":1,"user_ids":[1]}', 422, "restricted_global", "global"),
        (b'{"channel":"/__status","data":1}', 422, "reserved_channel", "/__status"),
        (b'{"channel":"/distributed_hash","data":1}', 422, "reserved_channel", "cache"),
        (
            b'{"channel":"/foo","data":"%b"}' % (b"x" * 1000),
            413,
            "payload_too_large",
            "1000 are allowed",
        ),
        (
            b'{"channel":"/foo","data":%b1%b}' % (b"[" * 100, b"]" * 100),
            400,
            "limit_exceeded",
            "99 levels",
        ),
    ],
)
async def test_refused_publications(api, body, status, code, says):
    answer = await api.request("POST", "publish", raw=body)
    assert (answer.status, answer.code) == (status, code)
    assert says in answer.json["detail"]
    assert await api.backend.last_global_id() == 0
    assert sample(api.metrics, "messagebusd_refusals_total", door="api", code=code) == 1


async def test_the_body_may_hold_a_long_audience_but_not_anything(api):
    ids = [f"{number:036}" for number in range(10_000)]
    body = {"channel": "/foo", "data": 1, "user_ids": ids, "group_ids": ids, "client_ids": ids}
    assert (await api.post("publish", body)).status == 200


@pytest.mark.parametrize(
    ("call", "limit"),
    [
        ("publish", 1000 + MAX_ENVELOPE_BYTES),
        ("publish/batch", MAX_BATCH_BYTES),
        ("last_ids", MAX_BODY_BYTES),
        ("subscribe", MAX_BODY_BYTES),
        ("clients/disconnect", MAX_BODY_BYTES),
        ("lookups/invalidate", MAX_BODY_BYTES),
    ],
)
async def test_a_body_that_is_too_large_is_not_waited_for(api, call, limit):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Length": str(limit + 1)}
    async with await RawConnection.open(api.url) as connection:
        head = encode_request("POST", f"/api/v1/{call}", headers=headers)
        response = await connection.send(head).finished()
    assert " 413 " in response.status_line
    assert json.loads(response.body)["code"] == "payload_too_large"


async def test_a_chunked_body_is_bounded_as_well(api):
    async with await RawConnection.open(api.url) as connection:
        request = encode_request(
            "POST",
            "/api/v1/last_ids",
            headers={"Authorization": f"Bearer {KEY}"},
            body=b" " * (MAX_BODY_BYTES + 1),
            chunked=True,
        )
        response = await connection.send(request).finished()
    assert " 413 " in response.status_line


async def test_publications_reach_who_subscribes_in_process(api):
    async with api.subscribe(query={"channel": "/foo"}) as subscription:
        await subscription.line()
        await api.post("publish", {"channel": "/foo", "data": "x"})
        assert (await subscription.document())["data"] == "x"


# -- keys ----------------------------------------------------------------------------------------

CALLS = [
    ("POST", "publish", "publish"),
    ("POST", "publish/batch", "publish"),
    ("GET", "last_id", "read"),
    ("POST", "last_ids", "read"),
    ("GET", "backlog", "read"),
    ("DELETE", "backlog", "admin"),
    ("GET", "global_backlog", "read"),
    ("GET", "message", "read"),
    ("GET", "subscribe", "read"),
    ("POST", "subscribe", "read"),
    ("GET", "channels", "admin"),
    ("GET", "clients", "admin"),
    ("POST", "clients/disconnect", "admin"),
    ("POST", "lookups/invalidate", "admin"),
    ("GET", "explain", "admin"),
    ("POST", "probes", "admin"),
    ("GET", "probes", "admin"),
    ("GET", "stats", "admin"),
]


def test_the_table_is_complete():
    described = {
        (method.upper(), path.removeprefix("/api/v1/"), entry["key"][0])
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        for entry in operation["security"]
    }
    assert described == set(CALLS)


@pytest.mark.parametrize(("method", "call", "scope"), CALLS)
async def test_every_call_needs_a_key_with_its_scope(api, method, call, scope):
    missing = await api.request(method, call, key=None)
    assert (missing.status, missing.code) == (401, "unauthorized")
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    for key in ("wrong", "old"):
        assert (await api.request(method, call, key=key)).status == 401
    other = "reader" if scope == "publish" else "publisher"
    forbidden = await api.request(method, call, key=other)
    assert (forbidden.status, forbidden.code) == (403, "forbidden")
    assert repr(scope) in forbidden.json["detail"]


@pytest.mark.parametrize(("method", "call", "_"), CALLS)
@pytest.mark.parametrize("name", ["key", "token", "access_token", "colour"])
async def test_a_key_in_the_query_is_an_unknown_parameter(api, method, call, _, name):
    without = await api.request(method, call, query={name: KEY}, key=None)
    assert without.status == 401
    answer = await api.request(method, call, query={name: KEY})
    assert (answer.status, answer.code) == (400, "unknown_field")
    assert repr(name) in answer.json["detail"]
    assert ("Authorization: Bearer" in answer.json["detail"]) == (name != "colour")
    assert KEY not in str(answer.json)


@pytest.mark.parametrize(
    ("key", "publication", "status"),
    [
        ("chats", {"channel": "/chat/1"}, 200),
        ("chats", {"channel": "/chat/1", "site_id": "blog"}, 200),
        ("chats", {"channel": "/chats"}, 403),
        ("forum", {"channel": "/any", "site_id": "forum"}, 200),
        ("forum", {"channel": "/any", "site_id": "blog"}, 403),
        ("forum", {"channel": "/any"}, 403),
        ("forum", {"channel": "/global/any", "site_id": "forum"}, 403),
        ("publisher", {"channel": "/global/any"}, 200),
    ],
)
async def test_keys_for_channels_and_sites(api, key, publication, status):
    answer = await api.post("publish", {**publication, "data": 1}, key=key)
    assert answer.status == status
    assert await api.backend.last_global_id() == (status == 200)


async def test_keys_are_in_no_log(api, caplog):
    with caplog.at_level(logging.DEBUG):
        await api.post("publish", {"channel": "/foo", "data": 1})
        await api.request("GET", "last_id", query={"key": KEY})
        await api.request("GET", "last_id", key="a-wrong-one")
        api.backend.away_after = 0
        await api.get("last_id", channel="/foo")
    assert KEY not in caplog.text
    assert "a-wrong-one" not in caplog.text


# -- what goes wrong -----------------------------------------------------------------------------


async def test_unknown_paths_and_methods(api):
    answer = await api.request("GET", "nothing", key=None)
    assert (answer.status, answer.code) == (404, "not_found")
    answer = await api.request("PUT", "publish", key=None)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    answer = await api.request("PATCH", "backlog", key=None)
    assert answer.headers["Allow"] == "DELETE, GET"
    assert sample(api.metrics, "messagebusd_refusals_total", door="api", code="not_found") == 1


async def test_head_opens_no_subscription(api):
    async with api.session.head("/api/v1/subscribe") as response:
        assert response.status == 405


async def test_paths_outside_the_api_are_counted_apart(api):
    async with api.session.get("/favicon.ico") as response:
        assert response.status == 404
        assert response.headers["Content-Type"] == "application/problem+json"
    assert sample(api.metrics, "messagebusd_refusals_total", door="http", code="not_found") == 1


async def test_the_store_is_away(api, caplog):
    api.backend.away_after = 0
    answer = await api.post("publish", {"channel": "/foo", "data": 1})
    assert (answer.status, answer.code) == (503, "store_unavailable")
    assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert "the test took it away" not in str(answer.json)
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert record.reason == "the test took it away"
    assert record.request_id == answer.json["request_id"]


async def test_a_fault_of_ours_is_logged_once_and_says_nothing(api, caplog, monkeypatch):
    async def broken(publication, once):
        raise ZeroDivisionError("internal details")

    monkeypatch.setattr(api.bus, "publish", broken)
    answer = await api.post("publish", {"channel": "/foo", "data": 1})
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "internal details" not in str(answer.json)
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.request_id == answer.json["request_id"]
    assert record.exc_info[0] is ZeroDivisionError
    assert (await api.get("last_id", channel="/foo")).status == 200


async def test_the_callers_request_id_is_kept(api):
    answer = await api.request("GET", "nothing", headers={"X-Request-Id": "abc-1"}, key=None)
    assert answer.json["request_id"] == "abc-1"


async def test_a_slow_body(api):
    async with (
        ApiServer(body_timeout=0.1) as slow,
        await RawConnection.open(slow.url) as connection,
    ):
        head = encode_request(
            "POST",
            "/api/v1/publish",
            headers={"Authorization": f"Bearer {KEY}", "Content-Length": "100"},
        )
        response = await connection.send(head + b'{"chan').finished()
        assert " 408 " in response.status_line
        assert response.values("connection") == ["close"]
        assert json.loads(response.body)["code"] == "request_timeout"


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(api, caplog):
    connection = await RawConnection.open(api.url)
    head = encode_request(
        "POST",
        "/api/v1/publish",
        headers={"Authorization": f"Bearer {KEY}", "Content-Length": "100"},
    )
    connection.send(head + b'{"chan')
    await api.get("last_id", channel="/foo")
    await connection.abort()
    for _ in range(3):
        await api.get("last_id", channel="/foo")
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_the_description_is_served_without_a_key(api):
    answer = await api.request("GET", "openapi.json", key=None)
    assert answer.status == 200
    assert answer.json == DOCUMENT


async def test_every_call_is_described_and_answers_as_described(api):
    await api.publish("/foo", 1)
    answers = {
        ("post", "publish"): await api.post("publish", {"channel": "/foo", "data": 1}),
        ("post", "publish/batch"): await api.post(
            "publish/batch", {"messages": [{"channel": "/foo", "data": 1}, {"channel": ""}]}
        ),
        ("get", "last_id"): await api.get("last_id", channel="/foo"),
        ("post", "last_ids"): await api.post("last_ids", {"channels": ["/foo"]}),
        ("get", "backlog"): await api.get("backlog", channel="/foo"),
        ("get", "global_backlog"): await api.get("global_backlog"),
        ("get", "message"): await api.get("message", channel="/foo", last="true"),
        ("delete", "backlog"): await api.request("DELETE", "backlog", query={"channel": "/foo"}),
        ("get", "channels"): await api.get("channels"),
        ("get", "clients"): await api.get("clients"),
        ("post", "clients/disconnect"): await api.post("clients/disconnect", {"client_id": "a"}),
        ("post", "lookups/invalidate"): await api.post("lookups/invalidate", {"all": True}),
        ("get", "explain"): await api.get("explain", channel="/foo", message_id=1, user_id="7"),
        ("post", "probes"): await api.post("probes"),
        ("get", "probes"): await api.get("probes", client_id="doctor-1"),
        ("get", "stats"): await api.get("stats"),
        ("get", "openapi.json"): await api.get("openapi.json"),
    }
    async with api.subscribe() as first, api.subscribe(positions={"channels": {"/a": 0}}) as second:
        assert await first.line() == await second.line() == b""
    assert {each.status for each in answers.values()} == {200, 204}
    subscriptions = {("get", "subscribe"), ("post", "subscribe")}
    described = {
        (method, path.removeprefix("/api/v1/"))
        for path, item in DOCUMENT["paths"].items()
        for method in item
        if path.startswith("/api/")
    }
    assert set(answers) | subscriptions == described


def test_the_check_itself_notices():
    good = {"Cache-Control": "no-store", "Content-Type": "application/json"}
    check_answer("GET", "/api/v1/last_id", Answer(200, good, {"channel": "/a", "last_id": 1}))
    for status, headers, body in (
        (200, good, {"channel": "/a"}),
        (200, good, {"channel": "/a", "last_id": -1}),
        (200, good, {"channel": "/a", "last_id": 1, "x": 1}),
        (200, {"Cache-Control": "no-store", "Content-Type": "text/html"}, {}),
        (202, good, {"channel": "/a", "last_id": 1}),
    ):
        with pytest.raises((ValidationError, AssertionError)):
            check_answer("GET", "/api/v1/last_id", Answer(status, headers, body))


async def test_parallel_publishers_get_different_ids(api):
    answers = await asyncio.gather(
        *(api.post("publish", {"channel": "/foo", "data": number}) for number in range(50))
    )
    assert sorted(each.json["message_id"] for each in answers) == list(range(1, 51))
