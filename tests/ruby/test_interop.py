"""The real gem and the daemon on one store: each gets what the other publishes.

Run only with `MESSAGEBUS_GEM`, see conftest.py.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from messagebus_client import AsyncClient, AsyncDistributedCache, AsyncDistributedCaches
from tests.ruby.conftest import StartRuby
from tests.ruby.peer import Message, Poller, RubyError
from tests.ruby.stores import StorePlace
from tests.support.daemon import ApiError, Daemon

DATA = [
    "text",
    17,
    2**62,
    1.5,
    True,
    None,
    [],
    {},
    {"b": [1, {"a": None}], "a": "keys in their order"},
    "größe, 日本語, 🚌, \u2028, \u0000 and \\u0000",
    "\r\n|\r\n",
    "1|2|/foo|{}",
]


def data_of(messages: Sequence[Message]) -> list[Any]:
    return [each["data"] for each in messages]


def numbers_of(messages: Sequence[Message], channel: str, origin: str) -> list[int]:
    return [
        each["data"]["n"]
        for each in messages
        if each["channel"] == channel and each["data"]["from"] == origin
    ]


def is_ascending(numbers: Sequence[int]) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


async def metric(daemon: Daemon, name: str) -> float:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{daemon.internal_url}/metrics") as answer,
    ):
        text = await answer.text()
    found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


# -- one way, and the other


async def test_ruby_publishes(bus: Daemon, start_ruby: StartRuby, place: StorePlace) -> None:
    ruby = await start_ruby()
    async with Poller(bus, "/foo") as poller:
        ids = [await ruby.publish("/foo", each) for each in DATA]
        ids.append(await ruby.publish("/foo", "x" * place.largest))
        received = await poller.has_received(len(ids))
    assert data_of(received) == [*DATA, "x" * place.largest]
    assert [each["message_id"] for each in received] == ids
    # Ruby has heard its own: the same global ids
    ours = await ruby.has_received(len(ids))
    assert [each["global_id"] for each in ours] == [each["global_id"] for each in received]


async def test_we_publish(bus: Daemon, start_ruby: StartRuby, place: StorePlace) -> None:
    ruby = await start_ruby()
    published = [await bus.publish("/foo", each) for each in [*DATA, "x" * place.largest]]
    received = await ruby.has_received(len(published))
    assert data_of(received) == [*DATA, "x" * place.largest]
    for ours, theirs in zip(published, received, strict=True):
        assert theirs["message_id"] == ours["message_id"]
        assert theirs["global_id"] == ours["global_id"]
        assert theirs["channel"] == "/foo"
        assert theirs["site_id"] is None
        assert (theirs["user_ids"], theirs["group_ids"], theirs["client_ids"]) == (None,) * 3
    assert ruby.warnings == []


async def test_names_with_pipes(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby()
    name = "/a|b|ü/|"
    async with Poller(bus, name) as poller:
        await ruby.publish(name, "theirs")
        await bus.publish(name, "ours")
        assert data_of(await poller.has_received(2)) == ["theirs", "ours"]
    assert [each["channel"] for each in await ruby.has_received(2)] == [name, name]


async def test_audiences_of_ruby(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby(listen=False)
    async with (
        Poller(bus, "/foo", user=7, client_id="seven") as seven,
        Poller(bus, "/foo", user="7", client_id="text") as text,
        Poller(bus, "/foo", groups=[3], client_id="three") as three,
        Poller(bus, "/foo", client_id="nobody") as nobody,
    ):
        await ruby.publish("/foo", "user", user_ids=[7])
        await ruby.publish("/foo", "text", user_ids=["7"])
        await ruby.publish("/foo", "group", group_ids=[3])
        await ruby.publish("/foo", "either", user_ids=[7], group_ids=[3])
        await ruby.publish("/foo", "client", client_ids=["nobody"])
        await ruby.publish("/foo", "all")
        assert data_of(await seven.has_received(3)) == ["user", "either", "all"]
        assert data_of(await text.has_received(2)) == ["text", "all"]
        assert data_of(await three.has_received(3)) == ["group", "either", "all"]
        assert data_of(await nobody.has_received(2)) == ["client", "all"]


async def test_our_audiences(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby()
    await bus.publish("/foo", 1, user_ids=[7, "7"], group_ids=[3])
    await bus.publish("/foo", 2, client_ids=["c"])
    first, second = await ruby.has_received(2)
    assert (first["user_ids"], first["group_ids"], first["client_ids"]) == ([7, "7"], [3], None)
    assert (second["user_ids"], second["group_ids"], second["client_ids"]) == (None, None, ["c"])


async def test_sites(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby(site="a")
    async with (
        Poller(bus, "/foo", "/global/x", site="a", client_id="a") as at_a,
        Poller(bus, "/foo", "/global/x", site="b", client_id="b") as at_b,
    ):
        await ruby.publish("/foo", "for a")
        await ruby.publish("/foo", "for b", site_id="b")
        await ruby.publish("/global/x", "for all")
        await bus.publish("/foo", "ours for a", site_id="a")
        await bus.publish("/foo", "ours for b", site_id="b")
        await bus.publish("/global/x", "ours for all")
        assert data_of(await at_a.has_received(4)) == [
            "for a",
            "for all",
            "ours for a",
            "ours for all",
        ]
        assert data_of(await at_b.has_received(4)) == [
            "for b",
            "for all",
            "ours for b",
            "ours for all",
        ]
    received = await ruby.has_received(6)
    assert [(each["channel"], each["site_id"]) for each in received] == 2 * [
        ("/foo", "a"),
        ("/foo", "b"),
        ("/global/x", None),
    ]


# -- both at once


async def test_both_publish_at_once(bus: Daemon, start_ruby: StartRuby, place: StorePlace) -> None:
    """Two Ruby processes and eight of our publishers, four channels, 4000 messages."""
    channels = ["/load/1", "/load/2", "/load/3", "/load/4"]
    first, second = await start_ruby(), await start_ruby()

    async def ours(channel: str, origin: str) -> None:
        for number in range(1, 251):
            await bus.publish(channel, {"from": origin, "n": number})

    async with AsyncExitStack() as stack:
        pollers = [
            await stack.enter_async_context(Poller(bus, *channels, client_id=f"c{number}"))
            for number in range(3)
        ]
        await asyncio.gather(
            *(ours(channel, origin) for channel in channels for origin in ("us 1", "us 2")),
            *(
                ruby.ask("publish_numbers", channel=channel, count=250, **{"from": origin})
                for channel in channels
                for ruby, origin in ((first, "ruby 1"), (second, "ruby 2"))
            ),
        )
        everybody: list[Sequence[Message]] = [
            *[await poller.has_received(4000) for poller in pollers],
            await first.has_received(4000),
            await second.has_received(4000),
        ]
    origins = ("us 1", "us 2", "ruby 1", "ruby 2")
    for received in everybody:
        assert len(received) == 4000
        for channel in channels:
            # nothing lost, nothing twice, each publisher's own order kept
            for origin in origins:
                assert numbers_of(received, channel, origin) == list(range(1, 251))
    for received in everybody[:3]:
        for channel in channels:
            ids = [each["message_id"] for each in received if each["channel"] == channel]
            if place.kind == "redis":
                assert ids == list(range(1, 1001))
            else:
                assert is_ascending(ids)
    assert first.warnings == second.warnings == []


# -- what is stored


async def test_each_reads_what_the_other_stored(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby(listen=False)
    for number in range(3):
        await bus.publish("/foo", f"ours {number}", user_ids=[number])
        await ruby.publish("/foo", f"theirs {number}", group_ids=[number])
    (last_id,) = (await bus.api("POST", "last_ids", {"channels": ["/foo"]}))["last_ids"].values()
    assert await ruby.ask("last_id", channel="/foo") == last_id
    theirs = await ruby.ask("backlog", channel="/foo", last_id=0)
    ours = (await bus.api("GET", "backlog", query={"channel": "/foo"}))["messages"]
    assert len(theirs) == len(ours) == 6
    for one, other in zip(theirs, ours, strict=True):
        for key in ("global_id", "message_id", "channel", "data"):
            assert one[key] == other[key]
        for key in ("user_ids", "group_ids", "client_ids"):
            assert one[key] == other.get(key)
    after = ours[2]["global_id"]
    found = await ruby.ask("global_backlog", last_id=after)
    assert data_of([each for each in found if each["channel"] == "/foo"]) == data_of(ours[3:])
    answer = await bus.api("GET", "global_backlog", query={"last_id": after})
    assert data_of([each for each in answer["messages"] if each["channel"] == "/foo"]) == (
        data_of(ours[3:])
    )


async def test_ruby_catches_up_on_what_we_published(bus: Daemon, start_ruby: StartRuby) -> None:
    """A message too large for an announcement is stored, announced to us, and read by Ruby."""
    ruby = await start_ruby(listen=False)
    async with Poller(bus, "/foo") as poller:
        await bus.publish("/foo", "x" * 100_000)
        assert len((await poller.has_received(1))[0]["data"]) == 100_000
    (stored,) = await ruby.ask("backlog", channel="/foo", last_id=0)
    assert len(stored["data"]) == 100_000


async def test_a_message_of_ruby_too_large_to_announce(
    bus: Daemon, start_ruby: StartRuby, place: StorePlace
) -> None:
    ruby = await start_ruby(listen=False)
    async with Poller(bus, "/foo", "/bar") as poller:
        if place.kind == "postgres":
            # stored, not announced, and the publisher is told that it failed
            with pytest.raises(RubyError, match="payload string too long"):
                await ruby.publish("/foo", "x" * 100_000)
        else:
            await ruby.publish("/foo", "x" * 100_000)
        await ruby.publish("/bar", "next")
        received = await poller.has_received(2)
    assert [(each["channel"], len(each["data"])) for each in received] == [
        ("/foo", 100_000),
        ("/bar", 4),
    ]


# -- traffic of the bus itself


async def test_our_own_traffic_disturbs_nobody(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby()
    # our keepalives come twice a second here, and a disconnect goes to every node
    await ruby.until(lambda: sum(_is_keepalive(each) for each in ruby.everything) >= 2)
    await bus.api("POST", "clients/disconnect", {"user_id": 7})
    await ruby.until(lambda: any("control" in each["channel"] for each in ruby.everything))
    # and a keepalive of a Ruby process is none of ours
    await ruby.publish("/__mb_keepalive__/", 12345, user_ids=[-1])
    async with Poller(bus, "/foo") as poller:
        await ruby.publish("/foo", 1)
        await bus.publish("/foo", 2)
        assert data_of(await poller.has_received(2)) == [1, 2]
    assert data_of(await ruby.has_received(2)) == [1, 2]
    internal = [each for each in ruby.everything if each["channel"].startswith("/__")]
    assert all(each["user_ids"] == [-1] for each in internal)
    assert is_ascending([each["global_id"] for each in ruby.everything])
    assert ruby.warnings == []


def _is_keepalive(message: Message) -> bool:
    return bool(message["channel"] == "/__mb_keepalive__/")


async def test_a_ruby_process_that_is_destroyed_stops_nobody_here(
    bus: Daemon, start_ruby: StartRuby
) -> None:
    leaving, staying = await start_ruby(), await start_ruby(listen=False)
    async with Poller(bus, "/foo") as poller:
        await staying.publish("/foo", "before")
        await poller.has_received(1)
        await leaving.ask("destroy")
        await staying.publish("/foo", "after")
        await bus.publish("/foo", "ours")
        assert data_of(await poller.has_received(3)) == ["before", "after", "ours"]
    name = 'messagebusd_store_ignored_announcements_total{reason="unsubscribe"}'
    assert await metric(bus, name) == 1


# -- the distributed cache


async def test_the_distributed_cache(bus: Daemon, start_ruby: StartRuby) -> None:
    first, second = await start_ruby(), await start_ruby()
    for ruby in (first, second):
        await ruby.ask("cache_open", cache="settings")

    async def contents(*rubies: Any, are: dict[str, Any]) -> None:
        async with asyncio.timeout(10):
            for ruby in rubies:
                while await ruby.ask("cache_contents", cache="settings") != are:
                    await asyncio.sleep(0.01)

    # between themselves, with us in between
    await first.ask("cache_set", cache="settings", key="title", value="Forum")
    await first.ask("cache_set", cache="settings", key="list", value=[1, 2])
    await contents(first, second, are={"title": "Forum", "list": [1, 2]})

    async def operate(**operation: Any) -> None:
        data = {"origin": "elsewhere", "hash_key": "settings", **operation}
        await bus.publish("/distributed_hash", data, user_ids=[-1])

    await operate(op="set", key="title", value="Other", marshalled=False)
    await operate(op="set", key="count", value=5)
    await operate(op="delete", key="list")
    await contents(first, second, are={"title": "Other", "count": 5})
    await operate(op="clear")
    await contents(first, second, are={})
    # what they would unmarshal is refused
    with pytest.raises(ApiError) as refused:
        await operate(op="set", key="evil", value="BAh7AA==", marshalled=True)
    assert refused.value.status == 422
    # and so is what a stranger could not be kept from reading
    with pytest.raises(ApiError):
        await bus.publish(
            "/distributed_hash",
            {"op": "clear", "origin": "elsewhere", "hash_key": "settings"},
        )


async def test_the_python_clients_distributed_cache(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby()
    await ruby.ask("cache_open", cache="settings")

    async def hold(ours: AsyncDistributedCache, **expected: Any) -> None:
        async with asyncio.timeout(10):
            while ours.snapshot() != expected:
                await asyncio.sleep(0.01)
            while await ruby.ask("cache_contents", cache="settings") != expected:
                await asyncio.sleep(0.01)

    async with (
        AsyncClient(bus.internal_url, bus.key) as client,
        AsyncDistributedCaches(client) as caches,
    ):
        cache = caches["settings"]
        await ruby.ask("cache_set", cache="settings", key="title", value="Größe")
        await hold(cache, title="Größe")
        await cache.set("title", "ours")
        await cache.set("list", [1, {"a": None}])
        await hold(cache, title="ours", list=[1, {"a": None}])
        await ruby.ask("cache_delete", cache="settings", key="title")
        await hold(cache, list=[1, {"a": None}])
        # What Ruby marshals is not read here, and what was there before is not right any more.
        await ruby.ask("cache_set", cache="settings", key="list", value=[2])
        await ruby.ask("cache_set", cache="settings", key="after", value=1)
        async with asyncio.timeout(10):
            while cache.snapshot() != {"after": 1}:
                await asyncio.sleep(0.01)
        await cache.clear()
        await hold(cache)
