"""Where keys stand in TOML files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.settings.toml_lines import KeyPath, locate_keys
from tests.support.properties import examples


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1", ("a",), 1),
        ("\n# a = 0\n\n  a=1 # one", ("a",), 4),
        ("[a]\nb = 1\n[c]\nb = 2", ("c", "b"), 4),
        ("[a]\nb = 1\n[c]\nb = 2", ("c",), 3),
        ("[a.b]\nc = 1", ("a", "b", "c"), 2),
        ("[a.b]\nc = 1", ("a",), 1),
        ("[ a . 'b' ]\nc = 1", ("a", "b", "c"), 2),
        ("\na.b.c = 1", ("a", "b"), 2),
        ('"a.b".c = 1', ("a.b", "c"), 1),
        ('"\\u0061" = 1', ("a",), 1),
        ("[[a]]\nb = 1\n[[a]]\nb = 2", ("a", 1, "b"), 4),
        ("[[a]]\nb = 1\n[[a]]\nb = 2", ("a",), 1),
        ("[[a]]\n[a.b]\nc = 1\n[[a]]\n[a.b]\nc = 2", ("a", 1, "b", "c"), 6),
        ("[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2", ("a", 0, "b", 1, "c"), 5),
        ("a = {b = 1, c = {d = 2}}\ne = 1", ("a", "c", "d"), 1),
        ("a = {b = 1, c = {d = 2}}\ne = 1", ("e",), 2),
        ("a = [\n  1, # ]\n\n  2,\n]\nb = 1", ("a", 1), 4),
        ("a = [\n  1, # ]\n\n  2,\n]\nb = 1", ("b",), 6),
        ("a = [\n  {b = 1},\n  {b = 2, c = [1, [2]]},\n]\nd = 1", ("a", 1, "c"), 3),
        ("a = []\nb = {}\nc = 1", ("c",), 3),
        ('a = "]\\"\\n#"\nb = 1', ("b",), 2),
        ("a = '\\'\nb = 1", ("b",), 2),
        ('a = """\n[x]\nb = 0\n\\""" """\nb = 1', ("b",), 5),
        ('a = """""x"""""\nb = 1', ("b",), 2),
        ("a = '''\n'' b = 0'''''\nb = 1", ("b",), 3),
        ('a = ""\nb = ""\nc = 1', ("c",), 3),
        ('"" = 1', ("",), 1),
        ("a = 1979-05-27 07:32:00Z # x\nb = 1", ("b",), 2),
        ("a = 1\r\nb = [\r\n2]\r\nc = 3", ("c",), 4),
    ],
)
def test_lines(text: str, path: KeyPath, line: int) -> None:
    tomllib.loads(text)
    assert locate_keys(text)[path] == line


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every path in what tomllib reads."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for step, item in items:
        yield from paths(item, (*path, step))


keys = st.sampled_from(["a", "b", "c-d", '"e f"', "'g.h'", "a . b", '"\\n"'])
strings = [
    '"x # ] } , y"',
    "'it\\'",
    '""',
    "''",
    '"""a\n""b\\""" c"""',
    "'''\n[no]\n= '''",
    '""""q"""',
]
scalars = st.sampled_from(["1", "-2.5e3", "true", "1979-05-27T07:32:00Z", "inf", *strings])
spaces = st.sampled_from(["", " ", "\n", " # , ] \n", "\n\n\t"])


@st.composite
def values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.sampled_from(["scalar", "array", "table"])) if depth else "scalar"
    if kind == "array":
        items = draw(st.lists(values(depth - 1), max_size=3))
        gap = draw(spaces)
        return "[" + "".join(f"{gap}{item}{gap}," for item in items) + gap + "]"
    if kind == "table":
        pairs = draw(st.lists(st.tuples(keys, values(depth - 1)), max_size=3))
        return "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"
    return draw(scalars)


@st.composite
def statements(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["pair", "pair", "table", "array", "comment"]))
    match kind:
        case "pair":
            return f"{draw(keys)} = {draw(values())}"
        case "table":
            return f"[{draw(keys)}]"
        case "array":
            return f"[[{draw(keys)}]]"
        case _:
            return "# [a]\n"


@given(st.lists(statements(), max_size=8).map("\n".join))
@examples(3)
def test_every_key_is_found(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # keys that are there twice, for the most part
    lines = locate_keys(text)
    found = set(paths(data))
    assert found == set(lines)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
