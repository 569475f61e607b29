"""`messagebusd doctor` asks a real application on a real port: each finding is provoked once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from messagebusd.doctor import examine
from messagebusd.doctor.report import Level
from messagebusd.doctor.webhook import judge_latency
from messagebusd.settings import Settings
from tests.support.host_application import Answer, application, config
from tests.support.hosted import HostedDaemon
from tests.support.program import free_port

SECRET = "whsec_" + base64.b64encode(b"s" * 24).decode()


async def signed(request: web.Request) -> Any:
    """An application that checks signatures, as standardwebhooks.com says."""
    said = request.headers
    content = f"{said['webhook-id']}.{said['webhook-timestamp']}.".encode() + await request.read()
    digest = base64.b64encode(hmac.digest(b"s" * 24, content, hashlib.sha256)).decode()
    is_right = hmac.compare_digest(said["webhook-signature"], f"v1,{digest}")
    return {} if is_right else web.Response(status=401)


async def diagnose(url: str, **webhook: Any) -> dict[str, tuple[Level, str]]:
    options = {"secret": SECRET, **webhook}
    options = {name: value for name, value in options.items() if value is not None}
    settings = Settings.model_validate(config(url, **options))
    report = await examine(settings)
    return {
        each.check.removeprefix("webhook."): (each.level, each.found)
        for each in report.findings
        if each.check.startswith("webhook.")
    }


def levels(found: dict[str, tuple[Level, str]]) -> dict[str, str]:
    return {check: level.value for check, (level, _) in found.items()}


async def test_an_application_that_does_everything_right() -> None:
    asked = []

    async def answer(request: web.Request) -> Any:
        asked.append(await request.json())
        return await signed(request)

    async with application(answer) as url:
        found = await diagnose(url)
    assert levels(found) == dict.fromkeys(("reachable", "latency", "answer", "signature"), "ok")
    assert "a wrong one is refused (401)" in found["signature"][1]
    assert {each["headers"]["user-agent"] for each in asked} == {"messagebusd-doctor"}
    assert {each["host"] for each in asked} == {"localhost"}


@pytest.mark.parametrize(
    ("answer", "webhook", "check", "level", "says"),
    [
        (lambda _: {}, {}, "signature", "problem", "with a wrong signature as well"),
        (lambda _: {}, {"secret": None}, "signature", "warning", "not signed"),
        (signed, {"secret": "another"}, "answer", "warning", "does not accept the signature"),
        (lambda _: {"user_id": 1}, {}, "answer", "problem", "for somebody"),
        (lambda _: {"group_ids": [1]}, {}, "answer", "problem", "for somebody"),
        (lambda _: {"site_id": "forum"}, {}, "answer", "ok", "of the site forum"),
        (lambda _: [1], {}, "answer", "problem", "not usable"),
        (lambda _: web.Response(status=500), {}, "answer", "problem", "500"),
        (lambda _: web.Response(status=403), {}, "answer", "warning", "turned away"),
    ],
)
async def test_what_is_wrong_is_named(
    answer: Answer, webhook: dict[str, Any], check: str, level: str, says: str
) -> None:
    async with application(answer) as url:
        found = await diagnose(url, **webhook)
    assert (found[check][0].value, says in found[check][1]) == (level, True), found
    assert SECRET not in str(found)


async def test_an_application_that_is_not_there() -> None:
    found = await diagnose(f"http://127.0.0.1:{free_port()}/lookup")
    assert levels(found) == {"reachable": "problem"}


async def test_an_application_that_takes_too_long() -> None:
    hold = asyncio.Event()

    async def answer(_: web.Request) -> Any:
        await hold.wait()

    async with application(answer) as url:
        found = await diagnose(url, timeout=0.1)
        assert found["reachable"] == (
            Level.PROBLEM,
            "no answer within lookup.webhook.timeout, 0.1 s",
        )
        hold.set()


def test_how_long_is_too_long() -> None:
    assert judge_latency([0.1] * 10, 1.5).found == (
        "of 10 questions half were answered within 100 ms, all within 100 ms"
    )
    assert judge_latency([0.01] * 9 + [0.8], 1.5).level is Level.WARNING


async def test_the_running_daemons_breaker(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/lookup"
    listen = f"127.0.0.1:{free_port()}"
    settings = {**config(url), "server": {"listen": listen}}
    async with HostedDaemon(tmp_path, settings) as daemon:
        for paused in (False, True):
            report = await examine(Settings.model_validate(settings))
            [found] = [each for each in report.findings if each.check == "webhook.breaker"]
            assert (found.level is Level.PROBLEM) == paused
            assert daemon._server is not None
            daemon._server.metrics.lookup_paused(True)
