"""Streams are taken apart the same way wherever they are cut."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from client_vectors import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from messagebus_client._chunks import SEPARATOR, FrameSplitter, Splitter
from messagebus_client._poller import decode
from messagebus_client.errors import UnexpectedAnswer


def parse(parts: list[bytes]) -> tuple[list[Any], bytes, bool]:
    """The arrays, the rest, and whether there was an error."""
    splitter = FrameSplitter()
    arrays: list[Any] = []
    for part in parts:
        for frame in splitter.feed(part):
            try:
                arrays.append(decode(frame))
            except UnexpectedAnswer:
                return arrays, b"", True
    return arrays, splitter.rest, False


@pytest.mark.parametrize("case", cases("chunks"))
def test_a_stream_is_read_as_the_vectors_say(case: dict[str, Any]) -> None:
    text = case["text"].encode()
    for cut in range(len(text) + 1):
        arrays, rest, is_wrong = parse([text[:cut], text[cut:]])
        assert is_wrong == case.get("error", False)
        if "frames" in case or not is_wrong:
            assert arrays == case.get("frames", [])
        if not is_wrong:
            assert rest.decode() == case.get("rest", "")
    assert parse([text[at : at + 1] for at in range(len(text))])[0] == arrays


@settings(deadline=None)
@given(
    st.lists(st.binary().filter(lambda each: SEPARATOR not in each + SEPARATOR[:-1])),
    st.binary(max_size=4),
    st.data(),
)
def test_parts_come_out_whole_wherever_a_stream_is_cut(
    parts: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    stream = b"".join(each + SEPARATOR for each in parts) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    splitter = Splitter(SEPARATOR)
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(stream[start:end])
    assert found == stream.split(SEPARATOR)[:-1]
    assert splitter.rest == stream.split(SEPARATOR)[-1]


names = st.sampled_from(["channel", "message_id", "global_id", "data", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
)


@settings(deadline=None)
@given(st.binary() | values.map(lambda value: json.dumps([value]).encode()))
def test_whatever_comes_is_an_array_of_messages_or_refused(text: bytes) -> None:
    with suppress(UnexpectedAnswer):
        for each in decode(text):
            assert isinstance(each["channel"], str)
            assert isinstance(each["message_id"], int)
            assert each.keys() >= {"global_id", "data"}


@pytest.mark.parametrize("text", ["[NaN]", "[" * 100_000, "[1]", '[{"channel":"/a"}]', "\xff"])
def test_what_is_no_array_of_messages_is_refused(text: str) -> None:
    with pytest.raises(UnexpectedAnswer):
        decode(text.encode("latin-1"))


def test_a_part_that_does_not_end_is_given_up() -> None:
    splitter = Splitter(b"\n", max_bytes=10)
    assert splitter.feed(b"0123456789\n0123456789") == [b"0123456789"]
    with pytest.raises(UnexpectedAnswer):
        splitter.feed(b"x")
