"""Channel rules: who may subscribe, and which rule a name falls under (SPEC 6).

The table in docs/channels.md is the one that is tested here.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.message import Id
from messagebusd.protocol.rules import ChannelRule, ChannelRules, check_pattern, covered

GUIDE = Path(__file__).parents[3] / "docs" / "channels.md"

LOOKUP_SAYS = {"nothing": None, "named": True, "left out": False}
VISITORS: dict[str, Id | None] = {"anonymous": None, "user 7": 7, "user 8": 8}
PATTERNS = {
    "`/topic/*`": ("/topic/*", "/topic/1"),
    "`/user/{user_id}`": ("/user/{user_id}", "/user/7"),
}


def decision_table() -> list[tuple[str, str, str, str, str]]:
    """Pattern, subscribe, visitor, what the lookup says, and the result: from the guide."""
    rows = []
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in PATTERNS:
            pattern, subscribe, *results = cells
            visitors = [(who, said) for who in VISITORS for said in LOOKUP_SAYS]
            rows += [
                (pattern, subscribe.strip("`"), who, said, result)
                for (who, said), result in zip(visitors, results, strict=True)
            ]
    return rows


TABLE = decision_table()


def test_the_guide_decides_every_case() -> None:
    cases = {each[:4] for each in TABLE}
    assert len(cases) == len(TABLE) == 2 * 4 * 3 * 3
    assert {result for *_, result in TABLE} == {"yes", "no"}


@pytest.mark.parametrize(("pattern", "subscribe", "who", "said", "result"), TABLE)
def test_who_may_subscribe(pattern: str, subscribe: str, who: str, said: str, result: str) -> None:
    text, channel = PATTERNS[pattern]
    rules = ChannelRules([ChannelRule(text, subscribe)])  # type: ignore[arg-type]
    may = rules.may_subscribe(channel, VISITORS[who], LOOKUP_SAYS[said])
    assert may is (result == "yes")


def test_a_channel_without_a_rule_is_public() -> None:
    rules = ChannelRules([ChannelRule("/a/*", "none")])
    assert rules.may_subscribe("/b", None, None)
    assert not rules.may_subscribe("/a/b", 7, True)
    assert ChannelRules().may_subscribe("/a/b", None, None)
    assert rules.rule("/b").require_audience is False


def test_the_first_rule_that_matches_decides_alone() -> None:
    rules = ChannelRules(
        [
            ChannelRule("/a/b", "none"),
            ChannelRule("/a/*/c", "authenticated", max_backlog_size=3),
            ChannelRule("/a/b/c", "public"),
            ChannelRule("/a/*", "none"),
            ChannelRule("*", "public"),
        ]
    )
    assert not rules.may_subscribe("/a/b", 7, True)
    assert rules.rule("/a/b/c").max_backlog_size == 3
    assert not rules.may_subscribe("/a/b/c", None, True)
    assert rules.rule("/a/x").pattern == "/a/*"
    assert rules.rule("/x").pattern == "*"


USERS = ChannelRules(
    [
        ChannelRule("/user/{user_id}"),
        ChannelRule("/user/{user_id}/inbox/*"),
        ChannelRule("/site/*/user/{user_id}/alerts"),
        ChannelRule("/pair/{user_id}/with/{user_id}"),
        ChannelRule("*", "none"),
    ]
)


@pytest.mark.parametrize(
    ("channel", "user_id", "may"),
    [
        ("/user/7", 7, True),
        ("/user/7", "7", True),
        ("/user/7", 8, False),
        ("/user/7", None, False),
        ("/user/07", 7, False),
        ("/user/+7", 7, False),
        ("/user/7 ", 7, False),
        ("/user/7/", 7, False),
        ("/user/٧", 7, False),  # a seven, in other digits
        ("/user/-7", -7, True),
        ("/user/None", None, False),
        ("/user/None", "None", True),
        ("/user/null", None, False),
        # Nobody's, not even that of a user whose id is empty.
        ("/user/", "", False),
        ("/user/", None, False),
        ("/user//inbox/1", "", False),
        # An id with a slash is no single segment.
        ("/user/a/b", "a/b", False),
        ("/user/a", "a/b", False),
        # A name that looks like a pattern is a name.
        ("/user/*", 7, False),
        ("/user/*", "*", True),
        ("/user/{user_id}", 7, False),
        ("/user/{user_id}", "{user_id}", True),
        ("/user/.", 7, False),
        # Case, escapes and compositions are characters like others.
        ("/user/Bob", "bob", False),
        ("/User/bob", "bob", False),
        ("/user/b%6Fb", "bob", False),
        ("/user/é", "é", True),
        ("/user/é", "e\u0301", False),
        ("/user/ſ", "s", False),
        ("/user/7/inbox/a/b", 7, True),
        ("/user/7/inbox/", 7, True),
        ("/user/8/inbox/7", 7, False),
        ("/user/7/inbox/x/user/8", 8, False),
        ("/site/a/user/7/alerts", 7, True),
        ("/site/a/user/8/alerts/user/7/alerts", 8, False),
        ("/site/a/user/8/alerts/user/7/alerts", 7, True),
        ("/pair/7/with/7", 7, True),
        ("/pair/7/with/8", 7, False),
        ("/pair/7/with/8", 8, False),
        # Neither is a way around.
        ("/user", 7, False),
        ("//user/7", 7, False),
        ("/global/user/7", 7, False),
        ("/user/7\n", 7, False),
    ],
)
def test_everybody_has_his_own_channels(channel: str, user_id: Id | None, may: bool) -> None:
    assert USERS.may_subscribe(channel, user_id, True) is may
    assert USERS.may_subscribe(channel, user_id, None) is may


def test_what_belongs_to_another_is_not_looked_up_in_later_rules() -> None:
    rules = ChannelRules([ChannelRule("/user/{user_id}"), ChannelRule("*")])
    assert not rules.may_subscribe("/user/7", 8, True)
    assert not rules.may_subscribe("/user/", 8, True)
    assert rules.may_subscribe("/user/7/x", 8, True)
    assert rules.rule("/user/7").pattern == "/user/{user_id}"


# -- against a naive matcher ---------------------------------------------------------------------

PIECES = st.sampled_from(["/", "a", "b", "ab", "*", "/{user_id}", "é", "."])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    text = "/" + "".join(draw(st.lists(PIECES, max_size=6)))
    try:
        check_pattern(text)
    except ValueError:
        return text.replace("/{user_id}", "")
    return text


NAMES = st.lists(st.sampled_from(["/", "a", "b", "7", "*", "é", ".", "x"]), max_size=8).map(
    lambda pieces: "/" + "".join(pieces)
)


def naively(pattern: str, name: str) -> list[list[str]]:
    """All the ways in which a pattern matches: what stands for each placeholder."""
    if not pattern:
        return [[]] if not name else []
    if pattern.startswith("*"):
        return [way for at in range(len(name) + 1) for way in naively(pattern[1:], name[at:])]
    if pattern.startswith("{user_id}"):
        ends = range(len(re.match("[^/]*", name)[0]) + 1)  # type: ignore[index]
        return [[name[:at], *way] for at in ends for way in naively(pattern[9:], name[at:])]
    return naively(pattern[1:], name[1:]) if name[:1] == pattern[0] else []


@given(st.lists(patterns(), max_size=8), NAMES)
def test_the_index_finds_what_trying_all_rules_finds(texts: list[str], name: str) -> None:
    rules = [ChannelRule(text, max_backlog_size=place) for place, text in enumerate(texts)]
    expected = next((rule for rule in rules if naively(rule.pattern, name)), None)
    built = ChannelRules(rules)
    if expected is None:
        assert built.rule(name).pattern == "*"
        assert built.may_subscribe(name, None, None)
        return
    assert built.rule(name) is expected
    [segments] = {tuple(way) for way in naively(expected.pattern, name)}
    for user_id in ("7", "a", "*", "ab"):
        assert built.may_subscribe(name, user_id, None) is (set(segments) <= {user_id})
    assert built.may_subscribe(name, None, None) is (not segments)


@given(st.lists(patterns(), min_size=2, max_size=6), NAMES)
def test_a_rule_that_is_said_to_be_covered_never_decides(texts: list[str], name: str) -> None:
    rules = [ChannelRule(text, max_backlog_size=place) for place, text in enumerate(texts)]
    decides = ChannelRules(rules).rule(name)
    for place, earlier in covered(rules).items():
        assert earlier < place
        assert decides is not rules[place]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["/a", "/a"], {1: 0}),
        (["/a/*", "/a/b"], {1: 0}),
        (["/a/*", "/a/b/*"], {1: 0}),
        (["/a/*", "/a/**"], {1: 0}),
        (["/a/b/*", "/a/*"], {}),
        (["*", "/a", "/user/{user_id}"], {1: 0, 2: 0}),
        (["/user/{user_id}", "/user/7"], {1: 0}),
        (["/user/{user_id}", "/user/{user_id}"], {1: 0}),
        (["/user/7", "/user/{user_id}"], {}),
        (["/user/{user_id}", "/user/*"], {}),
        (["/user/{user_id}/a", "/user/*/a"], {}),
        (["/a*b", "/axb", "/ab"], {1: 0, 2: 0}),
        (["/a", "/b", "/a*"], {}),
    ],
)
def test_rules_that_can_never_match(texts: Sequence[str], expected: dict[int, int]) -> None:
    assert covered([ChannelRule(text) for text in texts]) == expected


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "must begin"),
        ("topic/*", "must begin"),
        ("{user_id}", "must begin"),
        ("/user/{userid}", r"unknown placeholder \{userid\}"),
        ("/user/{}", r"unknown placeholder \{\}"),
        ("/user/{ user_id }", "unknown placeholder"),
        ("/user/{USER_ID}", "unknown placeholder"),
        ("/user/{user_id", "brace"),
        ("/user/user_id}", "brace"),
        ("/user/{{user_id}}", "brace"),
        ("/user/}{", "brace"),
        ("/user/{user_id}x", "whole segment"),
        ("/user/x{user_id}", "whole segment"),
        ("/user/{user_id}*", "whole segment"),
        ("/user/*{user_id}", "whole segment"),
        ("/user/{user_id}{user_id}", "whole segment"),
        ("/a/*/{user_id}/*", "both before and after"),
        ("/a/{user_id}/*/{user_id}/*", "both before and after"),
        ("/a\n", "control characters"),
        ("/a$|$site", r"\$\|\$"),
        ("/a$$123$$", r"\$\$123\$\$"),
    ],
)
def test_patterns_that_are_mistakes(pattern: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "/", "/a", "/a/*", "*/a", "/a/**/b", "/user/{user_id}", "/{user_id}/{user_id}/x"),
        *("/a/*/{user_id}", "/{user_id}/*", "/{user_id}/*/{user_id}", "/user/{user_id}/"),
    ],
)
def test_patterns_that_are_none(pattern: str) -> None:
    check_pattern(pattern)


def steps(rules: ChannelRules, name: str) -> int:
    """How many lines of code it takes to find a name's rule."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    gc.disable()  # finalizers have lines, too
    sys.settrace(trace)
    try:
        rules.rule(name)
    finally:
        sys.settrace(None)
        gc.enable()
    return count


