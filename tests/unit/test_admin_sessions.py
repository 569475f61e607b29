"""Who is logged in to the admin page, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from messagebusd.errors import Forbidden, Unauthorized
from messagebusd.http.admin import sessions as module
from messagebusd.http.admin.sessions import (
    ABSOLUTE_SECONDS,
    COOKIE,
    HEADER,
    IDLE_SECONDS,
    Ended,
    SessionKey,
    Sessions,
    require_page,
)
from messagebusd.http.auth import Key, KeyRing, digest

SECRET = b"a secret of all workers"
KEY = Key("forum", digest("the key"), frozenset({"read", "admin"}))


class Wall:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


def worker(wall: Wall, *keys: Key, secret: bytes = SECRET) -> Sessions:
    return Sessions(KeyRing(keys or (KEY,), wall), secret, wall)


def request(cookie: str = "", **headers: str) -> Any:
    sent = CIMultiDict({"Host": "bus.example", HEADER: "active"})
    if cookie:
        sent["Cookie"] = f"other=1; {cookie.partition('; Max-Age')[0]}"
    for name, value in headers.items():
        sent[name.replace("_", "-")] = value
    return SimpleNamespace(headers=CIMultiDictProxy(sent))


def log_in(sessions: Sessions, key: Key = KEY, **headers: str) -> tuple[SessionKey, str]:
    session = sessions.begin(key, request(**headers))
    return session, sessions.set_cookie(session)


def test_a_cookie_stands_for_its_key_on_every_worker(wall: Wall) -> None:
    _, cookie = log_in(worker(wall))
    found = worker(wall).identify(request(cookie))
    assert (found.name, found.scopes) == ("forum", {"read", "admin"})
    assert "the key" not in cookie
    assert KEY.digest.hex() not in cookie


def test_cookies_are_for_the_page_only(wall: Wall) -> None:
    _, cookie = log_in(worker(wall))
    attributes = cookie.split("; ")[1:]
    assert attributes == ["Max-Age=1800", "Path=/admin/", "HttpOnly", "SameSite=Strict"]


def test_cookies_stay_safe_where_the_page_was_loaded_safely(wall: Wall) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions, Origin="https://bus.example")
    assert cookie.endswith("; Secure")
    found = sessions.identify(request(cookie))  # of a GET, which tells no origin
    assert sessions.set_cookie(found).endswith("; Secure")
    assert sessions.clear_cookie(found).startswith(f"{COOKIE}=; Max-Age=0; Path=/admin/;")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: "",
        lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
        lambda value: "A" + value,
        lambda value: value.partition(".")[0] + ".",
        lambda value: "." + value.partition(".")[2],
        lambda value: value + "é",
        lambda value: "\udcff." + "0" * 64,
        lambda value: value + "\udcff",
    ],
)
def test_what_was_not_signed_here_is_nobody(wall: Wall, change: Any) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions)
    value = cookie.partition(";")[0].removeprefix(f"{COOKIE}=")
    with pytest.raises(Unauthorized):
        sessions.identify(request(f"{COOKIE}={change(value)}"))
    with pytest.raises(Unauthorized):
        worker(wall, secret=b"another start").identify(request(cookie))


def test_a_strangers_cookie_does_not_hide_ours(wall: Wall) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions)
    value = cookie.partition(";")[0]
    assert sessions.identify(request(f"{COOKIE}=x.y; {value}")).name == "forum"
    many = "; ".join([f"{COOKIE}=x.y"] * 1000)
    with pytest.raises(Unauthorized):
        sessions.identify(request(many))


def test_sessions_end_when_nobody_does_anything(wall: Wall) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions)
    wall.now += IDLE_SECONDS - 1
    session = sessions.identify(request(cookie))
    renewed = sessions.set_cookie(session)
    wall.now += 1
    with pytest.raises(Unauthorized):
        sessions.identify(request(cookie))
    assert sessions.identify(request(renewed)).session == session.session


def test_only_who_does_something_is_seen(wall: Wall) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions)
    active, idle = request(cookie), request(cookie, **{HEADER: "idle"})
    assert not sessions.needs_renewal(sessions.identify(active), active)
    wall.now += 61
    assert sessions.needs_renewal(sessions.identify(active), active)
    assert not sessions.needs_renewal(sessions.identify(idle), idle)


def test_sessions_end_at_last(wall: Wall) -> None:
    sessions = worker(wall)
    session, cookie = log_in(sessions)
    while wall.now < 1_000_000 + ABSOLUTE_SECONDS:
        assert sessions.is_valid(session)
        cookie = sessions.set_cookie(sessions.identify(request(cookie)))
        wall.now += 600
    assert not sessions.is_valid(session)
    with pytest.raises(Unauthorized):
        sessions.identify(request(cookie))


def test_sessions_end_with_their_key(wall: Wall) -> None:
    expiring = Key("soon", digest("x"), expires_at=wall.now + 60)
    sessions = worker(wall, KEY, expiring)
    _, cookie = log_in(sessions, expiring)
    assert sessions.identify(request(cookie)).expires_at == wall.now + 60
    with pytest.raises(Unauthorized):
        worker(wall).identify(request(cookie))  # it is not configured any more
    with pytest.raises(Unauthorized):
        # Another key has its name now.
        worker(wall, Key("soon", digest("y"))).identify(request(cookie))
    wall.now += 60
    with pytest.raises(Unauthorized):
        sessions.identify(request(cookie))


def test_rights_are_those_of_today(wall: Wall) -> None:
    _, cookie = log_in(worker(wall))
    fewer = worker(wall, Key("forum", digest("the key"), frozenset({"read"})))
    assert fewer.identify(request(cookie)).scopes == {"read"}


def test_who_has_logged_out_is_nobody(wall: Wall) -> None:
    sessions = worker(wall)
    session, cookie = log_in(sessions)
    other, other_cookie = log_in(sessions)
    sessions.end(session.session)
    sessions.end(session.session)
    assert not sessions.is_valid(session)
    with pytest.raises(Unauthorized):
        sessions.identify(request(cookie))
    assert sessions.identify(request(other_cookie)).session == other.session


def test_ended_sessions_take_bounded_memory(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 3)
    sessions = worker(wall)
    logins = [log_in(sessions) for _ in range(5)]
    for session, _ in logins[:4]:
        sessions.end(session.session)
    assert len(sessions.ended.sessions) <= 3
    for _, cookie in logins:  # more than can be remembered: all log in again
        with pytest.raises(Unauthorized):
            sessions.identify(request(cookie))
    wall.now += 1
    _, cookie = log_in(sessions)
    assert sessions.identify(request(cookie)).name == "forum"


def test_a_worker_that_begins_learns_who_has_logged_out(wall: Wall) -> None:
    old, new = worker(wall), worker(wall)
    session, cookie = log_in(old)
    old.end(session.session)
    new.learn(msgspec.convert(msgspec.json.decode(msgspec.json.encode(old.ended)), Ended))
    with pytest.raises(Unauthorized):
        new.identify(request(cookie))


REFUSED: list[Mapping[str, str]] = [
    {HEADER: ""},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "none"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://bus.example:81"},
    {"Origin": "null"},
    {"Origin": "http://[bus.example"},
]


@pytest.mark.parametrize("headers", REFUSED)
def test_nobody_but_the_page_asks(wall: Wall, headers: Mapping[str, str]) -> None:
    sessions = worker(wall)
    _, cookie = log_in(sessions)
    with pytest.raises(Forbidden):
        sessions.identify(request(cookie, **headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://BUS.example"},
        # What the browser says of itself counts more than a Host that a proxy wrote.
        {"Sec_Fetch_Site": "same-origin", "Origin": "https://outside.example"},
    ],
)
def test_the_page_asks(headers: Mapping[str, str]) -> None:
    require_page(request(**headers))


def test_a_session_ends_with_its_key_or_when_that_changes(wall: Wall) -> None:
    ring = KeyRing((KEY,), wall)
    sessions = Sessions(ring, SECRET, wall)
    session, cookie = log_in(sessions)
    assert sessions.is_valid(session)
    ring.adopt(KeyRing((KEY, Key("other", digest("other"))), wall))
    assert sessions.is_valid(session)
    ring.adopt(KeyRing((Key("forum", digest("the key"), frozenset({"read"})),), wall))
    assert not sessions.is_valid(session)  # what it follows it may follow no longer
    assert sessions.identify(request(cookie)).scopes == {"read"}
    ring.adopt(KeyRing((), wall))
    with pytest.raises(Unauthorized):
        sessions.identify(request(cookie))
