"""Batches, and Idempotency-Key on both publishing calls (SPEC 4)."""

from __future__ import annotations

import asyncio
import json

import pytest

from messagebusd.errors import StoreRefused
from messagebusd.http.auth import ChannelPatterns, Key, digest
from tests.support.api import ApiServer

NDJSON = {"Content-Type": "application/x-ndjson"}
KEYS = [
    Key("chats", digest("chats"), channels=ChannelPatterns(["/chat/*"])),
    Key("other", digest("other")),
]


@pytest.fixture
async def api():
    async with ApiServer(keys=KEYS) as server:
        yield server


def message(channel="/foo", data=1, **options):
    return {"channel": channel, "data": data, **options}


def ids(answer):
    return [each.get("message_id") or each["error"]["code"] for each in answer.json["results"]]


# -- batches -------------------------------------------------------------------------------------


async def test_results_are_in_order_and_errors_stop_nobody(api):
    messages = [
        message(),
        message(user_ids=[]),
        message("/__status"),
        {"chanel": "/foo", "data": 1},
        7,
        message("/bar"),
        message(),
    ]
    answer = await api.post("publish/batch", {"messages": messages})
    assert answer.status == 200
    assert ids(answer) == [
        1,
        "invalid_audience",
        "reserved_channel",
        "unknown_field",
        "invalid_json",
        1,
        2,
    ]
    assert answer.json["results"][-1] == {"channel": "/foo", "message_id": 2, "global_id": 3}
    assert api.metrics.registry.get_sample_value(
        "messagebusd_refusals_total", {"door": "api", "code": "unknown_field"}
    )


@pytest.mark.parametrize("kind", ["application/x-ndjson", "Application/X-NDJSON; charset=utf-8"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n"])
async def test_ndjson(api, kind, end):
    lines = [json.dumps(message()).encode(), b"{", json.dumps(message(data="\n")).encode()]
    for body in (end.join(lines), end.join(lines) + end):
        async with api.session.post(
            "/api/v1/publish/batch",
            data=body,
            headers={"Content-Type": kind, "Authorization": "Bearer other"},
        ) as response:
            results = (await response.json())["results"]
        assert [each.get("channel") for each in results] == ["/foo", None, "/foo"]
        assert results[1]["error"]["code"] == "invalid_json"


async def test_ndjson_is_as_described(api):
    body = b"\n".join(json.dumps(each).encode() for each in (message(), message("")))
    answer = await api.request("POST", "publish/batch", raw=body, headers=NDJSON)
    assert ids(answer) == [1, "invalid_channel"]


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"", {}, "invalid_json"),
        (b"[]", {}, "invalid_json"),
        (b'{"messages":', {}, "invalid_json"),
        (b'{"messages":{}}', {}, "invalid_request"),
        (b'{"messages":[]}', {}, "invalid_request"),
        (b'{"message":[]}', {}, "unknown_field"),
        (b'{"messages":[1],"site_id":"a"}', {}, "unknown_field"),
        (b"{}", {}, "invalid_request"),
        (b"", NDJSON, "invalid_request"),
        (b"\n\n", NDJSON, "invalid_request"),
        (b'{"messages":[%b1]}' % (b"1," * 1000), {}, "limit_exceeded"),
        (b"1\n" * 1001, NDJSON, "limit_exceeded"),
    ],
)
async def test_what_is_no_batch_is_refused_as_a_whole(api, body, headers, code):
    answer = await api.request("POST", "publish/batch", raw=body, headers=headers)
    assert (answer.status, answer.code) == (400, code)


async def test_a_full_batch(api):
    full = await api.post("publish/batch", {"messages": [message()] * 1000})
    assert ids(full) == list(range(1, 1001))


async def test_a_keys_restrictions_hold_for_each_message(api):
    messages = [message("/chat/1"), message("/other"), message("/chat/2")]
    answer = await api.post("publish/batch", {"messages": messages}, key="chats")
    assert ids(answer) == [1, "forbidden", 1]


async def test_a_store_that_goes_away_ends_the_batch_in_order(api):
    api.backend.away_after = 2
    messages = [message(), message(""), message(), message(), message()]
    answer = await api.post("publish/batch", {"messages": messages})
    assert ids(answer) == [1, "invalid_channel", 2, "store_unavailable", "store_unavailable"]


async def test_a_store_that_is_away_refuses_the_batch(api):
    api.backend.away_after = 0
    answer = await api.post("publish/batch", {"messages": [message(""), message()]})
    assert (answer.status, answer.code) == (503, "store_unavailable")


# -- idempotency ---------------------------------------------------------------------------------


def once(key="k"):
    return {"Idempotency-Key": key}


CALLS = {"publish": message(), "publish/batch": {"messages": [message(), message("")]}}


