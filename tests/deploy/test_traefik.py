"""The shipped files of Traefik, which no registry has: whatever they refer to is there."""

from __future__ import annotations

from typing import Any

import yaml

from tests.support.shipped import DEPLOY

IDENTITY = {"X-MessageBus-User", "X-MessageBus-Groups", "X-MessageBus-Site"}


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "traefik" / name).read_text())
    return content


def test_references_lead_somewhere() -> None:
    static, dynamic = _read("traefik.yml"), _read("dynamic.yml")
    http = dynamic["http"]
    for router in http["routers"].values():
        assert router["service"] in http["services"]
        assert set(router["entryPoints"]) <= set(static["entryPoints"])
        assert set(router["middlewares"]) <= set(http["middlewares"])
        assert "PathPrefix(`/message-bus/`)" in router["rule"]
    assert static["providers"]["file"]["filename"].endswith("/dynamic.yml")


def test_nothing_holds_messages_or_believes_browsers() -> None:
    http = _read("dynamic.yml")["http"]
    kinds = {kind for each in http["middlewares"].values() for kind in each}
    assert not kinds & {"buffering", "compress", "inFlightReq", "retry"}
    [router] = http["routers"].values()
    [first] = router["middlewares"]
    removed = http["middlewares"][first]["headers"]["customRequestHeaders"]
    assert removed == dict.fromkeys(IDENTITY, "")
    asked = http["middlewares"]["who-is-asking"]["forwardAuth"]
    assert set(asked["authResponseHeaders"]) == IDENTITY


def test_polls_are_let_be_silent() -> None:
    timeouts = _read("traefik.yml")["entryPoints"]["web"]["transport"]["respondingTimeouts"]
    assert "writeTimeout" not in timeouts  # its default is none
