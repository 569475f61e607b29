"""What is in PostgreSQL, byte for byte as the Ruby library has it, against recordings of it."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from messagebusd.backends.base import Backlog
from messagebusd.errors import RequestError
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.publication import Publication, PublishRules, parse_publication
from tests.backends import vectors
from tests.backends.postgres_store import PlainPostgresStore
from tests.backends.vectors import Case
from tests.conformance.scenarios import expand

PUBLISHED = vectors.cases("postgres_published.json")
ACCEPTED = vectors.cases("postgres_accepted.json")
# The recordings have the length and a digest in place of longer texts.
LONG_TEXT = 4000

NOTIFY_CHANNEL = "_message_bus_0"


def test_the_vectors_are_there():
    vectors.load("postgres_schema.json")
    vectors.load("postgres_published.json")
    vectors.load("postgres_accepted.json")


@pytest.fixture
async def store(postgres_server) -> AsyncIterator[PlainPostgresStore]:
    under_test = PlainPostgresStore(postgres_server)
    yield under_test
    await under_test.close()


async def test_the_table_is_the_recorded_one(store):
    await store.reopen()
    connection = await store.connect()
    table: dict[str, Any] = {}
    for part, query in {
        "columns": "SELECT column_name AS name, data_type AS type, is_nullable = 'YES' AS nullable,"
        " column_default AS default FROM information_schema.columns"
        " WHERE table_name = 'message_bus' ORDER BY ordinal_position",
        "indexes": "SELECT indexname AS name, indexdef AS definition FROM pg_indexes"
        " WHERE tablename = 'message_bus' ORDER BY indexname",
        "constraints": "SELECT conname AS name, pg_get_constraintdef(oid) AS definition"
        " FROM pg_constraint WHERE conrelid = 'message_bus'::regclass ORDER BY conname",
    }.items():
        table[part] = [dict(row) for row in await connection.fetch(query)]
    await connection.close()
    assert table == vectors.load("postgres_schema.json")["table"]


# -- what we write


def honours_size_and_age(expected: Case) -> None:
    """Where both are given, the Ruby library forgets the size."""
    del expected["rows"][0]


WE_WRITE_OTHERWISE: dict[str, Callable[[Case], None]] = {
    "backlog_size_and_age": honours_size_and_age,
}

# Recorded publishes that our rules refuse at every door: case and number of the operation.
REFUSED = {
    ("channel_names", 1),  # cannot be told from one with a pipe
    ("channel_names", 3),
    ("sites", 4),  # a pipe in the site
    ("no_current_site", 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
async def test_what_is_published_is_stored_as_recorded(name, store):
    case = PUBLISHED[name]
    await store.reopen(**case["config"].get("backend", {}))
    async with notified(store) as announced:
        for number, operation in enumerate(case["operations"]):
            match operation["op"]:
                case "publish":
                    published = await store.backend.publish(publication(case, number))
                    assert published.message_id == operation["answer"].get("result", number + 1)
                    await store.backend.trim()
                case "reset" | "expire_all_backlogs":
                    await begin_anew(store)
                case "unsubscribe":
                    store.sql(f"SELECT pg_notify('{NOTIFY_CHANNEL}', '$$UNSUBSCRIBE')")
    expected = {key: case[key] for key in ("rows", "sequence_last_value", "notified")}
    actual = {
        "rows": [
            {"id": row["id"], "channel": row["channel"], "value": recorded(row["value"])}
            for row in await rows(store, "SELECT * FROM message_bus ORDER BY id")
        ],
        "sequence_last_value": int(store.sql("SELECT last_value FROM message_bus_id_seq")),
        "notified": announced,
    }
    if (deviate := WE_WRITE_OTHERWISE.get(name)) is not None:
        recording = copy.deepcopy(expected)
        deviate(expected)
        assert actual != recording, "this is no deviation any more"
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


async def begin_anew(store: PlainPostgresStore) -> None:
    """As the Ruby library does it: the table is dropped and made again."""
    statements = [each["sql"] for each in SCHEMA["statements_of_first_publish"][1:4]]
    store.sql("; ".join(["DROP TABLE message_bus", *statements]))


SCHEMA = vectors.load("postgres_schema.json") if PUBLISHED else {}


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


def recorded(text: str) -> object:
    """A text as the recordings write it."""
    if len(text) <= LONG_TEXT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"$long_text": {"length": len(text), "sha256": digest}}


async def rows(store: PlainPostgresStore, query: str) -> list[Any]:
    connection = await store.connect()
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


@asynccontextmanager
async def notified(store: PlainPostgresStore) -> AsyncIterator[list[Case]]:
    """Collect what Ruby processes hear meanwhile."""
    heard: list[Case] = []
    end = asyncio.Event()

    def hear(connection: object, pid: int, channel: str, payload: str) -> None:
        if payload == "end":
            end.set()
        else:
            heard.append({"channel": channel, "payload": recorded(payload)})

    connection = await store.connect()
    await connection.add_listener(NOTIFY_CHANNEL, hear)
    yield heard
    store.sql(f"SELECT pg_notify('{NOTIFY_CHANNEL}', 'end')")
    async with asyncio.timeout(5):
        await end.wait()
    await connection.close()


# -- what others write


def announces_what_is_stored(outcome: Case) -> None:
    """Ruby does not notice what nobody has announced; a read that sees it announces it here."""
    outcome["received"] = list(outcome["channels"]["/foo"]["backlog"])


def passes_over_what_cannot_be_read(outcome: Case) -> None:
    """One bad row does not make the others unreadable."""
    readable = [message(1, 1, "/foo", '"one"')]
    outcome["received"] = readable
    outcome["channels"]["/foo"]["backlog"] = outcome["global_backlog"] = readable


def ignores_what_was_never_stored(outcome: Case) -> None:
    """Ids that the table never gave out."""
    outcome["received"] = []


def remembers_the_last_announced(outcome: Case) -> None:
    """A channel's last id does not fall, whatever becomes of its messages."""
    outcome["channels"]["/foo"]["last_id"] = outcome["received"][-1][1]


