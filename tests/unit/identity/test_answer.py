"""What the application's answers mean, good and bad."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.errors import LookupUnavailable
from messagebusd.identity.answer import LONGEST_TTL_SECONDS, AnswerReader, Refusal, Reply
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire


def read(body, status=200, headers=(), id_type="as_is", ttl=30.0):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return AnswerReader(id_type, ttl).read(Reply(status, tuple(headers), raw))


def said(body, **options):
    return read(body, **options).said


def test_an_identity():
    body = {
        "user_id": 42,
        "group_ids": [1, "staff"],
        "site_id": "forum",
        "is_admin": True,
        "response_headers": {"X-Foo": "bar"},
        "allowed_channels": ["/chat/*"],
        "forced_channels": {"/foo": 0, "/bar": None},
        "of_a_later_version": [],
    }
    identity = said(body)
    assert identity.user_id == 42
    assert identity.group_ids == {1, "staff"}
    assert (identity.site_id, identity.is_admin) == ("forum", True)
    assert identity.response_headers == (("x-foo", "bar"),)
    assert "/chat/1" in identity.allowed_channels
    assert "/foo" not in identity.allowed_channels
    assert identity.forced_channels == {"/foo": 0, "/bar": None}


def test_nothing_is_an_anonymous_visitor():
    assert said({}) == Identity()
    assert said({"user_id": None}) == Identity()


def test_ids_become_one_type():
    identity = said({"user_id": 42, "group_ids": [1, "2"]}, id_type="string")
    assert (identity.user_id, identity.group_ids) == ("42", {"1", "2"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"<html>",
        b"\xff",
        b"[]",
        b'{"user_id":' + b"[" * 30_000,
        {"user_id": 1.5},
        {"user_id": True},
        {"user_id": -1},
        {"user_id": "-1"},
        {"user_id": ""},
        {"user_id": [1]},
        {"group_ids": 7},
        {"group_ids": [None]},
        {"group_ids": [""]},
        {"group_ids": [1.0]},
        {"is_admin": "yes"},
        {"site_id": ""},
        {"site_id": "a$|$b"},
        {"site_id": 1},
        {"allowed_channels": "/chat/*"},
        {"forced_channels": ["/foo"]},
        {"forced_channels": {"/foo": "5"}},
        {"forced_channels": {"/foo$|$other": 0}},
        {"cache_ttl": -1},
        {"cache_ttl": "60"},
        {"response_headers": {"X-A": "b\r\nX-C: d"}},
        {"response_headers": {"X-A": ["fine", "b\nX-C: d"]}},
        {"response_headers": {"X-A\r\nX-B": "c"}},
        {"response_headers": {"X A": "c"}},
        {"response_headers": {"": "c"}},
        {"response_headers": {"X-A": 5}},
        {"response_headers": {"Content-Length": "5"}},
        {"response_headers": {"content-type": "text/html"}},
        {"response_headers": {"TRANSFER-ENCODING": "chunked"}},
        {"response_headers": {"Connection": "keep-alive"}},
        {"response_headers": {"X-A": "x" * 20_000}},
    ],
    ids=lambda body: str(body)[:40],
)
def test_what_is_not_usable_is_no_identity(body):
    with pytest.raises(LookupUnavailable):
        read(body)


@pytest.mark.parametrize("status", [100, 201, 204, 206, 301, 302, 304, 500, 502, 503, 599])
def test_only_200_is_an_identity(status):
    with pytest.raises(LookupUnavailable, match=str(status)):
        read({}, status)


def test_what_cannot_be_used_is_not_quoted():
    for body in (b'{"user_id":"hush', {"user_id": {"hush": 1}}, {"site_id": "hush|"}):
        with pytest.raises(LookupUnavailable) as caught:
            read(body)
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("body", "ttl", "shared"),
    [
        ({}, 30, True),
        ({"cache_ttl": 60}, 60, True),
        ({"cache_ttl": 0}, 0, False),
        ({"cache_ttl": 1e300}, LONGEST_TTL_SECONDS, True),
        ({"response_headers": {"X-A": "b"}}, 30, True),
        ({"response_headers": {"SET-cookie": "a=1"}, "cache_ttl": 60}, 60, False),
    ],
)
def test_how_long_an_identity_is_used_and_by_whom(body, ttl, shared):
    answer = read(body)
    assert (answer.ttl, answer.shared) == (ttl, shared)


def test_without_a_ttl_of_its_own_nothing_is_shared_where_the_setting_is_0():
    assert not read({}, ttl=0.0).shared
    assert read({"cache_ttl": 1}, ttl=0.0).shared


@pytest.mark.parametrize(
    ("status", "headers", "ttl", "shared"),
    [
        (401, (), 5, True),
        (403, (), 5, True),
        (403, [("Set-Cookie", "a=1")], 0, False),
        (404, (), 0, True),
        (429, (), 0, True),
    ],
)
def test_how_long_a_refusal_is_used(status, headers, ttl, shared):
    answer = read(b"no", status, headers)
    assert (answer.ttl, answer.shared) == (ttl, shared)
    assert isinstance(answer.said, Refusal)


def test_a_refusal_is_passed_on_without_what_is_not_for_the_visitor():
    headers = [
        ("Content-Type", "text/html"),
        ("Content-Type", "application/json"),
        ("Set-Cookie", "_t=del"),
        ("Set-Cookie", "b=1"),
        ("Retry-After", "30"),
        ("Discourse-Logged-Out", "1"),
        ("WWW-Authenticate", "Bearer"),
        ("Content-Length", "2"),
        ("Content-Encoding", "br"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Date", "today"),
        ("Server", "app/1.0"),
        ("Cache-Control", "public, max-age=3600"),
        ("ETag", '"1"'),
        ("X-Accel-Redirect", "/etc/passwd"),
        ("X-Sendfile", "/etc/passwd"),
        ("Proxy-Authenticate", "Basic"),
        ("X-Broken", "a\x01b"),
        ("X-Bytes", "\udcff"),
    ]
    refusal = said(b"no", status=403, headers=headers)
    assert refusal == Refusal(
        403,
        b"no",
        (
            ("content-type", "application/json"),
            ("set-cookie", "_t=del"),
            ("set-cookie", "b=1"),
            ("retry-after", "30"),
            ("discourse-logged-out", "1"),
            ("www-authenticate", "Bearer"),
        ),
    )


def test_an_identity_may_set_several_cookies_but_not_how_polls_are_cached():
    headers = {"Set-Cookie": ["a=1", "b=2"], "Cache-Control": "public", "X-Accel-Redirect": "/x"}
    identity = said({"response_headers": headers})
    assert identity.response_headers == (("set-cookie", "a=1"), ("set-cookie", "b=2"))


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.lists(st.text(max_size=9))),
    st.lists(st.tuples(st.text(max_size=5), st.text(st.characters(), max_size=9))),
)
def test_no_header_breaks_a_head_apart(own, passed_on):
    for body, status in (({"response_headers": own}, 200), (b"", 403)):
        try:
            found = said(body, status=status, headers=passed_on)
        except LookupUnavailable:
            continue
        headers = found.headers if isinstance(found, Refusal) else found.response_headers
        head = wire.head(200, headers).decode()
        assert head.splitlines()[1:-1] == [f"{name}: {value}" for name, value in headers]
