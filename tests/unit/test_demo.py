"""The demo's logins, without a server: who a cookie stands for, and who may ask."""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec
import pytest

from messagebusd.demo import people, questions
from messagebusd.demo.people import ChatFull, NameTaken, People
from tests.support.clock import FakeClock


def header(value: str) -> str:
    return f"theme=dark; {people.COOKIE}={value}; x=y"


def test_a_cookie_stands_for_one_person() -> None:
    chat = People(FakeClock())
    ada, grace = chat.enter("ada"), chat.enter("grace")
    assert chat.known_by(header(chat.cookie(ada))) is ada
    assert chat.known_by(header(chat.cookie(grace))) is grace
    assert chat.known_by("") is None
    # A page of another port has put one of its own in front.
    assert chat.known_by(f"{people.COOKIE}=é; {header(chat.cookie(ada))}") is ada


def test_cookies_of_another_run_are_strange() -> None:
    first, second = People(FakeClock()), People(FakeClock())
    assert second.known_by(header(first.cookie(first.enter("ada")))) is None


def test_a_cookie_ends_with_its_time_or_the_logout() -> None:
    clock = FakeClock()
    chat = People(clock)
    ada, grace = chat.enter("ada"), chat.enter("grace")
    chat.leave(grace)
    chat.leave(grace)
    assert chat.known_by(header(chat.cookie(grace))) is None
    assert chat.named("grace") is None
    clock.now += people.MAX_AGE_SECONDS - 1
    assert chat.known_by(header(chat.cookie(ada))) is ada
    clock.now += 1
    assert chat.known_by(header(chat.cookie(ada))) is None
    assert chat.named("ada") is None


def test_a_name_is_one_persons_while_they_are_here() -> None:
    clock = FakeClock()
    chat = People(clock)
    ada, grace = chat.enter("Ada"), chat.enter("grace")
    for alike in ("Ada", "ada", "ＡＤＡ"):
        with pytest.raises(NameTaken):
            chat.enter(alike)
        with pytest.raises(NameTaken):
            chat.rename(grace, alike)
    chat.rename(ada, "ADA")  # her own
    chat.rename(ada, "lovelace")
    chat.rename(grace, "ada")
    assert chat.named("ada") is grace

    clock.now += people.AWAY_SECONDS - 1
    assert chat.known_by(header(chat.cookie(grace))) is grace
    clock.now += 1
    with pytest.raises(NameTaken):
        chat.enter("ada")
    other = chat.enter("lovelace")
    assert other.id != ada.id
    assert chat.known_by(header(chat.cookie(ada))) is None
    assert chat.named("lovelace") is other


def test_people_who_are_away_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MAX_PEOPLE", 3)
    clock = FakeClock()
    chat = People(clock)
    for name in "abc":
        chat.enter(name)
    with pytest.raises(ChatFull):
        chat.enter("d")
    clock.now += people.AWAY_SECONDS
    chat.enter("d")
    assert [chat.named(name) is not None for name in "abcd"] == [False, False, False, True]


SECRET = questions.make_secret()
BODY = b'{"headers":{"cookie":"a=b"},"client_id":"x"}'


def signed(timestamp: str, secret: str = SECRET, body: bytes = BODY) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"msg_1.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{digest}",
    }


def test_a_signed_question_is_read() -> None:
    question = questions.read(SECRET, signed("1000"), BODY, 1000.0 + questions.TOLERANCE_SECONDS)
    assert question.headers == {"cookie": "a=b"}
    rotated = signed("1000")
    rotated["webhook-signature"] = f"v1,AAAA {rotated['webhook-signature']}"
    assert questions.read(SECRET, rotated, BODY, 1000.0) == question


@pytest.mark.parametrize(
    ("headers", "body", "now"),
    [
        pytest.param({}, BODY, 0.0, id="unsigned"),
        pytest.param(signed("1000", questions.make_secret()), BODY, 1000.0, id="another secret"),
        pytest.param(signed("1000"), BODY + b" ", 1000.0, id="another body"),
        pytest.param(signed("1000"), BODY, 1301.0, id="old"),
        pytest.param(signed("1000"), BODY, 699.0, id="early"),
        pytest.param({**signed("1000"), "webhook-id": "msg_2"}, BODY, 1000.0, id="another id"),
        pytest.param({**signed("1000"), "webhook-timestamp": "1001"}, BODY, 1001.0, id="redated"),
        pytest.param({**signed("1000"), "webhook-signature": "v1,é"}, BODY, 1000.0, id="no ascii"),
        pytest.param({**signed("1000"), "webhook-signature": ""}, BODY, 1000.0, id="no signature"),
    ],
)
def test_other_questions_are_not(headers: dict[str, str], body: bytes, now: float) -> None:
    with pytest.raises(questions.NotSigned):
        questions.read(SECRET, headers, body, now)


def test_a_signed_question_that_is_none() -> None:
    with pytest.raises(msgspec.MsgspecError):
        questions.read(SECRET, signed("1000", body=b"[]"), b"[]", 1000.0)