def goes_on_after_unsubscribe(outcome: Case) -> None:
    outcome["received"].append(outcome["channels"]["/foo"]["backlog"][1])
    outcome["still_listening"] = True


WE_READ_OTHERWISE: dict[str, Callable[[Case], None]] = {
    "announced_only": remembers_the_last_announced,
    "envelope_is_no_json": remembers_the_last_announced,
    "stored_only": announces_what_is_stored,
    "poisoned_backlog": passes_over_what_cannot_be_read,
    "any_order": ignores_what_was_never_stored,
    "different_ids": ignores_what_was_never_stored,
    "unsubscribe": goes_on_after_unsubscribe,
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_what_others_write_is_understood_as_recorded(name, store):
    case = ACCEPTED[name]
    await store.reopen()
    store.listener.watched = {"/listening"}
    followed: list[Message] = []
    if "then_follow_after_global_id" in case:
        write(store, case["writes"])
        followed = await follow(store, case["then_follow_after_global_id"])
        store.listener.messages.clear()
        write(store, case["then_writes"])
    else:
        write(store, case["writes"])
    names = [each["channel"] for each in case["ruby_reads"]["channels"]]
    read = {name: await read_channel(store, name) for name in names}
    everything = await store.backend.global_backlog(0, max_messages=100, max_bytes=2**30)
    await settle(store)
    received = [*followed, *store.announced]
    outcome = {
        "received": [described(each) for each in received],
        "channels": read,
        "global_backlog": [described(each) for each in everything.messages],
        "still_listening": await is_listening(store),
    }
    expected = expectation(case)
    if (deviate := WE_READ_OTHERWISE.get(name)) is not None:
        recording = copy.deepcopy(expected)
        deviate(expected)
        assert outcome != recording, "this is no deviation any more"
    assert outcome == expected


def expectation(case: Case) -> Case:
    """What the recording says, in our words."""
    reads = case["ruby_reads"]
    return {
        "received": [from_ruby(each) for each in case["received"]],
        "channels": {
            each["channel"]: {
                "last_id": each["last_id"]["result"],
                "backlog": [from_ruby(one) for one in each["backlog"].get("result", ())],
            }
            for each in reads["channels"]
        },
        "global_backlog": [from_ruby(each) for each in reads["global_backlog"].get("result", ())],
        "still_listening": case.get("still_listening", True),
    }


def from_ruby(each: Case) -> tuple[Any, ...]:
    if "stored_channel" in each:
        channel, site_id = unqualify(each["stored_channel"])
        stored = json.loads(each["stored_data"])
        return (
            *(each["global_id"], each["message_id"], channel, site_id, stored["data"]),
            *(stored[key] for key in ("user_ids", "group_ids", "client_ids")),
        )
    return tuple(
        each[key]
        for key in (
            *("global_id", "message_id", "channel", "site_id", "data"),
            *("user_ids", "group_ids", "client_ids"),
        )
    )


def message(global_id: int, message_id: int, channel: str, data: str) -> tuple[Any, ...]:
    return (global_id, message_id, channel, None, json.loads(data), None, None, None)


def described(found: Message) -> tuple[Any, ...]:
    fields = json.loads(found.with_audience())
    return from_ruby(fields)


def write(store: PlainPostgresStore, statements: list[str]) -> None:
    for statement in statements:
        store.sql(statement)


async def settle(store: PlainPostgresStore) -> None:
    """Wait until everything that was notified is announced, or ignored, and this, which is not."""
    subscriber = store.backend._subscriber
    count = store.reports.ignored.count("malformed")
    store.sql(f"SELECT pg_notify('{NOTIFY_CHANNEL}', 'no message')")
    async with asyncio.timeout(5):
        while (
            store.reports.ignored.count("malformed") == count
            or subscriber.order.is_behind
            or subscriber._late
        ):
            await asyncio.sleep(0.01)


async def is_listening(store: PlainPostgresStore) -> bool:
    before = len(store.announced)
    await store.publish("/listening")
    await store.announcements(before + 1)
    return True


async def read_channel(store: PlainPostgresStore, name: str) -> Case:
    page: Backlog = await store.read(name)
    last = await store.backend.last_ids([name])
    return {
        "last_id": last[name].message_id,
        "backlog": [described(each) for each in page.messages],
    }


async def follow(store: PlainPostgresStore, after: int) -> list[Message]:
    """Read from a global id on, as who follows all channels does; from 0 if it is too high."""
    if after > await store.backend.last_global_id():
        after = 0
    page = await store.backend.global_backlog(after, max_messages=100, max_bytes=2**30)
    return list(page.messages)
