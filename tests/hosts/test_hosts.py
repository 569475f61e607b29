"""What docs/hosts shows works as it stands there, with the real frameworks and the real daemon."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio

from tests.hosts.kits import DOCS, KITS, Application, build
from tests.support.hosted import HostedDaemon

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEBHOOK_SECRET = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
TOKEN_SECRET = secrets.token_hex(32)
TOPIC = "/topic/1"
_POSITIONS = re.compile(
    r'<script[^>]*(?:id="positions"[^>]*type="application/json"'
    r'|type="application/json"[^>]*id="positions")[^>]*>(.*?)</script>'
)


class Host:
    """An application, and the daemon that asks it."""

    def __init__(self, application: Application, daemon: HostedDaemon) -> None:
        self.application = application
        self.daemon = daemon

    async def ask(self, question: bytes, headers: dict[str, str]) -> tuple[int, str]:
        """Post to the lookup's route, as somebody who is not the daemon can."""
        headers = {"Content-Type": "application/json", **headers}
        url = f"{self.application.url}/messagebus/lookup"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=question, headers=headers) as answer,
        ):
            return answer.status, await answer.text()


class Visitor:
    """Somebody with cookies. Application and daemon share an origin, as behind a proxy: cookies
    belong to a host name, whatever the port."""

    def __init__(self, host: Host, session: aiohttp.ClientSession) -> None:
        self._host = host
        self._session = session
        self.id = secrets.token_hex(8)

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Call the application."""
        url = f"{self._host.application.url}{path}"
        async with self._session.request(method, url, json=body) as answer:
            return answer.status, await answer.text()

    async def log_in(self, user_id: int) -> None:
        assert (await self.send("POST", f"/login/{user_id}"))[0] == 200

    async def say(self, text: str, **audience: list[int]) -> None:
        """Have the application publish."""
        body = {"text": text, "audience": audience}
        assert (await self.send("POST", "/say", body))[0] == 200

    async def positions(self) -> dict[str, int]:
        """What a rendered page holds."""
        status, page = await self.send("GET", TOPIC)
        assert status == 200, page
        found = _POSITIONS.search(page)
        assert found is not None, page
        positions: dict[str, int] = json.loads(found[1])
        return positions

    async def poll(
        self, positions: dict[str, int], *, daemon: HostedDaemon | None = None, **headers: str
    ) -> tuple[int, str]:
        url = f"{(daemon or self._host.daemon).url}/message-bus/{self.id}/poll?dlp=t"
        async with self._session.post(url, json=positions, headers=headers) as answer:
            return answer.status, await answer.text()

    async def heard(self, positions: dict[str, int], **more: Any) -> list[Any]:
        """The messages that a poll brings."""
        status, body = await self.poll(positions, **more)
        assert status == 200, body
        return [each["data"] for each in json.loads(body) if each["channel"] == TOPIC]

    async def stream(self, positions: dict[str, int]) -> aiohttp.ClientResponse:
        """A poll that waits; its head has come."""
        url = f"{self._host.daemon.url}/message-bus/{self.id}/poll"
        return await self._session.post(url, json=positions)


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=KITS)
async def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    build(request.param, folder)
    application = Application(request.param, folder)
    webhook = {"url": f"{application.url}/messagebus/lookup", "secret": WEBHOOK_SECRET}
    config = {"lookup": {"mode": "webhook", "webhook": webhook}}
    async with HostedDaemon(tmp_path_factory.mktemp("daemon"), config) as daemon:
        application.env.update(
            MESSAGEBUSD_URL=daemon.url,
            MESSAGEBUSD_KEY=daemon.key,
            MESSAGEBUSD_WEBHOOK_SECRET=WEBHOOK_SECRET,
            MESSAGEBUSD_TOKEN_SECRET=TOKEN_SECRET,
        )
        await asyncio.to_thread(application.start)
        try:
            yield Host(application, daemon)
        finally:
            await asyncio.to_thread(application.stop)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def token_daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostedDaemon]:
    """A daemon that asks nobody and believes tokens."""
    settings = {"secret": TOKEN_SECRET, "audience": "messagebusd"}
    config = {"lookup": {"mode": "jwt", "jwt": settings}}
    async with HostedDaemon(tmp_path_factory.mktemp("tokens"), config) as daemon:
        yield daemon


@pytest_asyncio.fixture(loop_scope="session")
async def visitors(host: Host) -> AsyncIterator[tuple[Visitor, Visitor]]:
    """Two browsers, and nobody is logged in."""
    jars = [aiohttp.CookieJar(unsafe=True) for _ in range(2)]
    async with (
        aiohttp.ClientSession(cookie_jar=jars[0]) as one,
        aiohttp.ClientSession(cookie_jar=jars[1]) as other,
    ):
        yield Visitor(host, one), Visitor(host, other)


async def test_a_private_message_reaches_its_user_only(
    visitors: tuple[Visitor, Visitor],
) -> None:
    ada, other = visitors
    await ada.log_in(42)
    start = await ada.positions()
    await ada.say("to all")
    await ada.say("to ada", user_ids=[42])
    everything = ["to all", "to ada"]
    assert await ada.heard(start) == everything
    assert await other.heard(start) == ["to all"]  # an anonymous visitor
    await other.log_in(43)
    assert await other.heard(start) == ["to all"]


async def test_groups(host: Host, visitors: tuple[Visitor, Visitor]) -> None:
    ada, grace = visitors
    await ada.log_in(42)
    await grace.log_in(43)
    start = await ada.positions()
    await host.daemon.publish(TOPIC, "to the staff", group_ids=[7])
    assert await ada.heard(start) == ["to the staff"]
    assert await grace.heard(start) == []


async def test_nothing_is_missed_between_rendering_and_polling(
    visitors: tuple[Visitor, Visitor],
) -> None:
    ada, _ = visitors
    await ada.log_in(42)
    await ada.say("in the page")
    positions = await ada.positions()
    assert positions.keys() == {TOPIC}
    assert positions[TOPIC] > 0
    await ada.say("meanwhile")
    assert await ada.heard(positions) == ["meanwhile"]


async def test_who_is_banned_is_told_so(visitors: tuple[Visitor, Visitor]) -> None:
    banned, _ = visitors
    await banned.log_in(44)
    status, body = await banned.poll({TOPIC: 0})
    assert (status, body.strip()) == (403, "You are banned.")


async def test_a_logout_ends_the_polls(visitors: tuple[Visitor, Visitor]) -> None:
    ada, other = visitors
    await ada.log_in(42)
    start = await ada.positions()
    stream = await ada.stream(start)
    assert await stream.content.readuntil(b"|\r\n") == b"[]\r\n|\r\n"
    assert (await ada.send("POST", "/logout"))[0] == 200
    await other.say("to ada", user_ids=[42])
    assert b"to ada" not in await stream.content.read()
    assert await ada.heard(start) == []


def signed(body: bytes, *, secret: str = WEBHOOK_SECRET, age: float = 0.0) -> dict[str, str]:
    sent = int(time.time() - age)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"msg_1.{sent}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(sent),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


async def test_only_the_daemon_may_ask(host: Host) -> None:
    body = json.dumps(
        {"client_id": "x", "headers": {"cookie": "å=1; 李=2; a=b+c; broken; %ff[x]=1"}}
    ).encode()
    good = signed(body)
    status, answer = await host.ask(body, good)
    assert status == 200, answer
    assert json.loads(answer).get("user_id") is None
    rotated = {**good, "webhook-signature": f"v1,AAAA {good['webhook-signature']}"}
    assert (await host.ask(body, rotated))[0] == 200

    another = f"whsec_{base64.b64encode(b'x' * 32).decode()}"
    for name, headers, sent in (
        ("unsigned", {}, body),
        ("another secret", signed(body, secret=another), body),
        ("another body", good, body + b" "),
        ("another id", {**good, "webhook-id": "msg_2"}, body),
        ("redated", {**good, "webhook-timestamp": str(int(time.time()) + 1)}, body),
        ("old", signed(body, age=400), body),
        ("early", signed(body, age=-400), body),
        ("cut off", {**good, "webhook-signature": good["webhook-signature"][:-1]}, body),
        ("no version", {**good, "webhook-signature": good["webhook-signature"][3:]}, body),
        ("empty", {**good, "webhook-signature": ""}, body),
    ):
        status, _ = await host.ask(sent, headers)
        assert status in (401, 403), name


async def test_a_token_opens_polls(
    visitors: tuple[Visitor, Visitor], token_daemon: HostedDaemon
) -> None:
    ada, other = visitors
    assert (await ada.send("GET", "/messagebus/token"))[0] == 401
    await ada.log_in(42)
    status, answer = await ada.send("GET", "/messagebus/token")
    assert status == 200, answer
    token = json.loads(answer)["token"]
    claims = jwt.decode(
        token,
        TOKEN_SECRET,
        algorithms=["HS256"],
        audience="messagebusd",
        options={"verify_sub": False},
    )
    claims.pop("iat", None)
    lifetime = claims.pop("exp") - time.time()
    assert 0 < lifetime <= 600
    assert claims == {"sub": 42, "groups": [7], "aud": "messagebusd"}

    start = {TOPIC: (await token_daemon.api("GET", "last_id", query={"channel": TOPIC}))["last_id"]}
    await token_daemon.publish(TOPIC, "to ada", user_ids=[42])
    await token_daemon.publish(TOPIC, "to the staff", group_ids=[7])
    heard = await ada.heard(start, daemon=token_daemon, Authorization=f"Bearer {token}")
    assert heard == ["to ada", "to the staff"]
    assert await other.heard(start, daemon=token_daemon) == []


async def test_every_page_is_run_and_listed() -> None:
    shown = {path.stem for path in DOCS.glob("*.md")} - {"README"}
    assert {page for kit in KITS.values() for page in kit.pages} == shown
    overview = (DOCS / "README.md").read_text()
    assert all(f"({page}.md)" in overview for page in KITS)
