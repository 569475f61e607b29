"""Frames, chunks and heads, byte for byte."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol import wire


def test_recorded_bytes():
    assert wire.EMPTY_FRAME == b"7\r\n[]\r\n|\r\n\r\n"
    body = b'[{"global_id":4,"message_id":4,"channel":"/foo","data":"four"}]'
    assert wire.frame(body) == b"44\r\n" + body + b"\r\n|\r\n\r\n"
    assert wire.status_message({"/foo": 5}) == (
        b'{"global_id":-1,"message_id":-1,"channel":"/__status","data":{"/foo":5}}'
    )


@given(
    st.lists(
        st.recursive(
            st.none() | st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists
        )
    )
)
def test_frames_are_separable_whatever_is_in_them(values):
    frames = [wire.frame(wire.array([msgspec.json.encode(value)])) for value in values]
    body = b""
    stream = b"".join(frames)
    while stream:
        size, _, rest = stream.partition(b"\r\n")
        length = int(size, 16)
        body, stream = body + rest[:length], rest[length + 2 :]
    parts = body.split(wire.SEPARATOR)
    assert parts.pop() == b""
    assert [json.loads(part) for part in parts] == [[value] for value in values]


def test_later_headers_win_and_none_is_there_twice():
    headers = wire.poll_headers([("Cache-Control", "no-store"), ("X-A", "1")], [("x-a", "2")])
    assert dict(headers)["cache-control"] == "no-store"
    assert dict(headers)["x-a"] == "2"
    assert len(dict(headers)) == len(headers)


def test_cookies_are_added_to_each_other():
    headers = wire.merge_headers(
        [("Set-Cookie", "a=1"), ("Vary", "Origin")], [("set-cookie", "b=2"), ("SET-COOKIE", "c=3")]
    )
    assert headers == (
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("set-cookie", "c=3"),
        ("vary", "Origin"),
    )


def test_a_stream_keeps_its_type_and_framing():
    extra = [("Content-Type", "text/html"), ("X-Content-Type-Options", "none")]
    head = wire.stream_head(wire.poll_headers(extra)).decode()
    assert head.count("content-type: ") == 1
    assert "content-type: text/plain; charset=utf-8\r\n" in head
    assert head.count("x-content-type-options: ") == 1
    assert "x-content-type-options: nosniff\r\n" in head
    assert "transfer-encoding: chunked\r\n" in head
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert head.endswith("\r\n\r\n")


@given(st.text(), st.text(st.characters()))
def test_what_passes_for_a_header_is_one_line_of_a_head(name, value):
    if wire.is_header(name, value):
        head = wire.head(200, ((name, value), ("x-last", "1")))
        assert head.decode().split("\r\n")[1:] == [f"{name}: {value}", "x-last: 1", "", ""]
        assert len(head.splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-a", "b\r\nx-c: d"),
        ("x-a", "b\nc"),
        ("x-a", "b\rc"),
        ("x-a", "b\0"),
        ("x-a", "b\x7f"),
        ("x-a", "b\x85c"),
        ("x-a", "b\u2028c"),
        ("x-a", "\udc0d\udc0a"),
        ("x-a", "\udcff"),
        ("x-a:", "b"),
        ("x a", "b"),
        ("", "b"),
        ("x-a\n", "b"),
        ("xä", "b"),
    ],
)
def test_what_is_no_header(name, value):
    assert not wire.is_header(name, value)


@pytest.mark.parametrize("value", ["", "a", "a\tb", "ä", "日本", 'W/"1"'])
def test_what_is_a_header(value):
    assert wire.is_header("X-A", value)


def test_an_answer_counts_bytes():
    answer = wire.json_answer(wire.poll_headers(), '["ä"]'.encode())
    assert b"content-length: 6\r\n" in answer
    assert b"connection: close\r\n" in answer
