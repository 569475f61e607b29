"""Caches come to hold the same, in whichever order their threads and streams run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messagebus_client._cache import CHANNEL, CacheState, setting
from messagebus_client.caches import _States
from messagebus_client.types import Gap, Interrupted, Message


def message(message_id: int, data: Any) -> Message:
    return Message(CHANNEL, message_id, message_id, data)


operations = st.one_of(
    st.builds(setting, st.sampled_from(["a", "b", 1]), st.integers(0, 9)),
    st.builds(lambda key: {"op": "delete", "key": key}, st.sampled_from(["a", "b", 1])),
    st.just({"op": "clear"}),
)


class Process:
    """A cache with what its process knows: answers to its publishes and a part of the stream."""

    def __init__(self) -> None:
        self.cache = CacheState("c", None)
        self.unanswered: list[tuple[dict[str, Any], int]] = []
        self.read = 0
        self.known: set[int] = set()

    def answer(self, index: int) -> None:
        operation, message_id = self.unanswered.pop(index)
        self.cache.published(operation, message_id)
        self.known.add(message_id)

    def hear(self, log: list[dict[str, Any]]) -> None:
        self.read += 1
        self.cache.take(message(self.read, log[self.read - 1]))
        self.known.add(self.read)

    def expected(self, log: list[dict[str, Any]]) -> dict[Any, Any]:
        """What is known, in the order of ids."""
        values: dict[Any, Any] = {}
        for message_id in sorted(self.known):
            operation = log[message_id - 1]
            match operation["op"]:
                case "set":
                    values[operation["key"]] = operation["value"]
                case "delete":
                    values.pop(operation["key"], None)
                case "clear":
                    values.clear()
        return values


@settings(deadline=None)
@given(st.data())
def test_what_is_known_takes_effect_in_the_order_of_ids(data: st.DataObject) -> None:
    """Whenever answers and streams arrive; so all caches come to hold the same."""
    processes = [Process(), Process()]
    log: list[dict[str, Any]] = []
    steps = data.draw(st.integers(1, 30))
    while True:
        able = [each for each in processes if each.unanswered or each.read < len(log)]
        if steps == 0 and not able:
            break
        if steps and (not able or data.draw(st.booleans())):
            steps -= 1
            process = data.draw(st.sampled_from(processes))
            operation = data.draw(operations)
            log.append(process.cache.begin(operation))
            if data.draw(st.integers(0, 5)):
                process.unanswered.append((operation, len(log)))
            else:  # it was carried out, but its answer got lost
                process.cache.failed()
        else:
            process = data.draw(st.sampled_from(able))
            hears = process.read < len(log)
            if process.unanswered and not (hears and data.draw(st.booleans())):
                process.answer(data.draw(st.integers(0, len(process.unanswered) - 1)))
            else:
                process.hear(log)
        assert process.cache.snapshot() == process.expected(log)
    first, second = (each.cache for each in processes)
    assert first.snapshot() == second.snapshot()
    assert first._decided == second._decided == {}


def test_a_change_is_seen_here_at_once() -> None:
    cache = CacheState("c", None)
    operation = setting("a", [1, (2,)])
    cache.begin(operation)
    cache.published(operation, 7)
    assert cache.get("a", None) == [1, [2]]


def test_marshalled_values_are_never_read_and_their_keys_forgotten() -> None:
    cache = CacheState("c", None)
    cache.take(message(1, {**setting("a", 1), "hash_key": "c", "origin": "ruby"}))
    value = "BAhJIgZhBjoGRVQ="
    ruby = {"op": "set", "key": "a", "value": value, "marshalled": True, "origin": "ruby"}
    cache.take(message(2, {**ruby, "hash_key": "c"}))
    assert cache.snapshot() == {}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {"hash_key": "c"},
        {"hash_key": "c", "op": "set"},
        {"hash_key": "c", "op": "set", "key": None, "value": 1},
        {"hash_key": "c", "op": "set", "key": {"a": 1}, "value": 1},
        {"hash_key": "c", "op": "set", "key": True, "value": 1},
        {"hash_key": "another", "op": "set", "key": "b", "value": 1},
        {"hash_key": "c", "op": "unheard of", "key": "b"},
    ],
)
def test_what_is_no_operation_changes_nothing(data: Any) -> None:
    cache = CacheState("c", None)
    cache.take(message(1, {**setting("a", 1), "hash_key": "c"}))
    cache.take(message(2, data))
    assert cache.snapshot() == {"a": 1}


def test_versions_of_an_application_keep_to_themselves() -> None:
    old, new, careless = CacheState("c", "1"), CacheState("c", "2"), CacheState("c", None)
    sent = old.begin(setting("a", 1))
    assert sent["app_version"] == "1"
    for each in (old, new, careless):
        each.take(message(1, sent))
    assert (old.snapshot(), new.snapshot(), careless.snapshot()) == ({"a": 1}, {}, {"a": 1})


def test_where_no_gap_can_be_seen_an_interruption_may_be_one() -> None:
    """PostgreSQL has one id for all channels, so that ids of a channel always have holes."""
    states = _States(None, None)
    cache = states.state("c")
    operation = {**setting("a", 1), "hash_key": "c"}
    states.take(message(5, operation))
    states.take(message(9, {**operation, "key": "b"}))
    states.notice(Interrupted("broken", "", 0.1))
    states.take(message(10, {**operation, "key": "c"}))
    assert cache.snapshot() == {"a": 1, "b": 1, "c": 1}
    states.notice(Interrupted("broken", "", 0.1))
    states.take(message(15, {**operation, "key": "d"}))
    states.take(message(19, {**operation, "key": "e"}))
    assert cache.snapshot() == {"d": 1, "e": 1}
    # Elsewhere the subscription sees gaps, and says so.
    states.notice(Interrupted("broken", "", 0.1))
    states.take(Message(CHANNEL, 21, 900, {**operation, "key": "f"}))
    assert cache.snapshot() == {"d": 1, "e": 1, "f": 1}
    states.notice(Gap(CHANNEL, 21, 30))
    assert cache.snapshot() == {}


def test_a_cache_that_hears_nothing_is_empty() -> None:
    cache = CacheState("c", None)
    cache.take(message(8, {**setting("a", 1), "hash_key": "c"}))
    cache.forget()
    assert cache.snapshot() == {}
    cache.take(message(1, {**setting("a", 2), "hash_key": "c"}))
    assert cache.snapshot() == {"a": 2}
    cache.close()
    cache.take(message(2, {**setting("a", 3), "hash_key": "c"}))
    assert cache.snapshot() == {}
