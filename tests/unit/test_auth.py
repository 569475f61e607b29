"""Keys: who is let in, to what (SPEC 4)."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from messagebusd.errors import ConfigurationError, Forbidden, RateLimited, Unauthorized
from messagebusd.http import auth
from messagebusd.http.auth import ChannelPatterns, Key, KeyRing
from messagebusd.settings import ApiSettings

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC).timestamp()


def ring(**settings):
    return KeyRing.from_settings(ApiSettings.model_validate(settings), wall=lambda: NOON)


def asking(*authorization):
    headers = CIMultiDict([("Authorization", each) for each in authorization])
    return make_mocked_request("GET", "/", headers=headers)


def configured(name, **options):
    return {"name": name, "token": f"{name}-token", "scopes": ["publish"], **options}


# -- who is it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    ["Bearer one", "bearer one", "BEARER one", "Bearer   one", " Bearer one "],
)
def test_a_known_key_is_recognised(header):
    assert ring(key="one").identify(asking(header)).name == auth.SINGLE_KEY_NAME


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ((), "needs a key"),
        (("Bearer two",), "not known"),
        (("Bearer on",), "not known"),
        (("Bearer one one",), "not known"),
        (("Bearer onE",), "not known"),
        (("Bearer \u00e9",), "not known"),
        (("Bearer",), "one header"),
        (("Bearer ",), "one header"),
        (("",), "one header"),
        (("Basic b25lOg==",), "one header"),
        (("one",), "one header"),
        (("Bearer one", "Bearer one"), "one header"),
    ],
)
def test_others_are_not(headers, says):
    with pytest.raises(Unauthorized, match=says) as caught:
        ring(key="one").identify(asking(*headers))
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    assert "one" not in caught.value.detail.replace("one header", "")


def test_without_any_key_nobody_is_let_in():
    with pytest.raises(Unauthorized):
        ring().identify(asking("Bearer "))


def test_a_key_may_be_configured_as_its_hash():
    sha256 = hashlib.sha256(b"secret").hexdigest().upper()
    keys = ring(keys=[{"name": "forum", "sha256": sha256, "scopes": ["read"]}])
    assert keys.identify(asking("Bearer secret")).name == "forum"
    with pytest.raises(Unauthorized):
        keys.identify(asking(f"Bearer {sha256}"))


def test_the_generated_key_may_do_everything():
    keys = KeyRing.from_settings(ApiSettings(), "made-at-start")
    for scope in ("publish", "read", "admin"):
        assert keys.authorize(asking("Bearer made-at-start"), scope).name == auth.GENERATED_KEY_NAME


def test_every_key_is_compared_whichever_it_is(monkeypatch):
    compared = []
    real = hmac.compare_digest

    def compare(one, other):
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    keys = KeyRing([Key(name, auth.digest(name)) for name in "abc"])
    keys.identify(asking("Bearer a"))
    assert len(compared) == 3


def test_one_key_twice_is_a_configuration_error():
    sha256 = hashlib.sha256(b"forum-token").hexdigest()
    with pytest.raises(ConfigurationError, match=r"'forum' and 'copy' are the same key") as caught:
        ring(keys=[configured("forum"), {"name": "copy", "sha256": sha256, "scopes": ["read"]}])
    assert "forum-token" not in str(caught.value)


def test_keys_are_not_kept():
    keys = ring(key="one", keys=[configured("forum")])
    held = repr(keys._keys)
    assert "forum-token" not in held
    assert "'one'" not in held


# -- until when ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires", "valid"),
    [("2030-01-01T12:00:01Z", True), ("2030-01-01T12:00:00Z", False), ("2029-01-01T00:00Z", False)],
)
def test_a_key_ends_when_it_expires(expires, valid):
    keys = ring(keys=[configured("forum", expires=expires)])
    request = asking("Bearer forum-token")
    if valid:
        assert keys.is_valid(keys.identify(request))
    else:
        with pytest.raises(Unauthorized, match="has expired"):
            keys.identify(request)


# -- for what ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["publish", "read", "admin"])
def test_a_key_has_only_its_scopes(scope):
    keys = ring(keys=[configured("forum", scopes=["publish"])])
    request = asking("Bearer forum-token")
    if scope == "publish":
        assert keys.authorize(request, scope).name == "forum"
    else:
        with pytest.raises(Forbidden, match=scope):
            keys.authorize(request, scope)


@pytest.mark.parametrize(
    ("pattern", "channel", "matches"),
    [
        ("/chat", "/chat", True),
        ("/chat", "/chat/1", False),
        ("/chat", "/Chat", False),
        ("/chat/*", "/chat/1", True),
        ("/chat/*", "/chat/1/2", True),
        ("/chat/*", "/chat/", True),
        ("/chat/*", "/chat", False),
        ("/chat/*", "/x/chat/1", False),
        ("/chat/*", "/chat/a\nb", True),
        ("/*/typing", "/chat/1/typing", True),
        ("/*/typing", "/chat/1/typing/x", False),
        ("/a*b**c", "/abc", True),
        ("/a*b**c", "/a-b-c", True),
        ("/a*b**c", "/acb", False),
        ("/a.c", "/abc", False),
        ("/a[bc]", "/ab", False),
        ("/a|/b", "/b", False),
        ("*", "anything", True),
    ],
)
def test_patterns(pattern, channel, matches):
    assert (channel in ChannelPatterns([pattern])) is matches


def test_any_of_several_patterns_will_do():
    patterns = ChannelPatterns(["/a", "/b/*"])
    assert ["/a" in patterns, "/b/1" in patterns, "/a/1" in patterns] == [True, True, False]
    assert str(patterns) == "/a, /b/*"


CHATS = {"channels": ChannelPatterns(["/chat/*", "/global/*"])}
FORUM = {"sites": ("forum",)}


@pytest.mark.parametrize(
    ("options", "channel", "site_id", "changes", "allowed"),
    [
        ({}, "/anything", None, True, True),
        ({}, "/anything", "forum", True, True),
        (CHATS, "/chat/1", None, True, True),
        (CHATS, "/chat/1", "any", False, True),
        (CHATS, "/other", None, False, False),
        (CHATS, "/global/x", None, True, True),
        (FORUM, "/x", "forum", True, True),
        (FORUM, "/x", "blog", False, False),
        (FORUM, "/x", None, False, False),
        (FORUM, "/global/x", "forum", False, True),
        (FORUM, "/global/x", "forum", True, False),
        (FORUM, "/global/x", None, False, False),
        (CHATS | FORUM, "/chat/1", "forum", True, True),
        (CHATS | FORUM, "/x", "forum", True, False),
    ],
)
def test_channels_and_sites(options, channel, site_id, changes, allowed):
    key = Key("some", b"", **options)
    if allowed:
        key.require_channel(channel, site_id, changes=changes)
    else:
        with pytest.raises(Forbidden):
            key.require_channel(channel, site_id, changes=changes)


@pytest.mark.parametrize(
    ("options", "all_channels", "unrestricted"),
    [({}, True, True), (CHATS, False, False), (FORUM, True, False), (CHATS | FORUM, False, False)],
)
def test_calls_that_concern_everything(options, all_channels, unrestricted):
    key = Key("some", b"", **options)
    for require, allowed in (
        (key.require_all_channels, all_channels),
        (key.require_unrestricted, unrestricted),
    ):
        if allowed:
            require()
        else:
            with pytest.raises(Forbidden):
                require()


def test_matching_is_quick_whatever_the_name() -> None:
    """Hours, if all ways to place the stars were tried."""
    assert "/a" * 250 not in ChannelPatterns(["/*" * 30 + "x"])
    assert "/a" * 250 + "/x" in ChannelPatterns(["/*" * 30 + "x"])


# -- other settings


def known(keys, token):
    return keys.identify(asking(f"Bearer {token}"))


def test_keys_come_and_go_while_others_stay():
    keys = ring(keys=[configured("a"), configured("b")])
    a, b = known(keys, "a-token"), known(keys, "b-token")
    keys.adopt(ring(keys=[configured("b"), configured("c")]))
    with pytest.raises(Unauthorized):
        known(keys, "a-token")
    assert known(keys, "c-token").name == "c"
    assert not keys.is_valid(a)
    assert keys.is_valid(b)


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": ["read", "publish"]},
        {"channels": ["/a"]},
        {"sites": ["s"]},
        {"expires": datetime(2029, 1, 1, tzinfo=UTC)},
        {"token": "another"},
    ],
)
def test_a_key_that_may_do_something_else_is_no_longer_the_same(change):
    keys = ring(keys=[configured("a")])
    key = known(keys, "a-token")
    keys.adopt(ring(keys=[configured("a", rate="5/s")]))
    assert keys.is_valid(key)
    keys.adopt(ring(keys=[configured("a", **change)]))
    assert not keys.is_valid(key)


def test_a_key_keeps_what_it_has_used_of_its_allowance():
    for change in ({}, {"token": "rotated"}, {"name": "renamed", "token": "a-token"}):
        keys = ring(key="single", key_rate="3/h", keys=[configured("a", rate="3/h")])
        known(keys, "single").count(3)
        known(keys, "a-token").count(2)
        new = configured("a", rate="4/h") | change
        keys.adopt(ring(key="single", key_rate="3/h", keys=[new]))
        with pytest.raises(RateLimited):
            known(keys, "single").count(1)
        key = known(keys, new["token"])
        key.count(2)
        with pytest.raises(RateLimited):
            key.count(1)


def test_a_key_that_takes_over_a_name_does_not_share_an_allowance():
    keys = ring(keys=[configured("a", rate="3/h")])
    known(keys, "a-token").count(2)
    old = configured("former", rate="3/h", token="a-token")
    keys.adopt(ring(keys=[old, configured("a", rate="1000/h", token="rotated")]))
    known(keys, "rotated").count(1000)
    former = known(keys, "a-token")
    former.count(1)
    with pytest.raises(RateLimited):
        former.count(1)
