"""Subscriptions: backlog, then live, each message once, in order, and an end that says why."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.backends.base import Backlog, Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.errors import StoreUnavailable
from messagebusd.http import subscribe
from messagebusd.http.auth import ChannelPatterns, Key, digest
from messagebusd.http.following import Channels, Ending, Everything, Inbox, Store
from messagebusd.metrics import Metrics
from messagebusd.protocol.channels import qualify
from messagebusd.protocol.publication import Publication
from tests.support.api import ApiServer
from tests.support.clock import FakeClock
from tests.support.rawhttp import RawConnection, encode_request

EVENTS = {"Accept": "text/event-stream"}
KEYS = [
    Key("chats", digest("chats"), channels=ChannelPatterns(["/chat/*"])),
    Key("forum", digest("forum"), sites=("forum",)),
]


@pytest.fixture
async def api():
    async with ApiServer(keys=KEYS) as server:
        yield server


def brief(document):
    """A message as channel and id, anything else as it is."""
    if "site_id" in document:
        return document["channel"], document["message_id"]
    return document


def told(positions, global_id=-1):
    return {
        "global_id": global_id,
        "message_id": -1,
        "channel": "/__status",
        "data": positions,
    }


async def until(condition) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def feeds(api) -> int:
    return len(api.hub._feeds)


# -- what is told --------------------------------------------------------------------------------


async def test_the_stream_is_seen_to_be_open(api):
    async with api.subscribe() as subscription:
        assert subscription.response.headers["Content-Type"] == "application/x-ndjson"
        assert subscription.response.headers["X-Accel-Buffering"] == "no"
        assert await subscription.chunk() == b"\n"


async def test_messages_show_site_and_audience(api):
    async with api.subscribe(query={"channel": "/foo", "site_id": "forum"}) as subscription:
        await subscription.line()
        await api.publish("/foo", {"a": 1}, site_id="forum", user_ids=[7])
        await api.publish("/foo", "another site's")
        await api.publish("/foo", "x", site_id="forum")
        first, second = await subscription.documents(2)
    assert first == {
        "global_id": 1,
        "message_id": 1,
        "channel": "/foo",
        "data": {"a": 1},
        "site_id": "forum",
        "user_ids": [7],
        "group_ids": None,
        "client_ids": None,
    }
    assert (second["message_id"], second["user_ids"]) == (2, None)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, [("/foo", 1), ("/foo", 2), ("/foo", 3)]),
        (2, [("/foo", 3)]),
        (3, []),
        (None, []),
        (-1, [told({"/foo": 3})]),
        (99, [told({"/foo": 3})]),
        (2**63 - 1, [told({"/foo": 3})]),
        (-2, [("/foo", 3)]),
        (-3, [("/foo", 2), ("/foo", 3)]),
        (-99, [("/foo", 1), ("/foo", 2), ("/foo", 3)]),
        (-(2**63 - 1), [("/foo", 1), ("/foo", 2), ("/foo", 3)]),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_positions(api, position, expected, method):
    for _ in range(3):
        await api.publish("/foo")
    options = {"positions": {"channels": {"/foo": position}}}
    if method == "GET":
        last_id = {} if position is None else {"last_id": str(position)}
        options = {"query": {"channel": "/foo", **last_id}}
    async with api.subscribe(**options) as subscription:
        await subscription.line()
        await api.publish("/foo")
        documents = await subscription.documents(len(expected) + 1)
    assert [brief(each) for each in documents] == [*expected, ("/foo", 4)]


async def test_a_new_channel_has_nothing_to_tell(api):
    positions = {"/a": 0, "/b": -1, "/c": -5, "/d": None, "/e": 7}
    async with api.subscribe(positions={"channels": positions}) as subscription:
        assert await subscription.document() == told({"/b": 0, "/e": 0})
        await api.publish("/d")
        assert brief(await subscription.document()) == ("/d", 1)


async def test_several_channels_from_their_own_positions(api):
    for channel in ("/a", "/b", "/a", "/b", "/c"):
        await api.publish(channel)
    await api.publish("/global/x", site_id="forum")
    positions = {"/a": 1, "/b": 0, "/c": -1}
    async with api.subscribe(positions={"channels": positions}) as subscription:
        documents = await subscription.documents(4)
    assert documents[0] == told({"/c": 1})
    assert [brief(each) for each in documents[1:]] == [("/a", 2), ("/b", 1), ("/b", 2)]


async def test_a_query_may_name_several_channels(api):
    for channel in ("/a", "/b", "/c"):
        await api.publish(channel)
    query = [("channel", "/a"), ("channel", "/b"), ("last_id", "0")]
    async with api.subscribe(query=query) as subscription:
        assert [brief(each) for each in await subscription.documents(2)] == [("/a", 1), ("/b", 1)]


async def test_global_channels_reach_every_site(api):
    positions = {"channels": {"/global/x": 0}, "site_id": "forum"}
    await api.publish("/global/x", site_id="blog")
    async with api.subscribe(positions=positions) as subscription:
        assert brief(await subscription.document()) == ("/global/x", 1)
        await api.publish("/global/x")
        assert brief(await subscription.document()) == ("/global/x", 2)


# -- all channels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, []),
        ({"last_id": "0"}, [1, 2, 3]),
        ({"last_id": "2"}, [3]),
        ({"last_id": "3"}, []),
        ({"last_id": "-1"}, [told({}, global_id=3)]),
        ({"last_id": "4"}, [told({}, global_id=3)]),
        ({"last_id": "0", "site_id": "forum"}, [2, 3]),
        ({"last_id": "2", "site_id": "forum"}, [3]),
        ({"last_id": "0", "site_id": "blog"}, [3]),
    ],
)
async def test_all_channels(api, query, expected):
    await api.publish("/a")
    await api.publish("/a", site_id="forum")
    await api.publish("/global/x", site_id="forum")
    async with api.subscribe(query=query) as subscription:
        await subscription.line()
        await api.publish("/global/live")
        documents = await subscription.documents(len(expected) + 1)
    numbers = [each["global_id"] if "site_id" in each else each for each in documents]
    assert numbers == [*expected, 4]


async def test_a_site_hears_nothing_of_others(api):
    async with api.subscribe(query={"site_id": "forum"}) as subscription:
        await subscription.line()
        for site_id in (None, "blog", "forum"):
            await api.publish("/a", site_id=site_id)
        assert (await subscription.document())["site_id"] == "forum"


# -- server-sent events --------------------------------------------------------------------------


async def test_events_of_one_channel_carry_message_ids(api):
    await api.publish("/a")
    await api.publish("/foo")
    query = {"channel": "/foo", "last_id": "0"}
    async with api.subscribe(query=query, headers=EVENTS) as subscription:
        assert subscription.response.headers["Content-Type"] == "text/event-stream"
        assert await subscription.event() == {"": ""}
        event = await subscription.event()
        assert set(event) == {"id", "data"}
        assert event["id"] == "1"
        assert brief(json.loads(event["data"])) == ("/foo", 1)


async def test_events_of_all_channels_carry_global_ids(api):
    await api.publish("/a")
    await api.publish("/foo")
    async with api.subscribe(query={"last_id": "1"}, headers=EVENTS) as subscription:
        await subscription.event()
        assert (await subscription.event())["id"] == "2"


async def test_events_of_several_channels_carry_none(api):
    await api.publish("/a")
    positions = {"channels": {"/a": 0, "/b": -1}}
    async with api.subscribe(positions=positions, headers=EVENTS) as subscription:
        await subscription.event()
        event = await subscription.event()
        assert event["event"] == "status"
        assert set(event) == {"event", "data"}
        assert set(await subscription.event()) == {"data"}


@pytest.mark.parametrize(("query", "event_id"), [({"channel": "/foo"}, "2"), ({}, "3")])
async def test_a_status_event_carries_the_position(api, query, event_id):
    for channel in ("/a", "/foo", "/foo"):
        await api.publish(channel)
    async with api.subscribe(query={**query, "last_id": "-1"}, headers=EVENTS) as subscription:
        await subscription.event()
        event = await subscription.event()
        assert (event["event"], event["id"]) == ("status", event_id)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"query": {"channel": "/foo", "last_id": "0"}}, ("/foo", 2)),
        ({"query": {"channel": "/foo"}}, ("/foo", 2)),
        ({"query": {"last_id": "0"}}, ("/foo", 1)),
        ({"query": {}}, ("/foo", 1)),
        ({"positions": {"channels": {"/foo": 0}}}, ("/foo", 2)),
    ],
)
async def test_last_event_id_comes_before_the_positions(api, options, expected):
    for channel in ("/a", "/foo", "/foo"):
        await api.publish(channel)
    headers = {"Last-Event-ID": "1"}
    async with api.subscribe(**options, headers=headers) as subscription:
        assert brief(await subscription.document()) == expected


async def test_line_breaks_in_stored_data_do_not_break_lines(api):
    """Other publishers of a shared store may have written JSON over several lines."""
    publication = Publication("/foo", b'{\r\n "a":\n1}')
    await api.bus.publish(publication)
    async with api.subscribe(query={"last_id": "0"}) as subscription:
        assert (await subscription.document())["data"] == {"a": 1}
    async with api.subscribe(query={"last_id": "0"}, headers=EVENTS) as subscription:
        await subscription.event()
        assert json.loads((await subscription.event())["data"])["data"] == {"a": 1}


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ({"last_id": "x"}, {}, "invalid_request"),
        ({"last_id": "-2"}, {}, "invalid_request"),
        ({"channel": ""}, {}, "invalid_channel"),
        ({"channel": "/a", "last_id": "x"}, {}, "invalid_request"),
        ([("channel", "/a"), ("channel", "/a")], {}, "invalid_request"),
        ([("last_id", "1"), ("last_id", "2")], {}, "invalid_request"),
        ([("channel", f"/{number}") for number in range(501)], {}, "limit_exceeded"),
        ({"chanel": "/a"}, {}, "unknown_field"),
        ({"site_id": ""}, {}, "invalid_request"),
        ({}, {"Last-Event-ID": "x"}, "invalid_request"),
        ({}, {"Last-Event-ID": "-1"}, "invalid_request"),
        ({"channel": "/a"}, {"Last-Event-ID": "1.5"}, "invalid_request"),
        ([("channel", "/a"), ("channel", "/b")], {"Last-Event-ID": "1"}, "invalid_request"),
    ],
)
async def test_refused_queries(api, query, headers, code):
    answer = await api.request("GET", "subscribe", query=query, headers=headers)
    assert (answer.status, answer.code) == (400, code)
    assert feeds(api) == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"channels": {}}, "invalid_request"),
        ({"channels": ["/a"]}, "invalid_request"),
        ({"channels": {"": 1}}, "invalid_channel"),
        ({"channels": {"/a": "1"}}, "invalid_request"),
        ({"channels": {"/a": 1.5}}, "invalid_request"),
        ({"channels": {"/a": True}}, "invalid_request"),
        ({"channels": {"/a": 2**63}}, "invalid_request"),
        ({"channels": {"/a": 10**30}}, "invalid_request"),
        ({"channels": {"/a": 1}, "last_id": 1}, "unknown_field"),
        ({"channels": {"/a": 1}, "site_id": ""}, "invalid_request"),
        ({"channels": {f"/{number}": 0 for number in range(501)}}, "limit_exceeded"),
    ],
)
async def test_refused_bodies(api, body, code):
    answer = await api.post("subscribe", body)
    assert (answer.status, answer.code) == (400, code)


@pytest.mark.parametrize(
    ("key", "query", "allowed"),
    [
        ("chats", {"channel": "/chat/1"}, True),
        ("chats", {"channel": "/foo"}, False),
        ("chats", [("channel", "/chat/1"), ("channel", "/foo")], False),
        ("chats", {}, False),
        ("forum", {"channel": "/foo", "site_id": "forum"}, True),
        ("forum", {"channel": "/foo"}, False),
        ("forum", {}, False),
        ("forum", {"site_id": "blog"}, False),
        ("forum", {"site_id": "forum"}, True),
    ],
)
async def test_keys_for_channels_and_sites(api, key, query, allowed):
    if allowed:
        async with api.subscribe(query=query, key=key) as subscription:
            assert await subscription.line() == b""
    else:
        answer = await api.request("GET", "subscribe", query=query, key=key)
        assert (answer.status, answer.code) == (403, "forbidden")


async def test_a_store_that_is_away_is_an_ordinary_refusal(api):
    api.backend.away_after = 0
    answer = await api.get("subscribe", channel="/foo")
    assert (answer.status, answer.code) == (503, "store_unavailable")
    assert feeds(api) == 0


async def test_subscriptions_are_bounded(api, monkeypatch):
    monkeypatch.setattr(subscribe, "MAX_SUBSCRIPTIONS", 1)
    async with api.subscribe() as subscription:
        await subscription.line()
        answer = await api.get("subscribe")
        assert (answer.status, answer.code) == (429, "rate_limited")
    await until(lambda: feeds(api) == 0)
    async with api.subscribe() as subscription:
        assert await subscription.line() == b""


# -- how it goes on, and ends --------------------------------------------------------------------


async def test_heartbeats():
    async with ApiServer(heartbeat=0.05) as api:
        async with api.subscribe() as subscription:
            for _ in range(3):
                assert await subscription.chunk() == b"\n"
        async with api.subscribe(headers=EVENTS) as subscription:
            for _ in range(3):
                assert await subscription.chunk() == b":\n\n"


@pytest.mark.parametrize("half", [False, True])
async def test_a_subscriber_that_leaves_is_forgotten(api, half):
    request = encode_request(
        "GET", "/api/v1/subscribe", headers={"Authorization": "Bearer the-key"}
    )
    connection = await RawConnection.open(api.url)
    await connection.send(request).chunk_count(1)
    assert feeds(api) == 1
    assert api.metrics.registry.get_sample_value("messagebusd_subscriptions") == 1
    if half:
        connection.half_close()
    else:
        await connection.abort()
    await until(lambda: feeds(api) == 0)
    assert api.metrics.registry.get_sample_value("messagebusd_subscriptions") == 0
    await connection.close()


async def test_a_daemon_that_stops_says_so_after_the_last_message(api):
    async with api.subscribe(query={"channel": "/foo"}) as subscription:
        await subscription.line()
        await api.publish("/foo")
        await api.backend.last_global_id()  # announces it
        api.hub.end_feeds()
        assert brief(await subscription.document()) == ("/foo", 1)
        end = await subscription.document()
        assert end["end"]["code"] == "draining"
        assert await subscription.document() is None


async def test_the_end_as_an_event(api):
    async with api.subscribe(headers=EVENTS) as subscription:
        await subscription.event()
        api.hub.end_feeds()
        event = await subscription.event()
        assert event["event"] == "end"
        assert json.loads(event["data"])["end"]["code"] == "draining"


async def test_a_key_that_expires_ends_its_subscriptions():
    now = FakeClock()
    key = Key("short", digest("short"), expires_at=now() + 60)
    async with (
        ApiServer(keys=[key], wall=now, heartbeat=0.05) as api,
        api.subscribe(key="short") as subscription,
    ):
        await subscription.line()
        now.advance(60)
        assert (await subscription.document())["end"]["code"] == "unauthorized"
        assert await subscription.document() is None


async def test_a_store_that_goes_away_during_the_replay_ends_it(api):
    for channel in ("/a", "/b"):
        await api.publish(channel)
    api.backend.away_after = 2
    async with api.subscribe(positions={"channels": {"/a": 0, "/b": 0}}) as subscription:
        assert brief(await subscription.document()) == ("/a", 1)
        assert (await subscription.document())["end"]["code"] == "store_unavailable"
    await until(lambda: feeds(api) == 0)


async def test_a_fault_of_ours_during_the_replay_ends_it(api, monkeypatch, caplog):
    async def broken(*_, **__):
        raise ZeroDivisionError

    await api.publish("/a")
    monkeypatch.setattr(api.backend, "backlog", broken)
    query = {"channel": "/a", "last_id": "0"}
    async with api.subscribe(query=query) as subscription:
        assert (await subscription.document())["end"]["code"] == "internal_error"
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.exc_info[0] is ZeroDivisionError


class Slow:
    """A subscriber that reads only when it is told to."""

    def __init__(self, api, query="last_id=0"):
        self.api = api
        self.query = query

    async def __aenter__(self):
        host, port = self.api.url.removeprefix("http://").split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port), limit=1024)
        request = encode_request(
            "GET",
            f"/api/v1/subscribe?{self.query}",
            headers={"Authorization": "Bearer the-key"},
            version="1.0",
        )
        self.writer.write(request)
        await self.reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def rest(self):
        return [json.loads(each) for each in (await self.reader.read()).splitlines() if each]


async def test_a_slow_reader_ends_with_what_fits_and_continues_without_a_hole():
    async with ApiServer(max_backlog_bytes=100_000) as api:
        async with Slow(api, query="channel=/foo") as slow:
            for number in range(2000):
                await api.publish("/foo", "x" * 5000 + str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0)
            *messages, end = await slow.rest()
        assert end["end"]["code"] == "overflow"
        numbers = [each["message_id"] for each in messages]
        assert numbers == list(range(1, len(numbers) + 1))
        assert 20 <= len(numbers) < 2000
        await until(lambda: feeds(api) == 0)


async def test_a_reader_that_never_reads_is_cut_off(monkeypatch):
    monkeypatch.setattr(subscribe, "_STALL_SECONDS", 0.2)
    async with ApiServer(retention=Retention(max_global_backlog_size=10_000)) as api:
        for number in range(3000):
            await api.publish(f"/{number}", "x" * 5000)
        async with Slow(api):
            await until(lambda: feeds(api) == 1)
            await until(lambda: feeds(api) == 0)


async def test_a_long_backlog_is_read_in_pages():
    async with ApiServer(retention=Retention(5000, 5000)) as api:
        for number in range(2500):
            await api.publish("/foo", number)
        for query in ({"last_id": "0"}, {"channel": "/foo", "last_id": "0"}):
            async with api.subscribe(query=query) as subscription:
                documents = await subscription.documents(2500)
            assert [each["data"] for each in documents] == list(range(2500))


# -- exactly once, whatever happens in between ---------------------------------------------------


class Announcements:
    """Hands a subscription what the store announces."""

    def __init__(self, inbox):
        self.dispatch = inbox.offer


class SteppedBackend(MemoryBackend):
    """Lets the test publish before and after each read, as a store on the network would."""

    def __init__(self, between):
        super().__init__(Retention(), max_bytes=2**24)
        self._between = between

    async def last_ids(self, channels):
        await self._between()
        found = await super().last_ids(channels)
        await self._between()
        return found

    async def last_global_id(self):
        await self._between()
        found = await super().last_global_id()
        await self._between()
        return found

    async def backlog(self, channel, after_id, *, max_messages, max_bytes):
        await self._between()
        found = await super().backlog(channel, after_id, max_messages=2, max_bytes=max_bytes)
        await self._between()
        return Backlog(*found)

    async def global_backlog(self, after_global_id, *, max_messages, max_bytes):
        await self._between()
        found = await super().global_backlog(after_global_id, max_messages=2, max_bytes=max_bytes)
        await self._between()
        return Backlog(*found)


NAMES = ("/a", "/b", "/global/c")
channels = st.sampled_from(NAMES)


@given(
    before=st.lists(channels, max_size=8),
    meanwhile=st.lists(st.lists(channels, max_size=3), max_size=12),
    after=st.lists(channels, max_size=3),
    position=st.integers(0, 4),
    everything=st.booleans(),
)
def test_each_message_once_and_in_order(before, meanwhile, after, position, everything):
    async def scenario():
        steps = iter(meanwhile)

        async def between():
            for channel in next(steps, ()):
                await backend.publish(Publication(channel, b"1", "s"))
            await asyncio.sleep(0)  # announced

        backend = SteppedBackend(between)
        await backend.open()
        for channel in before:
            await backend.publish(Publication(channel, b"1", "s"))
        backend._announce()
        names = {qualify(channel, "s"): channel for channel in NAMES}
        following = (
            Everything(None, position)
            if everything
            else Channels(names, dict.fromkeys(names, position))
        )
        inbox = Inbox(2**20, following.wants)
        backend.subscribe(Announcements(inbox))
        store = Store(backend, Metrics())
        status = await following.start(store)
        seen = [message async for page in following.replay(store) for message in page]
        for channel in after:
            await backend.publish(Publication(channel, b"1", "s"))
        backend._announce()
        inbox.keep_only(following.is_news)
        seen += inbox.take(2**20)
        return backend, seen, json.loads(status) if status else None

    backend, seen, status = asyncio.run(scenario())
    if everything:
        start = status["global_id"] if status else position
        assert [each.global_id for each in seen] == list(range(start + 1, backend._global_id + 1))
        return
    for channel in NAMES:
        stored = qualify(channel, "s")
        known = backend._channels.get(stored)
        start = (status or {"data": {}})["data"].get(channel, position)
        ids = [each.message_id for each in seen if each.stored_channel == stored]
        last_id = known.last_id if known else 0
        assert ids == list(range(start + 1, last_id + 1))


@pytest.mark.parametrize("channel", [{"channel": "/a"}, {}])
@pytest.mark.parametrize(("last_id", "first"), [("0", 1), ("2", 3), ("3", 4), ("-1", 4)])
async def test_what_is_published_meanwhile_comes_once(channel, last_id, first):
    """The third message comes before the store says where it is, the fourth just after that."""
    left = 12

    async def between():
        nonlocal left
        if left:
            left -= 1
            await backend.publish(Publication("/a", b"1"))
        await asyncio.sleep(0)  # announced

    backend = SteppedBackend(between)
    async with ApiServer(backend=backend) as api:
        for _ in range(2):
            await backend.publish(Publication("/a", b"1"))
        query = {"last_id": last_id, **channel}
        async with api.subscribe(query=query) as subscription:
            await subscription.line()
            left = 0
            last = await api.publish("/a")
            seen = []
            while not seen or seen[-1] < last.message_id:
                document = await subscription.document()
                if "site_id" in document:
                    seen.append(document["message_id"])
    assert seen == list(range(first, last.message_id + 1))


@pytest.mark.parametrize("query", [{"channel": "/foo"}, {}])
async def test_ids_that_begin_again_are_delivered(api, query):
    for _ in range(3):
        await api.publish("/foo")
    async with api.subscribe(query=query) as subscription:
        await subscription.line()
        await api.publish("/foo", max_backlog_age=0)  # the channel is forgotten at once
        assert brief(await subscription.document()) == ("/foo", 4)
        await api.publish("/foo")
        assert brief(await subscription.document()) == ("/foo", 1)


async def test_a_daemon_that_stops_does_not_finish_the_replay_and_leaves_no_hole():
    steps = iter(("before last_ids", "after last_ids"))

    async def between():
        if next(steps, None) == "after last_ids":
            await backend.publish(Publication("/foo", b"1"))
            await asyncio.sleep(0)  # announced: it waits behind the replay
            api.hub.end_feeds()

    backend = SteppedBackend(between)
    async with ApiServer(backend=backend) as api:
        for _ in range(5):
            await api.publish("/foo")
        async with api.subscribe(query={"channel": "/foo", "last_id": "0"}) as subscription:
            assert (await subscription.document())["end"]["code"] == "draining"


# -- the inbox by itself -------------------------------------------------------------------------


async def some(count, size=100):
    backend = MemoryBackend(Retention(), max_bytes=2**24)
    await backend.open()
    for _ in range(count):
        await backend.publish(Publication("/foo", b'"%b"' % (b"x" * size)))
    return (await backend.backlog("/foo", 0, max_messages=count, max_bytes=2**24)).messages


async def test_an_inbox_that_overflows_keeps_what_it_has():
    messages = await some(10)
    inbox = Inbox(1000, None)
    inbox.offer(messages)
    assert inbox.ending is Ending.OVERFLOW
    inbox.end()
    inbox.offer(messages[:1])
    assert inbox.ending is Ending.OVERFLOW
    taken = inbox.take(2**20)
    assert taken == list(messages[: len(taken)])
    assert 0 < len(taken) < 10


async def test_an_inbox_that_is_emptied_takes_more():
    messages = await some(10)
    inbox = Inbox(1000, None)
    for message in messages:
        inbox.offer([message])
        assert inbox.take(1) == [message]
    assert inbox.ending is None
    assert inbox.take(1) == []


async def test_an_inbox_has_room_again_for_what_it_need_not_keep():
    messages = await some(10)
    inbox = Inbox(1500, None)
    inbox.offer(messages[:3])
    inbox.keep_only(lambda message: message is messages[1])
    inbox.offer(messages[3:5])
    assert inbox.ending is None
    assert inbox.take(2**20) == [messages[1], *messages[3:5]]


async def test_waiting_ends_with_news_an_end_or_the_time():
    (message,) = await some(1)
    inbox = Inbox(1000, None)
    await inbox.wait(0.001)
    for happen in (lambda: inbox.offer([message]), inbox.end):
        waiting = asyncio.create_task(inbox.wait(60))
        await asyncio.sleep(0)
        assert not waiting.done()
        happen()
        await waiting
        await inbox.wait(60)
        inbox.take(1000)


async def test_a_store_error_passes_through():
    class Away(MemoryBackend):
        async def last_ids(self, channels):
            raise StoreUnavailable("away")

    store = Store(Away(Retention(), max_bytes=1), Metrics())
    with pytest.raises(StoreUnavailable):
        await Channels({"/a": "/a"}, {"/a": 0}).start(store)
