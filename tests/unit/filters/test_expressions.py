"""CEL expressions as filters: what they mean, and what happens where they mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from messagebusd.filters.expressions import EvaluationError, Expression

DATA = {
    "at": 990,
    "at_float": 990.25,
    "late": 5,
    "text": "ab",
    "none": None,
    "yes": True,
    "list": [1, 2, 3],
    "author": 7,
    "beyond": 2**53 + 1,
    "largest": 2**63 - 1,
    "emoji": "😀",
}


def values(data: object = DATA, **client: Any) -> dict[str, Any]:
    who = {
        "user_id": 7,
        "group_ids": [7, "8"],
        "site_id": None,
        "is_admin": False,
        "client_id": "c",
        **client,
    }
    return {
        "message.channel": "/chat/1",
        "message.site_id": "s",
        "message.message_id": 3,
        "message.global_id": 4,
        "message.data": data,
        **{f"client.{name}": value for name, value in who.items()},
        "now": 1000.5,
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Integers and floats mix, as JSON's numbers do.
        ("now - message.data.at <= 20", True),
        ("now - message.data.at_float <= 20", True),
        ("now - message.data.at <= 20.0", True),
        ("now - message.data.late <= 20", False),
        ("message.data.at + 20 >= now", True),
        ("message.data.at_float * 2 == 1980.5", True),
        ("message.data.at / 4.0 == 247.5", True),
        ("message.data.at == 990.0", True),
        # Integers are exact as far as 64 bits go.
        ("message.data.beyond == 9007199254740993", True),
        ("message.data.beyond == 9007199254740992", False),
        ("message.data.largest > 9223372036854775806", True),
        ("has(message.data.at)", True),
        ("has(message.data.missing)", False),
        ("!has(message.data.missing) || message.data.missing == 1", True),
        ("message.data.none == null", True),
        ("message.data.yes", True),
        ("message.data.yes == 1", False),
        ("message.data.text.startsWith('a') && message.data.text.endsWith('b')", True),
        ("message.data.text.contains('x')", False),
        ("message.data.text.matches('^[a-c]+$')", True),
        ("size(message.data.emoji) == 1", True),
        ("message.channel.startsWith('/chat/')", True),
        ("message.site_id == 's' && message.message_id == 3 && message.global_id > 3", True),
        # Ids differ by type, as audiences take them.
        ("client.user_id == 7", True),
        ("client.user_id == '7'", False),
        ("client.user_id == message.data.author", True),
        ("client.user_id in message.data.list", False),
        ("7 in client.group_ids", True),
        ("'7' in client.group_ids", False),
        ("client.group_ids.exists(g, g == 7)", True),
        ("client.group_ids.all(g, g == 7)", False),
        ("client.site_id == null", True),
        ("client.is_admin || client.client_id == 'c'", True),
        # What cannot be told on one side does not matter if the other one decides.
        ("message.data.missing == 1 || client.user_id == 7", True),
    ],
)
def test_what_expressions_say(source: str, expected: bool) -> None:
    assert Expression(source).evaluate(values()) is expected


@pytest.mark.parametrize(
    "source",
    [
        "message.data.missing == 1",
        "message.data.at.deeper == 1",
        "now - message.data.text <= 20",
        "now - message.data.none <= 20",
        "now - message.data.yes <= 20",
        "message.data.at / 0 == 1",
        "message.data.at_float / 0 == 1.0",
        "message.data.largest + 1 > 0",
        "message.data.list[7] == 1",
        "message.data.text.matches('(')",
        "int(message.data.text) == 1",
    ],
)
def test_what_has_no_result(source: str) -> None:
    expression = Expression(source)
    with pytest.raises(EvaluationError) as caught:
        expression.evaluate(values())
    assert "ab" not in str(caught.value)  # the text in the data


@pytest.mark.parametrize(
    "source", ["now", "message.data.text", "message.data.none", "client.user_id"]
)
def test_what_is_neither_true_nor_false_is_handed_on(source: str) -> None:
    assert not isinstance(Expression(source).evaluate(values()), bool)


def test_integers_beyond_64_bits_have_no_result() -> None:
    for source in ("message.data.n > 5", "message.data.other == 1", "has(message.data.n)"):
        with pytest.raises(EvaluationError) as caught:
            Expression(source).evaluate(values({"n": 2**64 + 12345, "other": 1}))
        assert "12345" not in str(caught.value)
    with pytest.raises(EvaluationError):
        Expression("client.user_id == 7").evaluate(values(user_id=2**70))
    # Where the data is not looked at, it does not matter.
    assert Expression("client.user_id == 7").evaluate(values({"n": 2**64})) is True


def test_a_comprehension_over_a_huge_list_ends() -> None:
    short, huge = values({"list": [0] * 9_000}), values({"list": [0] * 400_000})
    expression = Expression("message.data.list.all(x, x == 0)")
    assert expression.evaluate(short) is True
    with pytest.raises(EvaluationError, match="budget"):
        expression.evaluate(huge)
    nested = Expression("message.data.list.all(x, message.data.list.all(y, x == y))")
    with pytest.raises(EvaluationError, match="budget"):
        nested.evaluate(short)


def test_regular_expressions_take_linear_time() -> None:
    expression = Expression("message.data.text.matches('^(a+)+$')")
    # Tried in all ways, already thirty letters would take a thousand million steps.
    assert expression.evaluate(values({"text": "a" * 40_000 + "b"})) is False


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("now - ", r"mismatched input '<EOF>'"),
        ("now >\n a +", r"\(line 2, column"),
        ("", "is no CEL expression"),
        ("mesage.data.x == 1", r"undeclared reference to 'mesage\.data\.x'"),
        ("client.usre_id == 1", r"undeclared reference to 'client\.usre_id'"),
        ("message.dat.x", "undeclared reference"),
        ("datetime.now()", "undeclared reference"),
        ("__import__('os')", "undeclared reference"),
        ("1", "must say true or false; this is of type int"),
        ("message.channel", "of type string"),
        ("'a' < 1", "no matching overload"),
        ("has(client.user_id)", "always there"),
        ("message.data.list.map(x, x + 1).size() == 1", r"must not use map\(\)"),
        ("size(message.data.list . filter (x, x > 1)) == 1", r"must not use filter\(\)"),
        ("has( message . data )", "always there"),
    ],
)
def test_mistakes_are_found_before_any_message(source: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        Expression(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("now - message.data.at <= 20", ()),
        ("client.user_id == 7", ("user_id",)),
        ("client.is_admin || 7 in client.group_ids", ("group_ids", "is_admin")),
        ("client . user_id == 7", ("user_id",)),
        # Too many are found, for example where data has a field of that name, but never too few.
        ("message.data.user_id == 7", ("user_id",)),
        ("message.data.list.exists(client, client.user_id == 7)", ("user_id",)),
    ],
)
def test_which_fields_of_a_client_matter(source: str, fields: tuple[str, ...]) -> None:
    assert Expression(source).client_fields == fields
