"""What is in Redis, byte for byte as the Ruby library has it, against recordings of it."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from messagebusd.backends.base import Retention
from messagebusd.backends.redis import RedisBackend
from messagebusd.errors import RequestError
from messagebusd.protocol.channels import qualify, unqualify
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.publication import Publication, PublishRules, parse_publication
from messagebusd.settings.backend import RedisSettings
from tests.backends import vectors
from tests.backends.stores import Announcements, Reports
from tests.backends.vectors import Case
from tests.conformance.scenarios import expand

PUBLISHED = vectors.cases("redis_published.json")
ACCEPTED = vectors.cases("redis_accepted.json")

# The mark of the store's life is ours alone.
OUR_OWN_KEY = "__mb_messagebusd_life"

MARGIN_SECONDS = 30


def test_the_vectors_are_there():
    vectors.load("redis_published.json")
    vectors.load("redis_accepted.json")


# -- what we write


def keeps_the_global_backlog(expected: Case) -> None:
    """A short-lived message does not shorten the life of the log of all channels."""
    expected["keys_by_database"]["0"]["__mb_global_backlog_n"]["ttl_seconds"] = 604800
    expected["commands"] = [
        each
        for each in expected["commands"]
        if each[:2] != ["EXPIRE", "__mb_global_backlog_n"] or each[2] == "604800"
    ]


def honours_size_and_age(expected: Case) -> None:
    """Where both are given, the Ruby library forgets the size."""
    del expected["keys_by_database"]["0"]["__mb_backlog_n_/foo"]["members"][0]
    expected["commands"].append(["ZREMRANGEBYSCORE", "__mb_backlog_n_/foo", "1", "1"])


WE_WRITE_OTHERWISE: dict[str, Callable[[Case], None]] = {
    "backlog_age": keeps_the_global_backlog,
    "backlog_size_and_age": honours_size_and_age,
}

# Recorded publishes that our rules refuse at every door: case and number of the operation.
REFUSED = {
    ("channel_names", 1),  # cannot be told from one with a pipe
    ("channel_names", 3),
    ("sites", 4),  # a pipe in the site
    ("no_current_site", 0),
    ("megabyte", 0),  # with its quotes it is two bytes larger than a message may be
}


@pytest.mark.parametrize("name", PUBLISHED)
async def test_what_is_published_is_stored_as_recorded(name, redis_server):
    case = PUBLISHED[name]
    redis_server.flush()
    control = redis_server.control
    backend = RedisBackend(
        replace(Retention(), **case["config"].get("backend", {})),
        settings_of(case, redis_server.url),
        Reports(),
        keepalive_interval=0,
    )
    await backend.open()
    try:
        with listening(redis_server) as announced, monitoring(redis_server) as commands:
            for number, operation in enumerate(case["operations"]):
                match operation["op"]:
                    case "publish":
                        published = await backend.publish(publication(case, number))
                        assert published.message_id == operation["answer"]["result"]
                    case "reset":
                        control.delete(*control.keys("__mb_*"))
                    case "expire_all_backlogs":
                        control.delete(*control.keys("__mb_*backlog_n"))
                    case "unsubscribe":
                        control.publish("_message_bus_0", "$$UNSUBSCRIBE")
    finally:
        await backend.close()
    expected = {
        "keys_by_database": case["keys_by_database"],
        "published": case["published"],
        "commands": [each for each in case["commands"] if each[0].isupper()],
    }
    actual = {
        "keys_by_database": {database: keys(redis_server, database) for database in ("0", "3")},
        "published": announced,
        "commands": commands,
    }
    actual["keys_by_database"] = {
        database: found for database, found in actual["keys_by_database"].items() if found
    }
    keep_recorded_lifetimes(expected["keys_by_database"], actual["keys_by_database"])
    if (deviate := WE_WRITE_OTHERWISE.get(name)) is not None:
        recorded = copy.deepcopy(expected)
        deviate(expected)
        keep_recorded_lifetimes(expected["keys_by_database"], actual["keys_by_database"])
        assert actual != recorded, "this is no deviation any more"
    assert actual == expected


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (name, number)
        for name, case in PUBLISHED.items()
        for number, operation in enumerate(case["operations"])
        if operation["op"] == "publish"
    ],
)
def test_the_rules_let_the_recorded_publishes_pass(name, number):
    """Except those that are listed."""
    operation = PUBLISHED[name]["operations"][number]
    stored = publication(PUBLISHED[name], number)
    fields = {key: expand(value) for key, value in operation.items() if key not in ("op", "answer")}
    if stored.site_id is not None:
        fields["site_id"] = stored.site_id
    try:
        parsed = parse_publication(json.dumps(fields, ensure_ascii=False).encode(), PublishRules())
    except RequestError:
        assert (name, number) in REFUSED
    else:
        assert (name, number) not in REFUSED
        assert parsed == stored


def settings_of(case: Case, url: str) -> RedisSettings:
    config = case["config"]
    base = url.rpartition("/")[0]
    if "redis_path" in config:
        # The Ruby library names the channel by its option only, which is not given here.
        return RedisSettings(url=base + config["redis_path"], pubsub_channel="_message_bus_0")
    return RedisSettings(url=f"{base}/{config.get('redis', {}).get('db', 0)}")


def publication(case: Case, number: int) -> Publication:
    """A recorded publish, whether our rules allow it or not."""
    operation = case["operations"][number]
    site_id = operation.get("site_id")
    if site_id is None and case["config"].get("multisite"):
        site_id = case["config"]["site"] or ""
    ids = [operation.get(key) for key in ("user_ids", "group_ids", "client_ids")]
    return Publication(
        operation["channel"],
        json.dumps(expand(operation["data"]), ensure_ascii=False, separators=(",", ":")).encode(),
        site_id,
        None if ids == [None, None, None] else Audience(*ids),
        operation.get("max_backlog_size"),
        operation.get("max_backlog_age"),
    )


def keys(server, database: str) -> Case:
    """All keys of a database as the recordings write them."""
    import redis

    found = {}
    with redis.Redis(unix_socket_path=str(server.socket), db=int(database)) as client:
        for key in client.scan_iter():
            name, kind = key.decode(), client.type(key).decode()
            if name == OUR_OWN_KEY:
                continue
            left = client.pttl(key)
            found[name] = {"type": kind, "ttl_seconds": None if left < 0 else left / 1000}
            if kind == "string":
                found[name]["value"] = client.get(key).decode()
            else:
                found[name]["members"] = [
                    {"score": score, "member": vectors.recorded(member)}
                    for member, score in client.zrange(key, 0, -1, withscores=True)
                ]
    return found


def keep_recorded_lifetimes(expected: Case, actual: Case) -> None:
    """Time has passed since the keys were given their lifetimes."""
    for database, names in expected.items():
        for name, key in names.items():
            given, found = key["ttl_seconds"], actual.get(database, {}).get(name)
            if found is None or given is None or found["ttl_seconds"] is None:
                continue
            if given - MARGIN_SECONDS < found["ttl_seconds"] <= given:
                found["ttl_seconds"] = given


@contextmanager
def listening(server) -> Iterator[list[Case]]:
    """Collect everything that is announced meanwhile."""
    announced: list[Case] = []
    import redis

    with redis.Redis(unix_socket_path=str(server.socket)) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("*")
        pubsub.get_message(timeout=5)
        yield announced
        server.control.publish("end", "end")
        while (frame := pubsub.get_message(timeout=5))["channel"] != b"end":
            announced.append(
                {"channel": frame["channel"].decode(), "payload": vectors.recorded(frame["data"])}
            )


@contextmanager
def monitoring(server) -> Iterator[list[list[object]]]:
    """Collect what scripts write meanwhile."""
    commands: list[list[object]] = []
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(server.socket))
        raw.sendall(b"MONITOR\r\n")
        lines = raw.makefile("rb")
        assert lines.readline() == b"+OK\r\n"
        yield commands
        server.control.execute_command("ECHO", "end of it")
        while b'"end of it"' not in (line := lines.readline()):
            words = re.findall(rb'"((?:[^"\\]|\\.)*)"', line)
            if b" lua]" in line and words[0].upper() not in (b"GET", b"TTL"):
                commands.append([vectors.recorded(unquote(each)) for each in words])


def unquote(text: bytes) -> bytes:
    special = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}

    def replaced(found: re.Match[bytes]) -> bytes:
        if found[1].startswith(b"x") and len(found[1]) == 3:
            return bytes.fromhex(found[1][1:].decode())
        return special.get(found[1], found[1])

    return re.sub(rb"\\(x[0-9a-f]{2}|.)", replaced, text)


# -- what others write


def delivers_in_order(outcome: Case) -> None:
    """What is announced after a later one is waited for."""
    outcome["received"].insert(0, outcome["channels"]["/foo"]["backlog"][0])


def goes_on_after_unsubscribe(outcome: Case) -> None:
    outcome["received"].append(outcome["channels"]["/foo"]["backlog"][1])
    outcome["still_listening"] = True


def passes_over_what_cannot_be_read(outcome: Case) -> None:
    """One bad member does not make the others unreadable."""
    readable = [message(1, 1, "/foo", '"one"'), message(3, 3, "/foo", '"three"')]
    outcome["channels"]["/foo"]["backlog"] = outcome["global_backlog"] = readable


def passes_over_left_overs(outcome: Case) -> None:
    """What is above the counters is left over from before they fell."""
    outcome["channels"]["/foo"]["backlog"] = []
    outcome["global_backlog"] = []


def message(global_id: int, message_id: int, channel: str, data: str) -> tuple[Any, ...]:
    return (global_id, message_id, channel, None, json.loads(data), None, None, None)


WE_READ_OTHERWISE: dict[str, Callable[[Case], None]] = {
    "announced_out_of_order": delivers_in_order,
    "unsubscribe": goes_on_after_unsubscribe,
    "poisoned_backlog": passes_over_what_cannot_be_read,
    "without_id_keys": passes_over_left_overs,
    "wrong_score": passes_over_left_overs,
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_others_write_is_understood_as_recorded(name, redis_server):
    case = ACCEPTED[name]
    redis_server.flush()
    listener = Announcements()
    listener.watched = {stored_name(each) for each in case["ruby_reads"]["channels"]}
    backend = RedisBackend(
        Retention(),
        RedisSettings(url=redis_server.url, timeout=5.0),
        Reports(),
        keepalive_interval=0,
    )
    backend.subscribe(listener)
    followed = ()
    try:
        if "then_follow_after_global_id" in case:
            write(redis_server, case["writes"])
            await backend.open()
            followed = await follow(backend, case["then_follow_after_global_id"])
            write(redis_server, case["then_writes"])
        else:
            await backend.open()
            for command in case["writes"]:
                write(redis_server, [command])
                if command[0] == "PUBLISH":
                    await heard(backend, redis_server)
        await heard(backend, redis_server)
        received = [*followed, *map(described, listener.messages)]
        outcome = {
            "received": received,
            "channels": {
                stored_name(each): await read(backend, stored_name(each))
                for each in case["ruby_reads"]["channels"]
            },
            "global_backlog": [
                described(each)
                for each in (
                    await backend.global_backlog(0, max_messages=100, max_bytes=2**20)
                ).messages
            ],
            "still_listening": await is_listening(backend, listener),
        }
    finally:
        await backend.close()
    expected = {
        "received": [plain(each) for each in case["received"]],
        "channels": {
            stored_name(each): {
                "last_id": each["last_id"]["result"],
                "backlog": [plain(one) for one in each["backlog"].get("result", ())],
            }
            for each in case["ruby_reads"]["channels"]
        },
        "global_backlog": [
            plain(each) for each in case["ruby_reads"]["global_backlog"].get("result", ())
        ],
        "still_listening": case.get("still_listening", True),
    }
    if (deviate := WE_READ_OTHERWISE.get(name)) is not None:
        recorded = copy.deepcopy(expected)
        deviate(expected)
        assert outcome != recorded, "this is no deviation any more"
    assert outcome == expected


def write(server, commands: list[list[str]]) -> None:
    for command in commands:
        server.control.execute_command(*command)


async def follow(backend: RedisBackend, after: int) -> list[tuple[Any, ...]]:
    """What somebody who follows everything is given first; from beyond the end: all of it."""
    if after > await backend.last_global_id():
        after = 0
    page = await backend.global_backlog(after, max_messages=100, max_bytes=2**20)
    return [described(each) for each in page.messages]


async def heard(backend: RedisBackend, server) -> None:
    """Wait until all announcements so far have been dealt with, and this one, which is none."""
    reports = backend._observer
    count = reports.ignored.count("malformed")
    server.control.publish("_message_bus_0", "no message")
    async with asyncio.timeout(5):
        while reports.ignored.count("malformed") == count or not is_settled(backend):
            await asyncio.sleep(0.01)


def is_settled(backend: RedisBackend) -> bool:
    return backend._subscriber._announcements.is_live


async def read(backend: RedisBackend, channel: str) -> Case:
    page = await backend.backlog(channel, 0, max_messages=100, max_bytes=2**20)
    last_ids = await backend.last_ids([channel])
    return {
        "last_id": last_ids[channel].message_id,
        "backlog": [described(each) for each in page.messages],
    }


async def is_listening(backend: RedisBackend, listener: Announcements) -> bool:
    count = len(listener.messages)
    await backend.publish(Publication("/probe", b"1"))
    async with asyncio.timeout(5):
        while len(listener.messages) == count:
            await asyncio.sleep(0.01)
    return listener.messages[-1].channel == "/probe"


def stored_name(recorded: Case) -> str:
    return qualify(recorded["channel"], recorded["site_id"])


def plain(recorded: Case) -> tuple[Any, ...]:
    """A recorded message, comparable. A stored empty list restricts nothing."""
    if "stored_channel" in recorded:
        envelope = json.loads(recorded["stored_data"])
        channel, site_id = unqualify(recorded["stored_channel"])
    else:
        envelope, channel, site_id = recorded, recorded["channel"], recorded["site_id"]
    return (
        recorded["global_id"],
        recorded["message_id"],
        channel,
        site_id,
        envelope["data"],
        *(envelope[key] or None for key in ("user_ids", "group_ids", "client_ids")),
    )


def described(found: Message) -> tuple[Any, ...]:
    audience = found.audience or Audience()
    return (
        found.global_id,
        found.message_id,
        found.channel,
        found.site_id,
        json.loads(found.data),
        *(
            None if ids is None else list(ids)
            for ids in (audience.user_ids, audience.group_ids, audience.client_ids)
        ),
    )