def published(answer):
    """What was published; a problem names the request that it answers."""
    results = answer.json.get("results", [answer.json])
    return [each for each in results if "error" not in each]


@pytest.mark.parametrize("call", CALLS)
async def test_the_first_answer_is_given_again(api, call):
    first = await api.post(call, CALLS[call], headers=once())
    assert "Idempotent-Replayed" not in first.headers
    again = await api.post(call, CALLS[call], headers=once())
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.status == first.status
    assert published(again) == published(first)
    assert await api.backend.last_global_id() == 1
    conflict = await api.request(
        "POST", call, raw=json.dumps(CALLS[call]).encode() + b" ", headers=once()
    )
    assert (conflict.status, conflict.code) == (422, "idempotency_conflict")


async def test_keys_of_different_callers_and_calls_are_different(api):
    for call, key in (("publish", "the-key"), ("publish", "other"), ("publish/batch", "other")):
        answer = await api.post(call, CALLS[call], headers=once(), key=key)
        assert answer.status == 200
        assert "Idempotent-Replayed" not in answer.headers
    assert await api.backend.last_global_id() == 3


async def test_an_answer_is_not_given_to_who_may_no_longer_publish(api):
    await api.post("publish", message(), headers=once())
    assert (await api.post("publish", message(), headers=once(), key=None)).status == 401


async def test_concurrent_requests_publish_once(api):
    api.backend.publishing.clear()
    asking = [asyncio.create_task(api.post("publish", message(), headers=once())) for _ in range(5)]
    await api.backend.arrived.wait()
    api.backend.publishing.set()
    answers = await asyncio.gather(*asking)
    assert {each.json["message_id"] for each in answers} == {1}
    assert sum("Idempotent-Replayed" in each.headers for each in answers) == 4


async def test_refusals_leave_the_key_free(api):
    refused = await api.post("publish", message(""), headers=once())
    assert refused.status == 400
    corrected = await api.post("publish", message(), headers=once())
    assert corrected.json["message_id"] == 1

    nothing = await api.post("publish/batch", {"messages": [message("")]}, headers=once())
    assert ids(nothing) == ["invalid_channel"]
    corrected = await api.post("publish/batch", {"messages": [message()]}, headers=once())
    assert ids(corrected) == [2]


async def test_a_store_that_was_away_leaves_the_key_free(api):
    api.backend.away_after = 0
    for call, body in CALLS.items():
        assert (await api.post(call, body, headers=once())).status == 503
    api.backend.away_after = None
    for call, body in CALLS.items():
        answer = await api.post(call, body, headers=once())
        assert answer.status == 200
        assert "Idempotent-Replayed" not in answer.headers


async def test_a_batch_goes_on_where_it_was_interrupted(api):
    api.backend.away_after = 1
    body = {"messages": [message(), message()]}
    first = await api.post("publish/batch", body, headers=once())
    api.backend.away_after = None
    again = await api.post("publish/batch", body, headers=once())
    assert ids(first) == [1, "store_unavailable"]
    assert ids(again) == [1, 2]
    assert "Idempotent-Replayed" not in again.headers
    assert await api.backend.last_global_id() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
@pytest.mark.parametrize("call", CALLS)
async def test_unusable_keys(api, call, key):
    answer = await api.post(call, CALLS[call], headers=once(key))
    assert (answer.status, answer.code) == (400, "invalid_idempotency_key")
    assert await api.backend.last_global_id() == 0


async def test_a_publish_that_waits_for_the_store_is_accepted(api):
    api.backend.away_after = 0
    waiting = message() | {"queue_in_memory": True}
    accepted = await api.post("publish", waiting)
    assert (accepted.status, accepted.json) == (202, {"channel": "/foo", "queued": True})
    batch = await api.post("publish/batch", {"messages": [waiting, message(), waiting]})
    assert batch.status == 200
    results = batch.json["results"]
    assert results[0] == results[2] == {"channel": "/foo", "queued": True}
    assert results[1]["error"]["code"] == "store_unavailable"
    api.backend.away_after = None
    async with asyncio.timeout(5):
        while (await api.get("last_id", channel="/foo")).json["last_id"] < 3:
            await asyncio.sleep(0.01)


async def test_what_the_store_never_takes_is_refused_by_itself(api, monkeypatch):
    store = api.backend.publish

    async def publish(publication, once=None):
        if publication.channel == "/spoilt":
            raise StoreRefused("its key holds something else")
        return await store(publication, once)

    monkeypatch.setattr(api.backend, "publish", publish)
    single = await api.post("publish", message("/spoilt"))
    assert (single.status, single.code) == (422, "store_refused")
    body = {"messages": [message(), message("/spoilt"), message()]}
    assert ids(await api.post("publish/batch", body)) == [1, "store_refused", 2]
    alone = await api.post("publish/batch", {"messages": [message("/spoilt")]})
    assert ids(alone) == ["store_refused"]
