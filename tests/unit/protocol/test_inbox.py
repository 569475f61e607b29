"""Entries of the Redis door: reading, rules, signatures."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import RequestError, Unauthorized
from messagebusd.protocol.inbox import (
    parse_entry,
    read_fields,
    signature,
    signed_text,
    verify,
)
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication, PublishRules

LIMITS = PublishRules(max_data=1000, max_channel=50)
SECRET = b"s3cret"
LEAST = {b"channel": b"/foo", b"data": b"1"}


def test_the_least_that_an_entry_says():
    assert parse_entry(LEAST, LIMITS) == Publication("/foo", b"1")


def test_everything_that_an_entry_can_say():
    fields = {
        b"channel": "/é".encode(),
        b"data": b'{"a": 1.50}',
        b"site_id": b"forum",
        b"user_ids": b'[1, "2"]',
        b"group_ids": b"[3]",
        b"client_ids": b'["c"]',
        b"max_backlog_size": b"5",
        b"max_backlog_age": b"60",
        b"idempotency_key": b"\xff any bytes",
        b"signature": b"not looked at here",
    }
    assert parse_entry(fields, LIMITS) == Publication(
        "/é", b'{"a":1.50}', "forum", Audience([1, "2"], [3], ["c"]), 5, 60
    )


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({b"channel": None}, "invalid_request", "'channel' is missing"),
        ({b"data": None}, "invalid_request", "'data' is missing"),
        ({b"user_id": b"[1]"}, "unknown_field", "'user_id'"),
        ({b"\xff\xfe": b"1"}, "unknown_field", "unknown field"),
        ({b"x" * 500: b"1"}, "unknown_field", "unknown field 'xxx"),
        ({b"queue_in_memory": b"true"}, "unknown_field", "'queue_in_memory'"),
        ({b"channel": b"/\xff"}, "invalid_request", "channel is not UTF-8"),
        ({b"channel": b""}, "invalid_channel", "empty"),
        ({b"channel": b"/" + b"x" * 50}, "invalid_channel", "50"),
        ({b"channel": b"/__status"}, "reserved_channel", "belongs to the bus"),
        ({b"site_id": b"\xff"}, "invalid_request", "site_id is not UTF-8"),
        ({b"data": b"text"}, "invalid_json", "data is not JSON"),
        ({b"data": b""}, "invalid_json", "data is not JSON"),
        ({b"data": b'"\xff"'}, "invalid_json", "data is not JSON"),
        ({b"data": b"[" * 5000}, "payload_too_large", "5000"),
        ({b"data": b"[" * 990}, "invalid_json", "data is not JSON"),
        ({b"user_ids": b"1"}, "invalid_audience", "user_ids"),
        ({b"user_ids": b"[]"}, "invalid_audience", "empty"),
        ({b"group_ids": b"[1.5]"}, "invalid_audience", "group_ids"),
        ({b"client_ids": b'["\xff"]'}, "invalid_audience", "client_ids"),
        ({b"client_ids": b"[" * 5000}, "invalid_audience", "client_ids"),
        ({b"channel": b"/global/a", b"user_ids": b"[1]"}, "restricted_global", "global"),
        ({b"max_backlog_size": b"-1"}, "invalid_request", "max_backlog_size"),
        ({b"max_backlog_size": b"many"}, "invalid_request", "max_backlog_size"),
        ({b"max_backlog_age": b"\xff"}, "invalid_request", "max_backlog_age"),
        ({b"max_backlog_age": b"9" * 5000}, "invalid_request", "max_backlog_age"),
        ({b"idempotency_key": b""}, "invalid_idempotency_key", "1 to 255"),
        ({b"idempotency_key": b"k" * 256}, "invalid_idempotency_key", "1 to 255"),
    ],
)
def test_what_is_refused(fields: dict[bytes, bytes | None], code: str, said: str):
    entry = {name: value for name, value in {**LEAST, **fields}.items() if value is not None}
    with pytest.raises(RequestError) as refused:
        parse_entry(entry, LIMITS)
    assert refused.value.code == code
    assert said in refused.value.detail
    assert len(refused.value.detail) < 300


@given(st.dictionaries(st.binary(max_size=20) | st.sampled_from(sorted(LEAST)), st.binary()))
def test_whatever_an_entry_says_is_published_or_refused(fields: dict[bytes, bytes]):
    try:
        parse_entry(fields, LIMITS)
    except RequestError as error:
        assert error.detail


def test_a_field_given_twice_is_refused():
    assert read_fields([b"channel", b"/foo", b"data", b"1"]) == LEAST
    with pytest.raises(RequestError, match="twice"):
        read_fields([b"data", b"1", b"channel", b"/foo", b"data", b"2"])


# -- signatures ----------------------------------------------------------------------------------


def test_a_signature_as_documented():
    fields = {b"data": '{"text":"Grüße"}'.encode(), b"channel": b"/chat/1", b"user_ids": b"[7]"}
    text = b'channel 7\n/chat/1\ndata 18\n{"text":"Gr\xc3\xbc\xc3\x9fe"}\nuser_ids 3\n[7]\n'
    assert signed_text(fields) == text
    expected = hmac.new(SECRET, text, hashlib.sha256).hexdigest().encode()
    assert signature(fields, SECRET) == expected
    verify({**fields, b"signature": expected}, SECRET)


def test_a_wrong_signature_is_refused():
    signed = {**LEAST, b"signature": signature(LEAST, SECRET)}
    verify(signed, SECRET)
    for wrong in (
        LEAST,
        {**signed, b"signature": b""},
        {**signed, b"signature": b"\xff"},
        {**signed, b"signature": signed[b"signature"].upper()},
        {**signed, b"signature": signature(LEAST, b"another")},
        {**signed, b"data": b"2"},
        {**signed, b"user_ids": b"[1]"},
        {name: value for name, value in signed.items() if name != b"data"},
    ):
        with pytest.raises(Unauthorized):
            verify(wrong, SECRET)
