"""Two answers to one poll: which differences are told, and that nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from messagebusd.shadow.compare import MAY_CONTINUE_BYTES, Difference, Reply, compare
from messagebusd.shadow.tally import Tally

JSON = "application/json; charset=utf-8"


def message(number: int, channel: str = "/a", data: Any = "secret", global_id: int = 0) -> Any:
    return {
        "global_id": global_id or number,
        "message_id": number,
        "channel": channel,
        "data": data,
    }


def status(**positions: int) -> Any:
    named = {f"/{name}": position for name, position in positions.items()}
    return {"global_id": -1, "message_id": -1, "channel": "/__status", "data": named}


def reply(*messages: Any, code: int = 200, kind: str = JSON) -> Reply:
    return Reply(code, kind, json.dumps(messages).encode())


ONE, TWO = message(1), message(2)


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        (reply(), reply()),
        (reply(ONE, TWO), reply(ONE, TWO)),
        (reply(ONE, kind="Application/JSON"), reply(ONE)),
        # Between channels there is no order; a status may come in parts.
        (reply(ONE, message(1, "/b")), reply(message(1, "/b"), ONE)),
        (reply(status(a=1), status(b=2)), reply(status(a=1, b=2))),
        (
            Reply(200, JSON, b'[{"global_id":1,"message_id":1,"channel":"/a","data":"\\u00fc"}]'),
            Reply(200, JSON, '[{"global_id":1,"message_id":1,"channel":"/a","data":"ü"}]'.encode()),
        ),
        # What an application says to those whom it refuses is its own.
        (Reply(403, JSON, b"go away"), Reply(403, JSON, b"please go")),
    ],
)
def test_alike(original: Reply, ours: Reply) -> None:
    assert compare(original, ours) == []


@pytest.mark.parametrize(
    ("original", "ours", "kind", "detail"),
    [
        (reply(ONE, TWO), reply(TWO), "missing", "/a: we do not give 1"),
        (reply(), reply(ONE, TWO), "extra", "/a: only we give 1, 2"),
        (reply(ONE, TWO), reply(TWO, ONE), "order", "/a: the same messages in another order"),
        (
            reply(ONE),
            reply(message(1, data="other")),
            "data",
            "/a: 1 holds other data (8 and 7 bytes)",
        ),
        (
            reply(ONE),
            reply(message(1, global_id=9)),
            "global_id",
            "/a: the global id of 1 is 1, ours 9",
        ),
        (
            reply(status(a=1)),
            reply(status(a=2)),
            "position",
            "/a: the original's status says 1, ours 2",
        ),
        (reply(status(a=1)), reply(), "position", "/a: the original's status says 1, ours nothing"),
        (reply(), reply(code=429), "status", "the original answers 200, we 429"),
        (reply(), reply(kind=""), "content_type", "the original's is application/json, ours none"),
        (
            Reply(200, JSON, b"<html>"),
            reply(),
            "unreadable",
            "the original's answer is no array of messages",
        ),
        (reply(), Reply(200, JSON, b"{}"), "unreadable", "our answer is no array of messages"),
        (
            reply(),
            Reply(200, JSON, b"[" * 9999),
            "unreadable",
            "our answer is no array of messages",
        ),
    ],
)
def test_differences(original: Reply, ours: Reply, kind: str, detail: str) -> None:
    found = compare(original, ours)
    assert found == [Difference(kind, detail)]
    assert "secret" not in str(found)


def test_a_long_answer_may_go_on_with_the_next_poll() -> None:
    large = message(1, data="x" * MAY_CONTINUE_BYTES)
    assert compare(reply(large, TWO, message(3)), reply(large)) == []
    [found] = compare(reply(large, TWO, message(3)), reply(large, message(3)))
    assert found == Difference("missing", "/a: we do not give 2")


def test_many_ids_are_not_all_told() -> None:
    [found] = compare(reply(*map(message, range(1, 101))), reply())
    assert found.detail == "/a: we do not give 1, 2, 3, 4, 5 and 95 more"


def test_a_tally_keeps_an_example_of_each_kind() -> None:
    tally = Tally()
    assert not tally.is_good
    assert list(tally.lines())[-1].startswith("nothing was compared")
    tally.compared = 3
    tally.alike = 1
    assert tally.is_good
    first, second = Difference("missing", "one"), Difference("missing", "two")
    assert tally.differs([first, second, Difference("extra", "e")]) == [
        first,
        Difference("extra", "e"),
    ]
    assert tally.differs([second]) == []
    assert not tally.is_good
    assert list(tally.lines()) == [
        "3 polls compared: 1 alike, 0 alike when asked again, 2 differ",
        "0 requests mirrored",
        "  missing: 2 polls, for example one",
        "  extra: 1 polls, for example e",
    ]
    assert json.loads(tally.as_json())["kinds"] == {"missing": 2, "extra": 1}
