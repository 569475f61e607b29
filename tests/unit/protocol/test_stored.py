"""The stored form, against what the Ruby library wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.stored import (
    decode_envelope,
    decode_payload,
    encode_envelope,
    encode_payload,
)
from tests.conformance.scenarios import data_folder


def recorded_payloads():
    cases = json.loads((data_folder() / "storage/redis_published.json").read_text())["cases"]
    return [
        pytest.param(each["payload"], id=f"{case['name']}-{number}")
        for case in cases
        for number, each in enumerate(case["published"])
        if isinstance(each["payload"], str) and "|" in each["payload"]
    ]


@pytest.mark.parametrize("payload", recorded_payloads())
def test_recorded_payloads_round_trip(payload):
    message = decode_payload(payload.encode())
    assert encode_payload(message).decode() == payload


@pytest.mark.parametrize(
    ("payload", "stored_channel", "channel", "site"),
    [
        (b'3|1|/fo$$123$$o|{"data":"x"}', "/fo|o", "/fo|o", None),
        (b'4|1|/foo$$$123$$$siteA|{"data":"multi"}', "/foo$|$siteA", "/foo", "siteA"),
        (b'5|1|/a|{"data":"a|b|c|d"}', "/a", "/a", None),
    ],
)
def test_names_in_payloads(payload, stored_channel, channel, site):
    message = decode_payload(payload)
    assert (message.stored_channel, message.channel, message.site_id) == (
        stored_channel,
        channel,
        site,
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"$$UNSUBSCRIBE",
        b"1|2|/a",
        b"x|2|/a|{}",
        b"1|-2|/a|{}",
        b"1|2|/a|{",
        b"1|2|/a|[]",
        b'1|2|/a|{"data":"\xff"}',
        b'1|2|\xff|{"data":1}',
        b'1|2|/a|{"data":1,"user_ids":7}',
        b"9" * 5000 + b'|2|/a|{"data":1}',
    ],
)
def test_garbage_is_a_value_error(payload):
    with pytest.raises(ValueError):  # noqa: PT011 - any text; callers count it and go on
        decode_payload(payload)


def test_stored_empty_lists_restrict_nobody():
    """Publishing one is refused, but older publishers stored them for everybody."""
    assert decode_envelope(b'{"data":1,"user_ids":[],"group_ids":null}') == (b"1", None)


IDS = st.none() | st.lists(st.integers() | st.text(max_size=5), min_size=1, max_size=3)


@given(st.text(), IDS, IDS, IDS)
def test_envelopes_round_trip(data, user_ids, group_ids, client_ids):
    ids = (user_ids, group_ids, client_ids)
    audience = None if ids == (None, None, None) else Audience(*ids)
    raw = json.dumps(data).encode()
    if "\\ud" in raw.decode():
        return
    assert decode_envelope(encode_envelope(raw, audience)) == (raw, audience)


def test_the_payload_of_a_message():
    message = Message(7, 2, "/a|b$|$s", "/a|b", "s", b'"x"', Audience([1]))
    assert encode_payload(message) == (
        b'7|2|/a$$123$$b$$$123$$$s|{"data":"x","user_ids":[1],"group_ids":null,"client_ids":null}'
    )
