"""Which headers let a page of another origin read an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from messagebusd.http.cors import CorsPolicy
from messagebusd.protocol import wire

FORUM = "https://forum.example"
BASE = dict(wire.poll_headers([("X-Extra", "e")]))


def policy(*origins: str, exposed: Sequence[str] = ("Retry-After",)) -> CorsPolicy:
    return CorsPolicy(origins, ("Content-Type", "Dont-Chunk"), exposed, 7200)


def add(cors: CorsPolicy, headers: Mapping[str, str], origin: str | None) -> dict[str, str]:
    added = cors.add_to(tuple(headers.items()), origin)
    assert len(dict(added)) == len(added)
    return dict(added)


ALLOWED = {"access-control-allow-origin": FORUM, "access-control-expose-headers": "Retry-After"}
EVERYBODY = {**ALLOWED, "access-control-allow-origin": "*"}


@pytest.mark.parametrize(
    ("origins", "origin", "added"),
    [
        ([], FORUM, {}),
        ([], None, {}),
        ([FORUM], FORUM, {**ALLOWED, "vary": "Origin"}),
        ([FORUM, "https://other.example"], FORUM, {**ALLOWED, "vary": "Origin"}),
        # The same answer must not be kept for those who may read it.
        ([FORUM], None, {"vary": "Origin"}),
        ([FORUM], "https://evil.example", {"vary": "Origin"}),
        ([FORUM], "null", {"vary": "Origin"}),
        ([FORUM], "", {"vary": "Origin"}),
        # what browsers never send for this origin
        ([FORUM], "https://forum.example:443", {"vary": "Origin"}),
        ([FORUM], "HTTPS://FORUM.EXAMPLE", {"vary": "Origin"}),
        # what is another one
        ([FORUM], "http://forum.example", {"vary": "Origin"}),
        ([FORUM], "https://forum.example:8443", {"vary": "Origin"}),
        ([FORUM], "https://forum.example.evil.example", {"vary": "Origin"}),
        ([FORUM], "https://a.forum.example", {"vary": "Origin"}),
        ([FORUM], f"{FORUM} https://evil.example", {"vary": "Origin"}),
        (["*"], FORUM, EVERYBODY),
        (["*"], "null", EVERYBODY),
        (["*"], None, EVERYBODY),
        (["*", FORUM], FORUM, EVERYBODY),
    ],
)
def test_answers(origins: list[str], origin: str | None, added: dict[str, str]) -> None:
    assert add(policy(*origins), BASE, origin) == {**BASE, **added}


@pytest.mark.parametrize(
    ("vary", "result"),
    [
        ("Cookie", "Cookie, Origin"),
        ("Accept-Language, ORIGIN", "Accept-Language, ORIGIN"),
        ("*", "*"),
        ("X-Original", "X-Original, Origin"),
    ],
)
def test_vary_adds_up(vary: str, result: str) -> None:
    headers = dict(wire.poll_headers([("Vary", vary)]))
    assert add(policy(FORUM), headers, FORUM)["vary"] == result
    assert add(policy("*"), headers, FORUM)["vary"] == vary
    assert add(policy(), headers, FORUM)["vary"] == vary


def test_nobody_else_decides() -> None:
    """Neither the application nor the extra headers, unless no origins are configured at all."""
    others = {
        "access-control-allow-origin": "*",
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "X-Secret",
    }
    headers = {**BASE, **others}
    assert add(policy(FORUM), headers, "https://evil.example") == {**BASE, "vary": "Origin"}
    assert add(policy(FORUM), headers, FORUM) == {**BASE, **ALLOWED, "vary": "Origin"}
    assert add(policy("*"), headers, FORUM) == {**BASE, **EVERYBODY}
    assert add(policy(), headers, FORUM) == headers


def test_adding_twice_is_adding_once() -> None:
    once = add(policy(FORUM), BASE, FORUM)
    assert add(policy(FORUM), once, FORUM) == once


def test_nothing_is_exposed_if_nothing_is_to_be() -> None:
    assert "access-control-expose-headers" not in add(policy("*", exposed=()), BASE, FORUM)


PREFLIGHT = {
    "access-control-allow-methods": "POST, OPTIONS",
    "access-control-allow-headers": "Content-Type, Dont-Chunk",
    "access-control-max-age": "7200",
}


@pytest.mark.parametrize(
    ("origins", "origin", "added"),
    [
        ([FORUM], FORUM, {**ALLOWED, "vary": "Origin", **PREFLIGHT}),
        (["*"], FORUM, {**EVERYBODY, **PREFLIGHT}),
        (["*"], None, {**EVERYBODY, **PREFLIGHT}),
        ([FORUM], "https://evil.example", {"vary": "Origin"}),
        ([FORUM], None, {"vary": "Origin"}),
        ([], FORUM, {}),
    ],
)
def test_preflights(origins: list[str], origin: str | None, added: dict[str, str]) -> None:
    cors = policy(*origins)
    answer = cors.add_preflight(cors.add_to(tuple(BASE.items()), origin))
    assert dict(answer) == {**BASE, **added}
