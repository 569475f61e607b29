"""The ways to a Redis server: sockets, TLS, users with few rights, Sentinels, clusters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis

from messagebusd.backends.base import Once
from messagebusd.backends.redis.errors import code_of, describe, explain, moved_to
from messagebusd.backends.redis.route import Address, Target
from messagebusd.errors import ConfigurationError, StoreUnavailable
from messagebusd.protocol.publication import Publication
from messagebusd.settings.backend import RedisConnection
from tests.backends.redis_store import RedisStore
from tests.support.pages import Page
from tests.support.program import free_port
from tests.support.redis_server import RedisServer, Sentinel

# What a user of the store needs, as the documentation says.
RIGHTS = Page("docs/redis.md", __name__).block("redis").text.partition(" on >password\n")[2]


@asynccontextmanager
async def opened(server: RedisServer, **settings: object) -> AsyncIterator[RedisStore]:
    store = RedisStore(server, **settings)
    store.listener.watched = {"/a"}
    try:
        await store.reopen()
        yield store
    finally:
        await store.close()


async def use_all_of(store: RedisStore) -> None:
    """Call everything that a store can do."""
    backend = store.backend
    once = Once(b"s" * 16, b"f" * 16)
    await backend.claim(once)
    await backend.publish(Publication("/a", b"1", max_backlog_size=5), once)
    await backend.publish(Publication("/a", b"2"), Once(b"t" * 16, b"f" * 16))
    assert await store.last_ids("/a") == {"/a": 2}
    assert await store.ids("/a") == [1, 2]
    assert await backend.lookback("/a", 1) == 1
    assert (await backend.message("/a", 1)).data == b"1"
    page = await backend.global_backlog(0, max_messages=10, max_bytes=2**20)
    assert [each.message_id for each in page.messages] == [1, 2]
    assert await backend.last_global_id() == 2
    assert [each.last_id for each in await backend.channels("", 10)] == [2]
    await backend.delete_backlog("/a")
    await backend.publish(Publication("/trimmed", b"3", max_backlog_size=0))
    await backend.check()
    assert [each.data for each in (await store.announcements(2))[:2]] == [b"1", b"2"]


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


# -- sockets and TLS


async def test_a_unix_socket(redis_server):
    async with opened(redis_server, url=f"unix://{redis_server.socket}?db=3") as store:
        await use_all_of(store)
        assert store.backend._pubsub_channel == "_message_bus_3"


async def test_tls_with_a_certificate_of_ones_own(tmp_path):
    with RedisServer(tmp_path, tls=True) as server:
        async with opened(server, ca_file=str(server.ca_file)) as store:
            await use_all_of(store)


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path):
    refused = pytest.raises(StoreUnavailable, match="certificate is not accepted")
    with RedisServer(tmp_path, tls=True) as server, refused:
        async with opened(server):
            pass


async def test_no_tls_where_it_is_wanted(redis_server):
    url = redis_server.url.replace("redis:", "rediss:")
    with pytest.raises(StoreUnavailable, match="Redis cannot be used: "):
        async with opened(redis_server, url=url):
            pass


# -- users


async def test_a_user_with_no_more_rights_than_needed(redis_server):
    control = redis_server.control
    control.execute_command("ACL", "SETUSER", "bus", "on", ">secret", *RIGHTS.split())
    try:
        async with opened(redis_server, username="bus", password="secret") as store:
            await use_all_of(store)
            control.script_flush()
            assert await store.publish("/a") == 3
        names = {each["name"] for each in control.client_list()}
        assert "messagebusd" not in names  # all closed
    finally:
        control.execute_command("ACL", "DELUSER", "bus")


# Rights that are not missed by who uses all of a store: another database, a name, a failure.
UNUSED = {"+select", "+client|setname", "+decr", "+zrem"}


@pytest.mark.parametrize("right", sorted(set(re.findall(r"\+\S+", RIGHTS)) - UNUSED))
async def test_no_right_is_listed_that_is_not_needed(redis_server, right):
    control = redis_server.control
    control.execute_command("ACL", "SETUSER", "bus", "on", ">secret", *RIGHTS.split())
    control.execute_command("ACL", "SETUSER", "bus", right.replace("+", "-"))
    try:
        with pytest.raises(StoreUnavailable, match="lacks a permission"):
            async with opened(redis_server, username="bus", password="secret") as store:
                await use_all_of(store)
    finally:
        control.execute_command("ACL", "DELUSER", "bus")


async def test_missing_rights_are_said(redis_server):
    control = redis_server.control
    control.execute_command("ACL", "SETUSER", "bus", "on", ">secret", *RIGHTS.split())
    control.execute_command("ACL", "SETUSER", "bus", "resetchannels")
    try:
        with pytest.raises(StoreUnavailable, match="lacks a permission"):
            async with opened(redis_server, username="bus", password="secret"):
                pass
    finally:
        control.execute_command("ACL", "DELUSER", "bus")


async def test_a_publish_that_may_not_be_announced_leaves_nothing(redis_server):
    control = redis_server.control
    control.execute_command("ACL", "SETUSER", "bus", "on", ">secret", *RIGHTS.split())
    try:
        async with opened(redis_server, username="bus", password="secret") as store:
            assert await store.publish("/a") == 1
            control.execute_command("ACL", "SETUSER", "bus", "-publish")
            with pytest.raises(StoreUnavailable, match="lacks a permission"):
                await store.publish("/a")
            control.execute_command("ACL", "SETUSER", "bus", "+publish")
            assert await store.publish("/a") == 2
            assert await store.ids("/a") == [1, 2]
            assert await store.backend.last_global_id() == 2
            assert control.zcard("__mb_global_backlog_n") == 2
    finally:
        control.execute_command("ACL", "DELUSER", "bus")


async def test_a_password(tmp_path):
    with RedisServer(tmp_path, {"requirepass": "p:a/s@s%w"}) as server:
        url = server.url.replace("redis://", "redis://:p%3Aa%2Fs%40s%25w@")
        async with opened_without_flush(server, url=url) as store:
            assert await store.publish("/a") == 1
        for options, reason in (
            ({"url": server.url}, "wants a password"),
            ({"password": "wrong"}, "password is wrong"),
        ):
            with pytest.raises(StoreUnavailable, match=reason) as caught:
                async with opened_without_flush(server, **options):
                    pass
            assert "wrong'" not in str(caught.value)


@asynccontextmanager
async def opened_without_flush(server: RedisServer, **settings: object):
    store = RedisStore(server, **settings)
    store.listener.watched = {"/a"}
    store.backend = store.backend_beside()
    store.backend.subscribe(store.listener)
    try:
        await store.backend.open()
        yield store
    finally:
        await store.backend.close()


# -- Sentinels


async def test_sentinels_say_where_the_master_is(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "sentinel")]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        one, two = (stack.enter_context(RedisServer(folder)) for folder in folders[:2])
        two.replica_of(one)
        sentinel = stack.enter_context(Sentinel(folders[2], one, down_after=0.3))
        gone = "127.0.0.1:1"
        async with opened(
            one, url="redis://nowhere.invalid/0", sentinels=(gone, sentinel.address)
        ) as store:
            await store.publish("/a", b"1")
            await until(lambda: two.control.get("__mb_global_id_n") == "1")
            # The Sentinel learns of the replica by asking its master, every ten seconds.
            with redis.Redis(port=sentinel.port, decode_responses=True) as asked:
                await until(lambda: asked.sentinel_slaves("mymaster"), 25)
                one.kill()
                published = 0
                async with asyncio.timeout(20):
                    while not published:
                        try:
                            published = await store.publish("/a", b"2")
                        except StoreUnavailable:
                            await asyncio.sleep(0.05)
            assert published == 2
            assert [each.data for each in await store.announcements(2)] == [b"1", b"2"]
            assert two.control.get("__mb_global_id_n") == "2"


async def test_sentinels_that_know_nothing(redis_server):
    sentinels = ("127.0.0.1:1", "127.0.0.1:2")
    with pytest.raises(StoreUnavailable, match="Sentinel: no connection to the server"):
        async with opened(redis_server, sentinels=sentinels):
            pass


# -- clusters


async def test_a_cluster_is_followed_to_the_node_that_has_the_keys(tmp_path):
    with ExitStack() as stack:
        one, two = (stack.enter_context(node(tmp_path / name)) for name in ("one", "two"))
        slot = one.control.execute_command("CLUSTER", "KEYSLOT", "{bus}")
        for server, first, last in ((one, 0, slot - 1), (two, slot, 16383)):
            server.control.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        two.control.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        bus_port = two.control.config_get("cluster-port")["cluster-port"]
        one.control.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port, bus_port)
        for server in (one, two):
            await until(lambda server=server: "cluster_state:ok" in info(server))
        async with opened_without_flush(one, key_prefix="{bus}", timeout=5.0) as store:
            await use_all_of(store)
            assert two.control.dbsize() > 0
            assert one.control.dbsize() == 0
            # The slot moves while the store is open.
            ids = [server.control.execute_command("CLUSTER", "MYID") for server in (one, two)]
            one.control.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[1])
            two.control.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[0])
            for key in list(two.control.scan_iter()):
                two.control.execute_command("MIGRATE", "127.0.0.1", one.port, key, 0, 5000)
            for server in (one, two):
                server.control.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[0])
            assert await store.publish("/a", b"3") == 3
            await until(lambda: store.announced[-1].data == b"3")
            assert await store.last_ids("/a") == {"/a": 3}
            assert one.control.get("{bus}__mb_backlog_id_n_/a") == "3"


async def test_a_cluster_without_a_hash_tag_says_what_is_missing(tmp_path):
    with node(tmp_path / "one") as server:
        server.control.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: "cluster_state:ok" in info(server))
        with pytest.raises(StoreUnavailable, match="key_prefix needs a hash tag"):
            async with opened_without_flush(server):
                pass


def node(folder: Path) -> RedisServer:
    """A node of a cluster, that has no slots yet."""
    folder.mkdir()
    # By itself the bus would be 10,000 ports above the port, which may not exist.
    config = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    return RedisServer(folder, config)


def info(server: RedisServer) -> str:
    return str(server.control.execute_command("CLUSTER", "INFO"))


# -- settings and errors, without a server


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "redis://h"}, {"address": Address("h", 6379), "database": 0}),
        ({"url": "redis://[::1]:7000/5"}, {"address": Address("::1", 7000), "database": 5}),
        ({"url": "redis://h/0?db=4"}, {"database": 4}),
        ({"url": "redis://u:p%40@h"}, {"username": "u", "password": "p@"}),
        ({"url": "redis://:p@h", "username": "v", "password": "q"}, {"password": "q"}),
        ({"url": "unix:///run/a%20b.sock?db=2"}, {"path": "/run/a b.sock", "database": 2}),
        (
            {"sentinels": ("a:1", "[::1]:2", "b")},
            {"sentinels": (Address("a", 1), Address("::1", 2), Address("b", 26379))},
        ),
    ],
)
def test_settings_say_where_the_server_is(settings, expected):
    target = Target.from_settings(RedisConnection(**settings))
    assert {name: getattr(target, name) for name in expected} == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "redis://:secret@h/zero"},
        {"url": "redis://:secret@h?ssl_cert_reqs=none"},
        {"url": "redis://:secret@h:99999"},
        {"sentinels": ("host:port",)},
        {"sentinels": ("redis://host",)},
        {"url": "rediss://h", "ca_file": "/nowhere/ca.pem"},
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings):
    with pytest.raises(ConfigurationError) as caught:
        Target.from_settings(RedisConnection(**settings))
    assert "secret" not in str(caught.value)


def test_passwords_are_not_shown():
    settings = RedisConnection(url="redis://:secret@h", sentinel_password="hidden")
    assert "secret" not in repr(Target.from_settings(settings))
    assert "hidden" not in repr(Target.from_settings(settings))


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY", "read-only"),
        (
            "ERR Error running script (call to f_1): @user_script:3: -READONLY You can't write",
            "READONLY",
            "read-only",
        ),
        ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", "out of memory"),
        ("MOVED 42 10.0.0.1:6380", "MOVED", "have moved"),
        ("ERR max number of clients reached", "ERR", "says: ERR max number of clients"),
        ("ERR unknown command 'AUTH', with args beginning with: 'secret'", "ERR", "says: ERR"),
    ],
)
def test_errors_are_explained(answer, code, words):
    assert code_of(answer) == code
    assert words in explain(answer)
    assert "secret" not in explain(answer)


def test_a_node_is_read_from_the_answer():
    assert moved_to("MOVED 42 10.0.0.1:6380") == "10.0.0.1:6380"
    assert moved_to("MOVED 42 :6380") == ":6380"
    assert moved_to("MOVED") == ""


@pytest.mark.parametrize(
    "error", [None, TimeoutError(), OSError(111, "at 10.0.0.1"), OSError("x 10.0.0.1"), Exception()]
)
def test_failures_are_described_without_addresses(error):
    assert "10.0.0.1" not in describe(error)
