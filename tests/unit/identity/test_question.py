"""What the application is asked, and which polls ask the same."""

import json

import pytest

from messagebusd.errors import LimitExceeded
from messagebusd.identity.question import MAX_HEADER_BYTES, Questions
from messagebusd.settings import Settings
from tests.unit.identity.callers import Caller

DEFAULTS = Settings().lookup.webhook


def questions(forward=DEFAULTS.forward_headers, ignore=DEFAULTS.cache_ignore_headers, bypass=()):
    return Questions(forward, ignore, bypass)


def asked(caller, **options):
    return json.loads(questions(**options).of(caller).body())


def test_what_is_asked():
    caller = Caller(
        ("Cookie", "_t=1"),
        ("User-Agent", "Mozilla"),
        ("X-Private", "x"),
        ("X-Forwarded-Proto", "https"),
        query="dlp=t",
    )
    assert asked(caller) == {
        "client_id": "me",
        "method": "POST",
        "path": "/message-bus/me/poll",
        "query": "dlp=t",
        "host": "forum.example",
        "remote_addr": "192.0.2.1",
        "headers": {"cookie": "_t=1", "user-agent": "Mozilla"},
    }


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-host", "Forwarded", "X-Real-IP"])
def test_what_proxies_write_is_believed_from_proxies_only(name):
    everything = {"forward": ["*"]}
    assert name.lower() not in asked(Caller((name, "evil")), **everything)["headers"]
    trusted = asked(Caller((name, "good"), trusted=True), **everything)
    assert trusted["headers"][name.lower()] == "good"


def test_lines_of_one_name_are_one_value():
    caller = Caller(
        ("Cookie", "a=1"), ("cookie", "b=2"), ("Accept-Language", "de"), ("accept-language", "en")
    )
    assert asked(caller)["headers"] == {"cookie": "a=1; b=2", "accept-language": "de, en"}


def test_bytes_that_are_no_text_are_read_as_latin_1():
    broken, proper = b"n=\xe9".decode("utf-8", "surrogateescape"), "n=日本"
    caller = Caller(("Cookie", broken), ("User-Agent", proper), host=broken, query=broken)
    question = asked(caller)
    assert question["headers"] == {"cookie": "n=é", "user-agent": proper}
    assert (question["host"], question["query"]) == ("n=é", "n=é")


def test_a_question_is_bounded():
    fits = Caller(*[("Cookie", "x" * 8000)] * 8)
    questions().of(fits)
    with pytest.raises(LimitExceeded) as caught:
        questions().of(Caller(*[("Cookie", "x" * 8000)] * (MAX_HEADER_BYTES // 8000 + 1)))
    assert caught.value.status == 431
    # What is not passed on does not count.
    questions().of(Caller(*[("X-Other", "x" * 8000)] * 20))


SAME = [
    ({}, {"remote_addr": "192.0.2.2"}),
    ({}, {"client_id": "you", "path": "/message-bus/you/poll", "query": "dlp=t"}),
    ({}, {"host": "FORUM.example"}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_polls_that_ask_the_same(one, other):
    made = questions()
    cookie = ("Cookie", "_t=1")
    assert made.of(Caller(cookie, **one)).key == made.of(Caller(cookie, **other)).key


@pytest.mark.parametrize("name", ["User-Agent", "Accept-Language", "X-Forwarded-For", "X-Unknown"])
def test_headers_that_tell_nobody_apart(name):
    made = questions()
    callers = [Caller(("Cookie", "a"), (name, value), trusted=True) for value in "12"]
    assert len({made.of(each).key for each in callers}) == 1


@pytest.mark.parametrize(
    "name", ["Cookie", "Authorization", "X-Forwarded-Host", "X-Forwarded-User", "X-Custom"]
)
def test_headers_that_tell_visitors_apart(name):
    made = questions(forward=[*DEFAULTS.forward_headers, "x-custom"])
    callers = [Caller((name, value), trusted=True) for value in ("1", "2", "")]
    callers.append(Caller(trusted=True))
    assert len({made.of(each).key for each in callers}) == len(callers)


def test_no_two_lists_of_headers_look_alike():
    made = questions(forward=["*"], ignore=[])
    lists = [
        [("A", "1"), ("B", "2")],
        [("A", "1, B: 2")],
        [("A", '1"],["b","2')],
        [("A", "1"), ("A", "2")],
        [("AB", "12")],
    ]
    keys = {made.of(Caller(*each)).key for each in lists}
    assert len(keys) == len(lists)
    assert made.of(Caller(("B", "2"), ("A", "1"))).key == made.of(Caller(*lists[0])).key


@pytest.mark.parametrize("host", ["FORUM.example", "forum.example", "FoRuM.eXaMpLe"])
def test_what_is_asked_about_a_host_is_the_same_where_the_answer_is_shared(host):
    """Or somebody could have the application answer for another site than others then get."""
    assert asked(Caller(host=host))["host"] == "forum.example"


def test_hosts_are_told_apart():
    made = questions()
    assert made.of(Caller()).key != made.of(Caller(host="other.example")).key


def test_a_refusal_of_nobody_known_is_about_his_address():
    made = questions()
    here, there = (made.of(Caller(remote_addr=f"192.0.2.{n}")) for n in (1, 2))
    assert here.key == there.key
    assert len({here.key, here.refusal_key, there.refusal_key}) == 3
    known = made.of(Caller(("Cookie", "_t=1")))
    assert known.refusal_key == known.key


def test_a_refusal_of_nobody_known_is_not_about_others_at_his_address():
    made = questions()
    robot, person = (made.of(Caller(("User-Agent", each))) for each in ("robot", "Mozilla"))
    assert robot.key == person.key
    assert robot.refusal_key != person.refusal_key
    assert robot.refusal_key == made.of(Caller(("User-Agent", "robot"))).refusal_key


def test_headers_that_bypass_are_passed_on_and_tell_nobody_apart():
    made = questions(bypass=["Discourse-Present"])
    plain, present = made.of(Caller()), made.of(Caller(("discourse-present", "true")))
    assert (plain.bypasses, present.bypasses) == (False, True)
    assert plain.key == present.key
    assert json.loads(present.body())["headers"] == {"discourse-present": "true"}


@pytest.mark.parametrize("name", ["Cookie", "Authorization", "X-Session"])
@pytest.mark.parametrize("forward", [["cookie", "authorization", "x-session"], ["x-*"]])
def test_headers_that_bypass_and_say_who_it_is_tell_visitors_apart(name, forward):
    """Otherwise the answer about who sent one would be that about everybody who sends none."""
    made = questions(forward=forward, bypass=[name])
    nobody, ada, bob = made.of(Caller()), *(made.of(Caller((name, value))) for value in "ab")
    assert (nobody.bypasses, ada.bypasses) == (False, True)
    assert len({nobody.key, ada.key, bob.key}) == 3


def test_keys_hold_no_secrets_and_cannot_be_tried_out():
    caller = Caller(("Cookie", "_t=hush"))
    key = questions().of(caller).key
    assert len(key) == 16
    assert key != questions().of(caller).key