def test_rules_that_do_not_apply_cost_nothing() -> None:
    def many(count: int) -> ChannelRules:
        texts = [
            text
            for number in range(count // 4)
            for text in (
                f"/topic/{number:05}",
                f"/topic/{number:05}/*",
                f"/user/{{user_id}}/{number:05}",
                f"*/{number:05}",
            )
        ]
        return ChannelRules([ChannelRule(text) for text in texts])

    few, all_of_them = many(12), many(10_000)
    for name in (
        "/topic/00001",
        "/topic/00002/x",
        "/user/7/00001",
        "/nothing",
        "/topic/" + "x" * 500,
    ):
        assert few.rule(name) == all_of_them.rule(name)
        assert steps(all_of_them, name) == steps(few, name)


def test_no_name_makes_a_pattern_slow() -> None:
    rules = ChannelRules(
        [
            ChannelRule("/*" * 30 + "x/{user_id}"),
            ChannelRule("/{user_id}" * 30 + "/*"),
            ChannelRule("*" + "/{user_id}" * 30),
            ChannelRule("*a" * 30 + "b"),
        ]
    )
    for name in ("/a" * 256, "/" * 512, "a" * 512, "/a/" * 170, "/x" * 255 + "/b", "a" * 511 + "b"):
        rules.rule(name)  # tried in all ways, one of these would take years
