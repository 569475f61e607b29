"""The publishing rules: what every door accepts and refuses (SPEC 3.1)."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import RequestError
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import PublishRules, compact, parse_publication
from messagebusd.protocol.rules import ChannelRule, ChannelRules

LIMITS = PublishRules()


def parse(**fields):
    return parse_publication(json.dumps(fields).encode(), LIMITS)


def refusal(body, limits=LIMITS):
    with pytest.raises(RequestError) as caught:
        parse_publication(body if isinstance(body, bytes) else json.dumps(body).encode(), limits)
    return caught.value


def test_everything_is_read():
    publication = parse(
        channel="/a",
        data={"x": 1},
        site_id="s",
        user_ids=[1, "2"],
        group_ids=[3],
        client_ids=["c"],
        max_backlog_size=5,
        max_backlog_age=60,
        queue_in_memory=True,
    )
    assert publication.channel == "/a"
    assert publication.data == b'{"x":1}'
    assert publication.site_id == "s"
    assert publication.audience == Audience([1, "2"], [3], ["c"])
    assert (publication.max_backlog_size, publication.max_backlog_age) == (5, 60)
    assert publication.queue_in_memory is True


def test_nulls_stand_for_defaults():
    publication = parse(channel="/a", data=None, user_ids=None, site_id=None, max_backlog_size=None)
    assert (publication.data, publication.audience, publication.site_id) == (b"null", None, None)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"channel":"/a","data":\xff}', 400, "invalid_json"),
        (b'{"channel":"/a","data":"\xff"}', 400, "invalid_json"),
        (b'{"channel":"/a","data":"\xff","data":1}', 400, "invalid_json"),
        (b'{"channel":"/a","data":NaN}', 400, "invalid_json"),
        (b'{"channel":"/a","data":01}', 400, "invalid_json"),
        (b'{"channel":"/a","data":"\\ud800"}', 400, "invalid_json"),
        (b'{"channel":"/a","data":1}{', 400, "invalid_json"),
        ({"data": 1}, 400, "invalid_request"),
        ({"channel": "/a"}, 400, "invalid_request"),
        ({"channel": 5, "data": 1}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "chanel": 2}, 400, "unknown_field"),
        ({"channel": "", "data": 1}, 400, "invalid_channel"),
        ({"channel": "/a\n", "data": 1}, 400, "invalid_channel"),
        ({"channel": "/a$|$b", "data": 1}, 400, "invalid_channel"),
        ({"channel": "/a$$123$$", "data": 1}, 400, "invalid_channel"),
        ({"channel": "/" + "a" * 512, "data": 1}, 400, "invalid_channel"),
        ({"channel": "/__status", "data": 1}, 422, "reserved_channel"),
        ({"channel": "/__mb_keepalive__/", "data": 1}, 422, "reserved_channel"),
        ({"channel": "/__mb_keepalive__/", "data": 1, "site_id": "s"}, 422, "reserved_channel"),
        ({"channel": "/distributed_hash", "data": 1}, 422, "reserved_channel"),
        ({"channel": "/a", "data": 1, "user_ids": []}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "group_ids": []}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "client_ids": []}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "user_ids": 7}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "user_ids": [True]}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "user_ids": [1.0]}, 422, "invalid_audience"),
        ({"channel": "/a", "data": 1, "user_ids": [None]}, 422, "invalid_audience"),
        ({"channel": "/global/a", "data": 1, "user_ids": [1]}, 422, "restricted_global"),
        ({"channel": "/global/a", "data": 1, "group_ids": [1]}, 422, "restricted_global"),
        ({"channel": "/a", "data": 1, "site_id": ""}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "site_id": "a|b"}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "max_backlog_size": -1}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "max_backlog_size": 1.5}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "max_backlog_age": "1"}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "max_backlog_age": 2**31}, 400, "invalid_request"),
        ({"channel": "/a", "data": 1, "queue_in_memory": 1}, 400, "invalid_request"),
        ({"channel": "/a", "data": "x" * 1024 * 1024}, 413, "payload_too_large"),
    ],
)
def test_refusals(body, status, code):
    error = refusal(body)
    assert (error.status, error.code) == (status, code), error.detail


def test_an_unknown_field_is_named_with_its_nearest_match():
    assert refusal({"channel": "/a", "data": 1, "user_id": [1]}).detail == (
        "unknown field 'user_id', did you mean 'user_ids'?"
    )


def test_of_fields_that_are_there_twice_the_last_one_counts():
    body = b'{"channel":5,"data":1,"channel":"/a","data":2}'
    publication = parse_publication(body, LIMITS)
    assert (publication.channel, publication.data) == ("/a", b"2")


def test_global_channels_may_be_restricted_to_clients():
    assert parse(channel="/global/a", data=1, client_ids=["c"]).audience == Audience(
        client_ids=["c"]
    )


def test_depth_is_limited_so_that_ruby_can_read_it():
    def nested(depth, text=""):
        return b'{"channel":"/a","data":%b"%b"%b}' % (b"[" * depth, text.encode(), b"]" * depth)

    assert parse_publication(nested(99), LIMITS).data.count(b"[") == 99
    assert refusal(nested(100)).code == "limit_exceeded"
    assert refusal(nested(100_000)).code == "invalid_json"
    # brackets in text are no depth
    assert parse_publication(nested(1, "[" * 200), LIMITS)
    assert parse_publication(nested(1, r"\"[\\" + "{" * 200), LIMITS)
    assert parse_publication(nested(99, "]" * 99), LIMITS)
    assert refusal(nested(100, "]" * 99)).code == "limit_exceeded"
    # siblings are none, and numbers are nobody's business
    siblings = b'{"channel":"/a","data":[%b1e999]}' % (b'{"a":[]},' * 200)
    assert b"1e999" in parse_publication(siblings, LIMITS).data


OPERATION = {"op": "set", "key": "a", "value": 1, "origin": "o", "hash_key": "h"}


@pytest.mark.parametrize(
    ("operation", "user_ids", "allowed"),
    [
        (OPERATION, [-1], True),
        ({**OPERATION, "marshalled": False}, [-1], True),
        ({**OPERATION, "key": None, "value": None, "app_version": "v7"}, [-1], True),
        ({"op": "delete", "key": 1.5, "origin": "o", "hash_key": "h"}, [-1], True),
        ({"op": "clear", "origin": "o", "hash_key": "h"}, [-1], True),
        ({**OPERATION, "marshalled": True}, [-1], False),
        ({**OPERATION, "marshalled": "true"}, [-1], False),
        ({**OPERATION, "marshalled": 1}, [-1], False),
        ({**OPERATION, "marshalled": None}, [-1], False),
        ({**OPERATION, "op": "eval"}, [-1], False),
        ({**OPERATION, "extra": 1}, [-1], False),
        ({"op": "set", "key": "a", "origin": "o", "hash_key": "h"}, [-1], False),
        ({"op": "delete", "origin": "o", "hash_key": "h"}, [-1], False),
        ({"op": "clear", "hash_key": "h"}, [-1], False),
        (OPERATION, [1], False),
        (OPERATION, [-1, -1], False),
        (OPERATION, None, False),
        ("text", [-1], False),
    ],
)
def test_only_harmless_cache_operations(operation, user_ids, allowed):
    fields = {"channel": "/distributed_hash", "data": operation, "user_ids": user_ids}
    if allowed:
        assert json.loads(parse(**fields).data) == operation
    else:
        assert refusal(fields).code == "reserved_channel"


def test_no_second_marshalled_hides_in_a_cache_operation():
    """Of repeated keys one parser takes the first, another the last."""
    body = (
        b'{"channel":"/distributed_hash","user_ids":[-1],"data":{"op":"set","key":"a","value":"x",'
        b'"origin":"o","hash_key":"h","marshalled":true,"marshalled":false}}'
    )
    assert parse_publication(body, LIMITS).data.count(b"marshalled") == 1


def test_cache_operations_are_for_nobody_else():
    body = {"channel": "/distributed_hash", "data": OPERATION, "user_ids": [-1], "group_ids": [1]}
    assert refusal(body).code == "reserved_channel"


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b' { "a" : [ 1 , 2 ] }\r\n', b'{"a":[1,2]}'),
        (b'"a  b\\n"', b'"a  b\\n"'),
        (b"1.50", b"1.50"),
        (b"1E400", b"1E400"),
        (b"-0", b"-0"),
        (b"123456789012345678901234567890", b"123456789012345678901234567890"),
        (b'{"b":1,"a":2,"b":3}', b'{"b":1,"a":2,"b":3}'),
        (b'"\\u00e4\\/"', b'"\\u00e4\\/"'),
    ],
)
def test_data_is_kept_to_the_character(raw, kept):
    assert compact(raw) == kept


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON, st.sampled_from([None, 1, "\t"]))
def test_compacting_changes_no_value(value, indent):
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=True)
    if "Infinity" in text:
        return
    raw = text.encode()
    compacted = compact(raw)
    assert json.loads(compacted) == value
    assert compact(compacted) == compacted
    assert b"\n" not in compacted


@given(st.binary(max_size=60))
def test_anything_else_is_refused_with_a_documented_error(body):
    try:
        parse_publication(body, LIMITS)
    except RequestError as error:
        assert error.status in (400, 413, 422)


@given(st.dictionaries(st.sampled_from(["channel", "data", "user_ids", "site_id", "x"]), JSON))
def test_objects_are_published_or_refused(fields):
    try:
        publication = parse_publication(msgspec.json.encode(fields), LIMITS)
    except RequestError as error:
        assert error.status in (400, 413, 422)
    else:
        assert publication.channel == fields["channel"]


ASKING = PublishRules(
    channels=ChannelRules(
        [
            ChannelRule("/user/{user_id}", max_backlog_size=5, max_backlog_age=60),
            ChannelRule("/topic/*", require_audience=True),
            ChannelRule("/global/*", require_audience=True),
            ChannelRule("/distributed_hash", require_audience=True),
        ]
    )
)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"channel": "/topic/1"}, "audience_required"),
        ({"channel": "/topic/1", "user_ids": None}, "audience_required"),
        ({"channel": "/topic/1", "site_id": "s"}, "audience_required"),
        ({"channel": "/topic/1", "user_ids": []}, "invalid_audience"),
        ({"channel": "/topic/1", "user_ids": [1]}, None),
        ({"channel": "/topic/1", "group_ids": [1]}, None),
        ({"channel": "/topic/1", "client_ids": ["c"]}, None),
        ({"channel": "/global/a"}, "audience_required"),
        ({"channel": "/global/a", "user_ids": [1]}, "restricted_global"),
        ({"channel": "/global/a", "client_ids": ["c"]}, None),
        ({"channel": "/topic"}, None),
    ],
)
def test_a_rule_asks_for_an_audience(fields, code):
    body = {"data": 1, **fields}
    if code is None:
        assert parse_publication(json.dumps(body).encode(), ASKING).channel == fields["channel"]
    else:
        error = refusal(body, ASKING)
        assert (error.code, error.status) == (code, 422)


def test_a_rule_stands_in_for_what_a_publish_does_not_say():
    def kept(**fields):
        body = json.dumps({"channel": "/user/7", "data": 1, **fields}).encode()
        publication = parse_publication(body, ASKING)
        return publication.max_backlog_size, publication.max_backlog_age

    assert kept() == kept(max_backlog_size=None) == (5, 60)
    assert kept(max_backlog_size=0) == (0, 60)
    assert kept(max_backlog_age=7) == (5, 7)
    assert kept(max_backlog_size=9, max_backlog_age=9) == (9, 9)
