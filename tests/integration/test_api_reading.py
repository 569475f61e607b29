"""What is stored, and what this node holds (SPEC 4)."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest

from messagebusd.backends.base import Retention
from messagebusd.connection import Connection, State
from messagebusd.http.auth import ChannelPatterns, Key, digest
from messagebusd.identity.base import Identity
from messagebusd.protocol.requests import Mode
from tests.support.api import ApiServer
from tests.support.transport import RecordingTransport

KEYS = [
    Key("chats", digest("chats"), channels=ChannelPatterns(["/chat/*"])),
    Key("forum", digest("forum"), sites=("forum",)),
]


@pytest.fixture
async def api():
    async with ApiServer(keys=KEYS, retention=Retention(max_backlog_size=5)) as server:
        yield server


def shown(answer):
    return [each["message_id"] for each in answer.json["messages"]]


# -- last ids ------------------------------------------------------------------------------------


async def test_last_id(api):
    assert (await api.get("last_id", channel="/foo")).json == {"channel": "/foo", "last_id": 0}
    await api.publish("/foo")
    await api.publish("/foo", site_id="forum")
    await api.publish("/foo", site_id="forum")
    assert (await api.get("last_id", channel="/foo")).json["last_id"] == 1
    assert (await api.get("last_id", channel="/foo", site_id="forum")).json["last_id"] == 2


@pytest.mark.parametrize("channel", ["/a b", "/a+b", "/ü", "/a&b=c", "/a%2Fb", "no slash"])
async def test_channel_names_are_unescaped_once(api, channel):
    await api.publish(channel)
    path = f"/api/v1/last_id?channel={quote(channel, safe='')}"
    headers = {"Authorization": "Bearer the-key"}
    async with api.session.get(path, headers=headers) as response:
        assert await response.json() == {"channel": channel, "last_id": 1}


async def test_last_ids(api):
    await api.publish("/foo")
    await api.publish("/foo", site_id="forum")
    await api.publish("/foo", site_id="forum")
    await api.publish("/global/x", site_id="forum")
    channels = ["/foo", "/bar", "/global/x", "/foo"]
    answer = await api.post("last_ids", {"channels": channels})
    assert answer.json == {"last_ids": {"/foo": 1, "/bar": 0, "/global/x": 1}}
    answer = await api.post("last_ids", {"channels": channels, "site_id": "forum"})
    assert answer.json == {"last_ids": {"/foo": 2, "/bar": 0, "/global/x": 1}}
    assert (await api.post("last_ids", {"channels": []})).json == {"last_ids": {}}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"channels": "/foo"}, "invalid_request"),
        ({"channels": [1]}, "invalid_request"),
        ({"channels": [""]}, "invalid_channel"),
        ({"channels": ["/a"], "site": "x"}, "unknown_field"),
        ({"channels": ["/a"], "site_id": 7}, "invalid_request"),
        ({"channels": ["/a"], "site_id": "a|b"}, "invalid_request"),
        ({"channels": [f"/{number}" for number in range(501)]}, "limit_exceeded"),
    ],
)
async def test_refused_last_ids(api, body, code):
    answer = await api.post("last_ids", body)
    assert (answer.status, answer.code) == (400, code)


# -- backlogs ------------------------------------------------------------------------------------


async def test_a_backlog_shows_sites_and_audiences(api):
    await api.publish("/foo", {"a": 1}, user_ids=[7, "7"], client_ids=["c"], site_id="forum")
    answer = await api.get("backlog", channel="/foo", site_id="forum")
    assert answer.json == {
        "messages": [
            {
                "global_id": 1,
                "message_id": 1,
                "channel": "/foo",
                "data": {"a": 1},
                "site_id": "forum",
                "user_ids": [7, "7"],
                "group_ids": None,
                "client_ids": ["c"],
            }
        ],
        "more": False,
    }


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ({}, [3, 4, 5, 6, 7], False),
        ({"last_id": 0}, [3, 4, 5, 6, 7], False),
        ({"last_id": 5}, [6, 7], False),
        ({"last_id": 7}, [], False),
        ({"last_id": 99}, [], False),
        ({"limit": 2}, [3, 4], True),
        ({"limit": 2, "last_id": 4}, [5, 6], True),
        ({"limit": 2, "last_id": 5}, [6, 7], False),
        ({"limit": 1000}, [3, 4, 5, 6, 7], False),
    ],
)
async def test_parts_of_a_backlog(api, query, ids, more):
    for number in range(7):
        await api.publish("/foo", number)
    for call, extra in (("backlog", {"channel": "/foo"}), ("global_backlog", {})):
        answer = await api.get(call, **extra, **query)
        assert (shown(answer), answer.json["more"]) == (ids, more)


async def test_answers_are_bounded_in_bytes():
    async with ApiServer(max_backlog_bytes=300) as api:
        for _ in range(5):
            await api.publish("/foo", "x" * 70)
        await api.publish("/foo", "x" * 1000)
        for call, extra in (("backlog", {"channel": "/foo"}), ("global_backlog", {})):
            read, last_id, more = [], 0, True
            while more:
                answer = await api.get(call, last_id=last_id, **extra)
                more, last_id = answer.json["more"], shown(answer)[-1]
                read.append(shown(answer))
            assert read == [[1, 2], [3, 4], [5], [6]]


async def test_the_global_backlog_is_of_all_channels_and_sites(api):
    await api.publish("/foo", site_id="forum")
    await api.publish("/bar")
    messages = (await api.get("global_backlog")).json["messages"]
    assert [(each["channel"], each["site_id"]) for each in messages] == [
        ("/foo", "forum"),
        ("/bar", None),
    ]


async def test_reserved_channels_may_be_read(api):
    operation = {"op": "clear", "origin": "x", "hash_key": "k"}
    await api.publish("/distributed_hash", operation, user_ids=[-1])
    answer = await api.get("backlog", channel="/distributed_hash")
    assert answer.json["messages"][0]["data"] == operation


# -- one message ---------------------------------------------------------------------------------


async def test_a_message(api):
    for number in range(7):
        await api.publish("/foo", number, site_id="forum")
    found = await api.get("message", channel="/foo", site_id="forum", message_id=4)
    assert (found.json["message_id"], found.json["data"]) == (4, 3)
    last = await api.get("message", channel="/foo", site_id="forum", last="true")
    assert last.json["message_id"] == 7
    for missing in ({"message_id": 1}, {"message_id": 8}, {"message_id": 0}):
        answer = await api.get("message", channel="/foo", site_id="forum", **missing)
        assert (answer.status, answer.code) == (404, "not_found")
    assert (await api.get("message", channel="/foo", last="true")).status == 404


# -- deleting ------------------------------------------------------------------------------------


async def test_ids_continue_after_a_backlog_was_deleted(api):
    await api.publish("/foo")
    await api.publish("/foo", site_id="forum")
    answer = await api.request("DELETE", "backlog", query={"channel": "/foo"})
    assert answer.status == 204
    assert shown(await api.get("backlog", channel="/foo")) == []
    assert (await api.get("message", channel="/foo", last="true")).status == 404
    assert (await api.get("last_id", channel="/foo")).json["last_id"] == 1
    assert shown(await api.get("backlog", channel="/foo", site_id="forum")) == [1]
    await api.publish("/foo")
    assert shown(await api.get("backlog", channel="/foo")) == [2]
    assert (await api.request("DELETE", "backlog", query={"channel": "/nothing"})).status == 204


# -- queries -------------------------------------------------------------------------------------

BIG = str(2**63)


@pytest.mark.parametrize(
    ("call", "query", "code", "says"),
    [
        ("last_id", "", "invalid_request", "'channel' is missing"),
        ("last_id", "channel=", "invalid_channel", "empty"),
        ("last_id", "channel", "invalid_channel", "empty"),
        ("last_id", "channel=/a%00", "invalid_channel", "control"),
        ("last_id", f"channel=/{'x' * 512}", "invalid_channel", "512 bytes"),
        ("last_id", "channel=/a&channel=/b", "invalid_request", "more than once"),
        ("last_id", "channel=/a&site_id=", "invalid_request", "site_id"),
        ("last_id", "channel=/a&site_id=a%7Cb", "invalid_request", "pipe"),
        ("last_id", "chanel=/a", "unknown_field", "did you mean 'channel'?"),
        ("last_id", "Channel=/a", "unknown_field", "did you mean 'channel'?"),
        ("last_id", "channel=/a&xyz=1", "unknown_field", "known here: channel, site_id"),
        ("stats", "xyz=1", "unknown_field", "this call has none"),
        ("openapi.json", "xyz=1", "unknown_field", "this call has none"),
        *(
            ("backlog", f"channel=/a&last_id={value}", "invalid_request", "'last_id'")
            for value in ("", "x", "-1", "1.0", "1e3", "+1", "%201", "1_000", "%D9%A1", BIG)
        ),
        *(
            ("backlog", f"channel=/a&limit={value}", "invalid_request", "from 1 to 1000")
            for value in ("0", "-1", "1001", "all")
        ),
        ("message", "channel=/a", "invalid_request", "either"),
        ("message", "channel=/a&message_id=1&last=true", "invalid_request", "either"),
        ("message", "channel=/a&last=false", "invalid_request", "'last'"),
        ("message", "channel=/a&last=", "invalid_request", "'last'"),
        ("message", "channel=/a&message_id=x", "invalid_request", "'message_id'"),
        ("global_backlog", "channel=/a", "unknown_field", "'channel'"),
        ("channels", "limit=x", "invalid_request", "'limit'"),
    ],
)
async def test_refused_queries(api, call, query, code, says):
    headers = {"Authorization": "Bearer the-key"}
    async with api.session.get(f"/api/v1/{call}?{query}", headers=headers) as response:
        problem = await response.json(content_type="application/problem+json")
    assert (problem["status"], problem["code"]) == (400, code)
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("key", "method", "call", "query", "body", "status"),
    [
        ("chats", "GET", "last_id", {"channel": "/chat/1"}, None, 200),
        ("chats", "GET", "last_id", {"channel": "/foo"}, None, 403),
        ("chats", "POST", "last_ids", None, {"channels": ["/chat/1"]}, 200),
        ("chats", "POST", "last_ids", None, {"channels": ["/chat/1", "/foo"]}, 403),
        ("chats", "GET", "backlog", {"channel": "/foo"}, None, 403),
        ("chats", "GET", "message", {"channel": "/foo", "last": "true"}, None, 403),
        ("chats", "DELETE", "backlog", {"channel": "/foo"}, None, 403),
        ("chats", "GET", "global_backlog", None, None, 403),
        ("chats", "GET", "channels", None, None, 403),
        ("chats", "GET", "clients", None, None, 403),
        ("chats", "GET", "stats", None, None, 403),
        ("chats", "POST", "clients/disconnect", None, {"client_id": "a"}, 403),
        ("forum", "GET", "last_id", {"channel": "/foo", "site_id": "forum"}, None, 200),
        ("forum", "GET", "last_id", {"channel": "/foo", "site_id": "blog"}, None, 403),
        ("forum", "GET", "last_id", {"channel": "/foo"}, None, 403),
        ("forum", "GET", "last_id", {"channel": "/global/x", "site_id": "forum"}, None, 200),
        ("forum", "DELETE", "backlog", {"channel": "/foo", "site_id": "forum"}, None, 204),
        ("forum", "DELETE", "backlog", {"channel": "/global/x", "site_id": "forum"}, None, 403),
        ("forum", "POST", "last_ids", None, {"channels": ["/foo"]}, 403),
        ("forum", "GET", "global_backlog", None, None, 403),
        ("forum", "GET", "channels", None, None, 403),
        ("forum", "GET", "clients", None, None, 403),
        ("forum", "POST", "clients/disconnect", None, {"client_id": "a"}, 403),
        ("forum", "POST", "clients/disconnect", None, {"client_id": "a", "site_id": "x"}, 403),
        ("forum", "POST", "clients/disconnect", None, {"client_id": "a", "site_id": "forum"}, 200),
    ],
)
async def test_keys_for_channels_and_sites(api, key, method, call, query, body, status):
    answer = await api.request(method, call, query=query, body=body, key=key)
    assert answer.status == status


# -- this node -----------------------------------------------------------------------------------


async def test_channels(api):
    for channel, site_id in (("/b", None), ("/a", "forum"), ("/a", None), ("/global/x", None)):
        await api.publish(channel, site_id=site_id)
    await api.publish("/b")
    park(api, "c", channels=("/b",))
    answer = await api.get("channels")
    assert answer.json["next"] is None
    found = answer.json["channels"]
    assert [(each["channel"], each["site_id"]) for each in found] == [
        ("/a", None),
        ("/a", "forum"),
        ("/b", None),
        ("/global/x", None),
    ]
    described = dict(found[2])
    assert described.pop("backlog_bytes") > 0
    assert described == {
        "channel": "/b",
        "site_id": None,
        "last_id": 2,
        "backlog_size": 2,
        "subscribers": 1,
    }


async def pages(api, call, **query):
    read, after = [], {}
    while True:
        answer = await api.get(call, **query, **after)
        assert answer.status == 200
        read.append(answer.json[call])
        if answer.json["next"] is None:
            return read
        after = {"after": answer.json["next"]}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["/a", "/chat/1", "/chat/1", "/chat/2", "/d"]),
        ({"channel": "/chat/*"}, ["/chat/1", "/chat/1", "/chat/2"]),
        ({"channel": "/chat/1"}, ["/chat/1", "/chat/1"]),
        ({"site_id": "forum"}, ["/chat/1"]),
        ({"site_id": "forum", "channel": "/a"}, []),
        ({"channel": "/x.*"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_pages_of_channels(api, query, names, limit):
    for channel in ("/d", "/chat/2", "/chat/1", "/a"):
        await api.publish(channel)
    await api.publish("/chat/1", site_id="forum")
    read = await pages(api, "channels", limit=limit, **query)
    assert [each["channel"] for page in read for each in page] == names
    assert all(len(page) <= limit for page in read)


async def test_a_search_among_many_channels_takes_several_pages(api):
    for number in range(11_000):
        await api.publish(f"/{number:05}", max_backlog_size=0)
    read = await pages(api, "channels", channel="/10999")
    assert [len(page) for page in read] == [0, 1]


async def test_channels_while_the_store_is_away(api):
    api.backend.away_after = 0
    assert (await api.get("channels")).code == "store_unavailable"


def park(api, client_id, *, user_id=None, site_id=None, mode=Mode.STREAM, channels=("/foo",)):
    identity = Identity(user_id=user_id, site_id=site_id)
    connection = Connection(api.hub, identity, client_id, 0, mode, tuple(channels), ())
    api.hub.add(connection)
    connection.settle({})
    connection.park(RecordingTransport(), time.monotonic())
    api.hub.park(connection)
    return connection


async def test_clients(api):
    park(api, "b", user_id=7, site_id="forum", channels=("/x", "/y"))
    park(api, "a", mode=Mode.LONG_POLL)
    answer = await api.get("clients")
    assert answer.json["next"] is None
    first, second = answer.json["clients"]
    assert 0 <= first.pop("age") < 10
    assert first == {
        "client_id": "a",
        "user_id": None,
        "site_id": None,
        "mode": "long_poll",
        "channels": 1,
    }
    assert (second["user_id"], second["site_id"], second["channels"]) == (7, "forum", 2)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 6),
        ({"client_id": "a"}, 4),
        ({"client_id": "z"}, 0),
        ({"user_id": "7"}, 2),
        ({"user_id": '"7"'}, 1),
        ({"user_id": "seven"}, 1),
        ({"user_id": "7.0"}, 0),
        ({"site_id": "forum"}, 2),
        ({"site_id": "forum", "user_id": "7"}, 1),
        ({"channel": "/chat"}, 2),
        ({"channel": "/foo"}, 4),
    ],
)
@pytest.mark.parametrize("limit", [1, 4, 100])
async def test_pages_of_clients(api, query, count, limit):
    park(api, "a", user_id=7, channels=["/chat"])
    park(api, "a", user_id="7")
    park(api, "a", user_id=7, site_id="forum", channels=["/chat$|$forum"])
    park(api, "a")
    park(api, "b", user_id="seven", site_id="forum", channels=["/foo$|$forum"])
    park(api, 'c"\\')
    read = await pages(api, "clients", limit=limit, **query)
    found = [json.dumps(each, sort_keys=True) for page in read for each in page]
    assert len(found) == len(set(found)) == count
    assert all(len(page) <= limit for page in read)
    assert len(read) == max(1, -(-count // limit))


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ({"client_id": "a"}, ["a", "a7", "aforum"]),
        ({"client_id": "a", "site_id": "forum"}, ["aforum"]),
        ({"client_id": "z"}, []),
        ({"user_id": 7}, ["a7", "bforum"]),
        ({"user_id": "7"}, ["b"]),
        ({"user_id": 7, "site_id": "forum"}, ["bforum"]),
        ({"user_id": 7, "site_id": None}, ["a7", "bforum"]),
    ],
)
async def test_disconnect(api, body, ended):
    polls = {
        "a": park(api, "a"),
        "a7": park(api, "a", user_id=7),
        "aforum": park(api, "a", site_id="forum"),
        "b": park(api, "b", user_id="7"),
        "bforum": park(api, "b", user_id=7, site_id="forum"),
    }
    answer = await api.post("clients/disconnect", body)
    assert answer.json == {"disconnected": len(ended)}
    assert [name for name, each in polls.items() if each.state is State.CLOSED] == ended


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"client_id": "a", "user_id": 1}, "invalid_request"),
        ({"user_id": None}, "invalid_request"),
        ({"user_id": 1.5}, "invalid_request"),
        ({"user_id": True}, "invalid_request"),
        ({"client_id": 1}, "invalid_request"),
        ({"client_ids": ["a"]}, "unknown_field"),
        ({"client_id": "a", "site_id": ""}, "invalid_request"),
        ([], "invalid_json"),
    ],
)
async def test_refused_disconnects(api, body, code):
    poll = park(api, "a", user_id=1)
    answer = await api.post("clients/disconnect", body)
    assert (answer.status, answer.code) == (400, code)
    assert poll.state is State.PARKED


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ({"user_id": 7}, ["b7"]),
        ({"user_id": 7, "site_id": "forum"}, []),
        ({"all": True}, ["a", "b7", "cforum"]),
        ({"all": True, "site_id": "forum"}, ["cforum"]),
    ],
)
async def test_invalidate(api, body, ended):
    polls = {
        "a": park(api, "a"),
        "b7": park(api, "b", user_id=7),
        "cforum": park(api, "c", site_id="forum"),
    }
    answer = await api.post("lookups/invalidate", body)
    assert answer.json == {"disconnected": len(ended)}
    assert [name for name, each in polls.items() if each.state is State.CLOSED] == ended


@pytest.mark.parametrize(
    "body", [{}, {"all": False}, {"all": True, "user_id": 1}, {"user_id": None}, {"client_id": "a"}]
)
async def test_refused_invalidations(api, body):
    poll = park(api, "a", user_id=1)
    assert (await api.post("lookups/invalidate", body)).status == 400
    assert poll.state is State.PARKED


async def test_stats(api):
    await api.publish("/foo")
    park(api, "a", channels=["/other"])
    park(api, "b", channels=["/other"], mode=Mode.LONG_POLL)
    async with api.subscribe() as subscription:
        await subscription.line()
        answer = await api.get("stats")
    assert answer.json.pop("uptime") >= 0
    assert answer.json.pop("version")
    assert answer.json == {
        "last_global_id": 1,
        "clients": {"long_poll": 1, "stream": 1},
        "subscriptions": 1,
    }
