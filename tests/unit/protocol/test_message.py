"""Audiences, and messages as bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.message import Audience, Message

IDS = st.integers(-3, 3) | st.sampled_from(["1", "2", "a"])
ID_LISTS = st.none() | st.lists(IDS, min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("audience", "user", "groups", "client", "allowed"),
    [
        ({}, None, (), "c", True),
        ({"user_ids": [7]}, 7, (), "c", True),
        ({"user_ids": [7]}, "7", (), "c", False),
        ({"user_ids": ["7"]}, 7, (), "c", False),
        ({"user_ids": [7]}, None, (), "c", False),
        ({"user_ids": [0]}, 0, (), "c", True),
        ({"user_ids": [0]}, None, (), "c", False),
        ({"group_ids": [3]}, None, (3, 4), "c", True),
        ({"group_ids": [3]}, 3, (), "c", False),
        ({"group_ids": ["3"]}, None, (3,), "c", False),
        ({"user_ids": [7], "group_ids": [3]}, 7, (), "c", True),
        ({"user_ids": [7], "group_ids": [3]}, 8, (3,), "c", True),
        ({"user_ids": [7], "group_ids": [3]}, 8, (4,), "c", False),
        ({"client_ids": ["c"]}, None, (), "c", True),
        ({"client_ids": ["c"]}, None, (), "C", False),
        ({"client_ids": ["c"], "user_ids": [7]}, 8, (), "c", False),
        ({"client_ids": ["c"], "user_ids": [7]}, 7, (), "d", False),
        ({"client_ids": ["c"], "user_ids": [7]}, 7, (), "c", True),
        # what only other publishers can have stored
        ({"user_ids": [True]}, 1, (), "c", False),
        ({"user_ids": [7.0]}, 7, (), "c", False),
        ({"group_ids": [None]}, None, (), "c", False),
        ({"user_ids": []}, 7, (), "c", False),
    ],
)
def test_audience(audience, user, groups, client, allowed):
    assert Audience(**audience).allows(user, frozenset(groups), client) is allowed


@given(ID_LISTS, ID_LISTS, ID_LISTS, st.none() | IDS, st.frozensets(IDS), st.sampled_from("12a"))
def test_audience_rule(user_ids, group_ids, client_ids, user, groups, client):
    """client_ids AND (user_ids OR group_ids), compared by type (SPEC 3.1)."""
    typed = {(type(each), each) for each in groups}
    by_client = client_ids is None or client in [each for each in client_ids if type(each) is str]
    by_user = user_ids is not None and any((type(u), u) == (type(user), user) for u in user_ids)
    by_group = group_ids is not None and any((type(g), g) in typed for g in group_ids)
    anyone = user_ids is None and group_ids is None
    expected = by_client and (anyone or by_user or by_group)
    assert Audience(user_ids, group_ids, client_ids).allows(user, groups, client) is expected


def test_encoded_form():
    message = Message(12, 1, "/foo$|$a", "/foo", "a", b'{"n":1.50,"big":123456789012345678901}')
    assert message.encoded == (
        b'{"global_id":12,"message_id":1,"channel":"/foo",'
        b'"data":{"n":1.50,"big":123456789012345678901}}'
    )
    assert message.data == b'{"n":1.50,"big":123456789012345678901}'


@given(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_encoded_form_is_json(channel, data):
    raw = json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
    message = Message(2, 1, channel, channel, None, raw)
    assert json.loads(message.encoded) == {
        "global_id": 2,
        "message_id": 1,
        "channel": channel,
        "data": data,
    }
    assert message.data == raw


def test_trusted_readers_see_the_audience():
    message = Message(1, 1, "/a$|$s", "/a", "s", b"1", Audience([7, "x"], None, ["c"]))
    assert json.loads(message.with_audience()) == {
        "global_id": 1,
        "message_id": 1,
        "channel": "/a",
        "data": 1,
        "site_id": "s",
        "user_ids": [7, "x"],
        "group_ids": None,
        "client_ids": ["c"],
    }
