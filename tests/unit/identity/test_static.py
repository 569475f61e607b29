"""Trusted headers: who is believed, and how values are read (SPEC 5)."""

import pytest

from messagebusd.errors import LookupRefused
from messagebusd.identity.base import ANONYMOUS, Identity
from messagebusd.identity.static import AnonymousLookup, HeaderLookup
from tests.unit.identity.callers import Caller


def lookup(id_type="as_is"):
    return HeaderLookup("X-User", "X-Groups", "X-Site", id_type)


async def identify(headers, *, trusted=True, id_type="as_is"):
    return await lookup(id_type).identify(Caller(*headers.items(), trusted=trusted))


async def test_everybody_is_anonymous():
    assert await AnonymousLookup().identify(Caller(("X-User", "7"), trusted=True)) is ANONYMOUS


@pytest.mark.parametrize("name", ["X-User", "X-Groups", "X-Site"])
async def test_broken_bytes_name_nobody(name):
    with pytest.raises(LookupRefused) as caught:
        await identify({name: b"caf\xe9".decode("utf-8", "surrogateescape")})
    assert caught.value.status == 403
    assert b"UTF-8" in caught.value.body


async def test_names_of_all_languages():
    assert (await identify({"X-User": "日本", "X-Site": "café"})) == Identity(
        "日本", site_id="café"
    )


async def test_only_trusted_proxies_are_believed():
    assert await identify({"X-User": "7"}, trusted=False) is ANONYMOUS
    assert await identify({"X-User": "7"}) == Identity(7)


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        ("7", 7),
        ('"7"', "7"),
        ("0", 0),
        ("ada", "ada"),
        (" ada ", "ada"),
        ("", None),
        ("1.5", "1.5"),
        ("true", "true"),
        ('"null"', "null"),
        ("007", "007"),
        ('{"a":1}', '{"a":1}'),
    ],
)
async def test_users(value, user_id):
    found = (await identify({"X-User": value})).user_id
    assert (type(found), found) == (type(user_id), user_id)


@pytest.mark.parametrize(
    ("value", "group_ids"),
    [
        ("[1,7]", {1, 7}),
        ('["a",2]', {"a", 2}),
        ("[]", set()),
        ("[3.0, true]", {"3.0", "true"}),
        ("", set()),
        ("5", {5}),
        ("staff", {"staff"}),
        ("staff, 5,,moderators", {"staff", 5, "moderators"}),
    ],
)
async def test_groups(value, group_ids):
    assert (await identify({"X-Groups": value})).group_ids == group_ids


@pytest.mark.parametrize(
    "headers",
    [
        {"X-User": "-1"},
        {"X-User": '"-1"'},
        {"X-User": '""'},
        {"X-User": "null"},
        {"X-Groups": "null"},
        {"X-Groups": '["a",""]'},
        {"X-User": "[1]"},
        {"X-Groups": '[{"a":1}]'},
        {"X-Groups": "[[1]]"},
        {"X-Site": "a$|$b"},
    ],
)
async def test_what_cannot_be_used_is_refused(headers):
    with pytest.raises(LookupRefused) as caught:
        await identify(headers)
    assert caught.value.status == 403


async def test_ids_of_one_type():
    headers = {"X-User": "7", "X-Groups": '[1,"2"]', "X-Site": "s"}
    assert await identify(headers, id_type="string") == Identity("7", frozenset({"1", "2"}), "s")
    assert await identify(headers, id_type="integer") == Identity(7, frozenset({1, 2}), "s")
    with pytest.raises(LookupRefused):
        await identify({"X-User": "ada"}, id_type="integer")


@pytest.mark.parametrize("name", ["X-User", "X-Groups", "X-Site"])
async def test_a_header_that_is_there_twice_names_nobody(name):
    caller = Caller((name, "1"), (name.lower(), "1"), trusted=True)
    with pytest.raises(LookupRefused) as caught:
        await lookup().identify(caller)
    assert caught.value.status == 403
    assert b"2 times" in caught.value.body
