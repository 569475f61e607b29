"""Positions, bodies and modes: tables of what clients send and what it means."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import InvalidChannel, LimitExceeded, MalformedRequest
from messagebusd.protocol.requests import (
    MAX_ID,
    Mode,
    PollLimits,
    choose_mode,
    form_pairs,
    json_pairs,
    multipart_pairs,
    parse_poll,
    to_i,
    validate_client_id,
)

LIMITS = PollLimits()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("7", 7),
        ("-1", -1),
        ("+1", 1),
        (" 1", 1),
        ("\t\n 12 ", 12),
        ("02", 2),
        ("4abc", 4),
        ("3.9", 3),
        ("1e3", 1),
        ("0x2", 0),
        ("1_0", 10),
        ("1__0", 1),
        ("_1", 0),
        ("abc", 0),
        ("-", 0),
        ("--1", 0),
        ("-+1", 0),
        ("- 1", 0),
        ("\u0663", 0),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, MAX_ID),
        ("9" * 5000, MAX_ID),
        ("-" + "9" * 5000, -MAX_ID),
        ("0" * 5000 + "5", 5),
        ("+" + "0" * 30 + "12", 12),
    ],
)
def test_text_is_read_as_ruby_reads_it(text, value):
    assert to_i(text) == value


@given(st.text(max_size=40))
def test_any_text_is_a_position(text):
    assert -MAX_ID <= to_i(text) <= MAX_ID


@given(st.integers(-(10**17), 10**17), st.text(alphabet="abc.,;:-+ ", max_size=5))
def test_leading_digits_count(number, rest):
    assert to_i(f"{number}{rest}") == number


@pytest.mark.parametrize(
    ("value", "position"),
    [
        (5, 5),
        (-3, -3),
        (3.9, 3),
        (-2.7, -2),
        (1e300, MAX_ID),
        (-1e300, -MAX_ID),
        (10**30, MAX_ID),
        (-(10**30), -MAX_ID),
        ("12", 12),
        ("", None),
        (None, None),
    ],
)
def test_values_are_positions(value, position):
    assert parse_poll([("/foo", value)], LIMITS).positions == {"/foo": position}


@pytest.mark.parametrize("value", [True, False, [], [1], {}, {"a": 1}])
def test_unreadable_values_are_ignored_and_counted(value):
    request = parse_poll([("/foo", value), ("/bar", 1)], LIMITS)
    assert request.positions == {"/bar": 1}
    assert request.ignored == 1


@pytest.mark.parametrize(
    ("value", "seq"), [(3, 3), ("4", 4), (None, 0), ("", 0), ([], 0), (True, 0), (2.5, 2)]
)
def test_seq_is_no_channel(value, seq):
    request = parse_poll([("__seq", value)], LIMITS)
    assert (request.seq, request.positions) == (seq, {})


def test_the_last_value_of_a_channel_counts():
    assert parse_poll([("/foo", 1), ("/foo", 2)], LIMITS).positions == {"/foo": 2}


def test_channels_are_limited():
    pairs = [(f"/{n}", 0) for n in range(501)]
    assert len(parse_poll(pairs[:-1], LIMITS).positions) == 500
    with pytest.raises(LimitExceeded, match="500 channels"):
        parse_poll(pairs, LIMITS)


@pytest.mark.parametrize(
    "channel", ["/a\x00", "/a\n", "/a\x7f", "/a\x85", "/a$|$site", "/a$$123$$b", "/" + "x" * 512]
)
def test_unusable_channels_are_refused(channel):
    with pytest.raises(InvalidChannel) as caught:
        parse_poll([(channel, 0)], LIMITS)
    assert caught.value.status == 400


def test_length_is_counted_in_bytes():
    parse_poll([("ä" * 256, 0)], LIMITS)
    with pytest.raises(InvalidChannel):
        parse_poll([("ä" * 257, 0)], LIMITS)


@pytest.mark.parametrize(
    ("body", "pairs"),
    [
        (b"", []),
        (b"/foo=0&__seq=1", [("/foo", "0"), ("__seq", "1")]),
        (b"%2Ffoo=+1", [("/foo", " 1")]),
        (b"/foo=1;2", [("/foo", "1;2")]),
        (b"/foo=1=2", [("/foo", "1=2")]),
        (b"/foo", [("/foo", "")]),
        (b"&&/foo=1&&", [("/foo", "1")]),
        (b"/a[b]=1", [("/a[b]", "1")]),
        ("/ä=1".encode(), [("/ä", "1")]),
    ],
)
def test_forms(body, pairs):
    assert list(form_pairs(body, 100)) == pairs


@pytest.mark.parametrize("body", [b"/%FF=1", b"/\xff=1", b"/a=%C3"])
def test_forms_must_be_utf_8(body):
    with pytest.raises(MalformedRequest) as caught:
        list(form_pairs(body, 100))
    assert caught.value.code == "invalid_form"


def multipart(*parts):
    body = b"".join(b"--xyz\r\n%b\r\n" % part for part in parts)
    return body + b"--xyz--\r\n", "multipart/form-data; boundary=xyz"


def test_multipart_forms():
    body, kind = multipart(
        b'Content-Disposition: form-data; name="/foo"\r\n\r\n-1',
        b'Content-Disposition: form-data; name="/\xc3\xb6"\r\n\r\n\xc3\xa4',
        b'Content-Disposition: form-data; name="__seq"\r\nContent-Type: text/plain\r\n\r\n3\r\n4',
    )
    assert multipart_pairs(body, kind, 10) == [("/foo", "-1"), ("/ö", "ä"), ("__seq", "3\r\n4")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--xyz",
        b"garbage",
        b"--other\r\n\r\n--other--",
        multipart(b"\r\n1")[0],
        multipart(b"Content-Type: message/rfc822\n\n" * 100)[0],
        multipart(b"Content-Disposition: form-data\r\n\r\n1")[0],
        multipart(b'Content-Disposition: form-data; name="/\xff"\r\n\r\n1')[0],
        multipart(b'Content-Disposition: form-data; name="/a"\r\n\r\n\xff')[0],
        multipart(b'Content-Disposition: form-data; name="/a"\r\n\r\n1')[0][:-8],
    ],
)
def test_broken_multipart_forms(body):
    with pytest.raises(MalformedRequest) as caught:
        multipart_pairs(body, "multipart/form-data; boundary=xyz", 10)
    assert caught.value.code == "invalid_form"


def test_form_fields_are_limited_before_they_are_parsed():
    with pytest.raises(LimitExceeded):
        form_pairs(b"&" * 100, 100)
    body, kind = multipart(*[b'Content-Disposition: form-data; name="/a"\r\n\r\n1'] * 11)
    with pytest.raises(LimitExceeded):
        multipart_pairs(body, kind, 10)
    body, kind = multipart(b"Content-Disposition: form-data%b\r\n\r\n1" % (b"; a=b" * 1000))
    with pytest.raises(LimitExceeded):
        multipart_pairs(body, kind, 10)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"1",
        b'"x"',
        b"null",
        b"[]",
        b'[["/foo",0]]',
        b'{"a":NaN}',
        b'{"\xff":1}',
        b"[" * 100_000,
        b'{"\\ud800":1}',
    ],
)
def test_json_must_be_an_object(body):
    with pytest.raises(MalformedRequest) as caught:
        json_pairs(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@given(st.dictionaries(st.text(), st.none() | st.integers(-(2**70), 2**70) | st.text()))
def test_json_round_trip(positions):
    assert dict(json_pairs(msgspec.json.encode(positions))) == positions


@pytest.mark.parametrize(
    ("query", "version", "chunks", "mode"),
    [
        ("", (1, 1), True, Mode.STREAM),
        ("_=123", (1, 1), True, Mode.STREAM),
        ("", (1, 1), False, Mode.LONG_POLL),
        ("", (1, 0), True, Mode.LONG_POLL),
        ("dlp=t", (1, 1), True, Mode.POLL),
        ("a=1&dlp=t&_=5", (1, 0), False, Mode.POLL),
        ("dlp=true", (1, 1), True, Mode.STREAM),
        ("xdlp=t", (1, 1), True, Mode.STREAM),
        ("dlp=f", (1, 1), False, Mode.LONG_POLL),
    ],
)
def test_modes(query, version, chunks, mode):
    assert choose_mode(query, version, chunks=chunks) is mode


def test_client_ids_are_limited():
    validate_client_id("x" * 128, LIMITS)
    with pytest.raises(MalformedRequest, match="128 bytes"):
        validate_client_id("x" * 129, LIMITS)
