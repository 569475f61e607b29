"""All filters together: any of them can withhold, and none can let pass what another withholds."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import ConfigurationError
from messagebusd.filters.chain import CallableFilter, ExpressionFilter, Filter, FilterChain
from messagebusd.filters.expressions import Expression
from messagebusd.identity.base import Identity
from messagebusd.protocol.message import Message

ANYBODY = Identity()


class Turns:
    """A loop that goes on when it is told to, and its time of day."""

    def __init__(self) -> None:
        self.wall = 1000.0
        self._callbacks: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def next(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Chain(FilterChain):
    """A chain with a loop of its own; counts failures."""

    def __init__(self, *filters: Filter) -> None:
        self.turns = Turns()
        self.failures = 0
        super().__init__(filters, self._failure, self.turns.call_soon, lambda: self.turns.wall)

    def _failure(self) -> None:
        self.failures += 1

    def passes(self, message: Message, viewer: Identity = ANYBODY, client_id: str = "c") -> bool:
        return self.allow(message, viewer, client_id)


def message(data: Any, channel: str = "/a/1", message_id: int = 1) -> Message:
    return Message(message_id, message_id, channel, channel, None, json.dumps(data).encode())


def expression(source: str, prefix: str = "/a/") -> ExpressionFilter:
    return ExpressionFilter(prefix, Expression(source))


class Calls:
    """Functions for filters, and with what they were called."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.answer: Any = True

    def __call__(self, message: dict[str, Any], client: dict[str, Any]) -> Any:
        self.seen.append((message, client))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    module, found = ModuleType("filters_of_a_test"), Calls()
    module.__dict__["allow"] = found
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def function() -> CallableFilter:
    return CallableFilter("/a/", "filters_of_a_test:allow")


def errors(caplog: pytest.LogCaptureFixture) -> Sequence[Any]:
    return [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_what_a_function_is_shown(calls: Calls) -> None:
    who = Identity(user_id=7, group_ids=frozenset({1}), site_id="s", is_admin=True)
    assert Chain(function()).passes(message({"x": 1}), who, "me")
    assert calls.seen == [
        (
            {
                "channel": "/a/1",
                "site_id": None,
                "message_id": 1,
                "global_id": 1,
                "data": {"x": 1},
            },
            {
                "user_id": 7,
                "group_ids": [1],
                "site_id": "s",
                "is_admin": True,
                "client_id": "me",
            },
        )
    ]


def test_only_the_prefix_counts() -> None:
    chain = Chain(expression("false"))
    assert chain.concerns("/a/1")
    assert not chain.concerns("/a")
    assert not chain.passes(message(1))
    assert chain.passes(message(1, "/b"))


@given(st.lists(st.booleans(), max_size=4))
def test_all_have_to_allow(answers: list[bool]) -> None:
    chain = Chain(*[expression(str(each).lower()) for each in answers])
    assert chain.passes(message(1)) is all(answers)


@pytest.mark.parametrize("answer", [1, 0, None, "yes", [1], ValueError("hush")])
def test_a_function_that_gives_no_answer_withholds(
    calls: Calls, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls.answer = answer
    chain = Chain(function())
    for number in range(3):
        assert not chain.passes(message(number))
    assert chain.failures == 3
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize("source", ["message.data.missing == 1", "message.data.text", "now"])
def test_an_expression_that_gives_no_answer_withholds(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    chain = Chain(expression(source), expression(source))
    for number in range(3):
        assert not chain.passes(message({"text": "hush", "number": number}))
    assert chain.failures == 3
    [record] = errors(caplog)
    assert record.filter == source
    assert "hush" not in f"{record.reason} {record.getMessage()}"


def test_an_exception_is_named_without_what_was_published(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as int() that quotes what it could not read: above debug, logs hold no data."""
    calls.answer = ValueError("invalid literal: 'a secret'")
    assert not Chain(function()).passes(message("a secret"))
    [record] = errors(caplog)
    assert "ValueError" in record.reason
    assert "test_chain.py:" in record.reason
    assert "a secret" not in logging.Formatter().format(record) + record.reason


def test_each_filter_has_its_own_line(calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    calls.answer = None
    for each in (function(), function()):
        Chain(each).passes(message(1))
    chain = Chain(expression("now", "/a/"), expression("now", "/a/1"))
    chain.passes(message(1))
    chain.passes(message(1, "/a/1"))
    assert len(errors(caplog)) == 3


def test_data_that_cannot_be_read_withholds(calls: Calls) -> None:
    broken = Message(1, 1, "/a/1", "/a/1", None, b'{"x":')
    for each in (function(), expression("message.data.x == 1")):
        chain = Chain(each)
        assert not chain.passes(broken)
        assert chain.failures == 1
    assert calls.seen == []


class Counting(ExpressionFilter):
    """An expression that counts its evaluations."""

    count = 0

    def answer(self, *arguments: Any) -> object:
        self.count += 1
        return super().answer(*arguments)


def test_who_looks_the_same_is_asked_about_once() -> None:
    counting = Counting("/a/", Expression("client.user_id == message.data"))
    chain = Chain(counting)
    news = [message(7), message("7", message_id=2)]
    for client_id in ("a", "b", "c"):
        for user_id, seen in ((7, [True, False]), ("7", [False, True]), (None, [False, False])):
            viewer = Identity(user_id=user_id, group_ids=frozenset({client_id}))
            assert [chain.passes(each, viewer, client_id) for each in news] == seen
    assert counting.count == 6
    chain.turns.next()
    assert chain.passes(news[0], Identity(user_id=7))
    assert counting.count == 7


def test_a_turn_has_one_time() -> None:
    chain = Chain(expression("now <= message.data"))
    news = message(1000)
    assert chain.passes(news)
    chain.turns.wall = 1001.0
    assert chain.passes(news)
    assert chain.passes(message(1000, message_id=2))
    chain.turns.next()
    assert not chain.passes(news)


def test_functions_are_asked_each_time(calls: Calls) -> None:
    chain = Chain(function())
    news = message({"x": 1})
    assert [chain.passes(news), chain.passes(news)] == [True, True]
    calls.answer = False
    assert not chain.passes(news)
    # Decoded once.
    assert calls.seen[0][0]["data"] is calls.seen[2][0]["data"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 7, "7", 8]),
            st.frozensets(st.sampled_from([1, "1", 2])),
            st.booleans(),
            st.sampled_from(["a", "b"]),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_what_is_remembered_is_what_would_be_found(asked: list[Any]) -> None:
    sources = (
        "client.user_id == 7 || 1 in client.group_ids",
        "client.client_id == 'a' || now > 1004.0",
        "!client.is_admin || message.data > 0",
    )
    chain = Chain(*map(expression, sources))
    news = [message(number, message_id=number + 1) for number in range(3)]
    for user_id, group_ids, is_admin, client_id, number, is_last in asked:
        viewer = Identity(user_id=user_id, group_ids=group_ids, is_admin=is_admin)
        expected = (
            (user_id == 7 or 1 in group_ids)
            and (client_id == "a" or chain.turns.wall > 1004)
            and (not is_admin or number > 0)
        )
        assert chain.passes(news[number], viewer, client_id) is expected
        if is_last:
            chain.turns.next()
            chain.turns.wall += 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:allow", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:__name__", "not callable"),
        ("asyncio:sleep", "not async"),
    ],
)
def test_functions_that_cannot_be_used(name: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        CallableFilter("/a/", name)
