"""What the doctor makes of a way that no proxy at hand goes."""

from __future__ import annotations

from typing import Any

import pytest

from messagebusd.doctor import public_findings as judge
from messagebusd.doctor.public_findings import Observed
from messagebusd.doctor.report import Finding, Level
from messagebusd.doctor.streams import Seen
from messagebusd.settings import Settings

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
SETTINGS = Settings()
ARRIVAL = {
    "method": "POST",
    "version": "1.1",
    "peer": "127.0.0.1",
    "trusted": True,
    "remote_addr": "203.0.113.9",
    "host": "forum.example",
    "forwarded_for": "203.0.113.77, 203.0.113.9",
    "forwarded_proto": "https",
    "headers": ["authorization", "cookie"],
}


def stream(**more: Any) -> Seen:
    return Seen(**{"status": 200, "content_type": "text/plain; charset=utf-8", **more})


def observed(**more: Any) -> Observed:
    return Observed("https", "forum.example", **more)


def assert_found(found: Finding, level: Level, says: str) -> None:
    assert (found.level, says in found.found) == (level, True), found
    assert level is OK or found.advice


@pytest.mark.parametrize(
    ("seen", "level", "says"),
    [
        (stream(frames=[0.05]), OK, "after 50 ms"),
        (stream(frames=[2.5]), WARNING, "after 2.5 s"),
        (stream(), PROBLEM, "held back"),
        (Seen(error="ServerDisconnectedError"), PROBLEM, "broke off"),
        (Seen(status=200, content_type="application/json"), PROBLEM, "as application/json"),
        (Seen(status=401), WARNING, "are refused (401)"),
        (Seen(status=429), PROBLEM, "come back later"),
        (Seen(status=500), PROBLEM, "answered 500"),
    ],
)
def test_first_frames(seen: Seen, level: Level, says: str) -> None:
    [found] = judge.first_frame(observed(stream=seen))
    assert_found(found, level, says)


@pytest.mark.parametrize(
    ("delays", "level", "says"),
    [
        ([0.01, 0.02], OK, "within 20 ms"),
        ([0.01, 1.5], WARNING, "took 1.5 s"),
        ([0.01, None], PROBLEM, "did not come"),
    ],
)
def test_messages(delays: list[float | None], level: Level, says: str) -> None:
    [found] = judge.messages(observed(delays=delays))
    assert_found(found, level, says)


@pytest.mark.parametrize(
    ("seen", "level", "says"),
    [
        (stream(ended_at=24.5), OK, "waits for 24.5 s"),
        (stream(ended_at=15.0), WARNING, "answered to its end after 15.0 s"),
        (stream(ended_at=15.0, error="ClientPayloadError"), PROBLEM, "is cut after 15.0 s"),
        (Seen(status=504, ended_at=15.0), PROBLEM, "answered 504"),
        (stream(), PROBLEM, "does not end"),
    ],
)
def test_silent_polls(seen: Seen, level: Level, says: str) -> None:
    assert_found(judge.held(observed(idle=seen), SETTINGS), level, says)


@pytest.mark.parametrize(("protocol", "level"), [("h2", OK), ("http/1.1", WARNING), (None, None)])
def test_versions(protocol: str | None, level: Level | None) -> None:
    levels = [each.level for each in judge.version(observed(protocol=protocol))]
    assert levels == ([] if level is None else [level])


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({}, "public.address", OK),
        ({"host": "[::1]:443"}, "public.host", PROBLEM),
        ({"host": "FORUM.example:443"}, "public.host", OK),
        ({"host": None}, "public.host", PROBLEM),
        ({"forwarded_for": "203.0.113.77"}, "public.address", PROBLEM),
        ({"forwarded_proto": "http"}, "public.scheme", WARNING),
        ({"forwarded_proto": None}, "public.scheme", WARNING),
        ({"trusted": False, "peer": ""}, "public.address", PROBLEM),
    ],
)
def test_what_arrives(change: dict[str, Any], check: str, level: Level) -> None:
    found = judge.forwarded(observed(arrival={**ARRIVAL, **change}), SETTINGS)
    assert {each.check: each.level for each in found}[check] is level


def test_origins_that_are_named_twice() -> None:
    headers = {"access-control-allow-origin": "https://a.example, https://a.example"}
    seen = observed(preflight=Seen(status=200, body=b"OK", headers=headers))
    assert_found(judge.cross_origin(seen, SETTINGS), PROBLEM, "twice")


def test_who_is_not_reached_is_not_judged() -> None:
    for seen in (Seen(error="its certificate is not valid"), Seen(status=404)):
        found = list(judge.all_findings(observed(immediate=seen, was_announced=True), SETTINGS))
        assert [each.check for each in found] == ["public.reachable"]
        assert found[0].level is PROBLEM
