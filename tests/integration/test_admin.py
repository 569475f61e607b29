"""The admin page as the network sees it: sessions, rights, headers, and where it is served."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import zipfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hatchling.builders.wheel import WheelBuilder

from messagebusd.http.admin import door
from tests.conftest import StartDaemon
from tests.support.admin import HEADERS, AdminPage
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.redis_server import RedisServer

STATIC = Path(door.__file__).parent / "static"
KEYS = [
    {"name": "reader", "token": "of-the-reader", "scopes": ["read"]},
    {"name": "publisher", "token": "of-the-publisher", "scopes": ["publish"]},
    {"name": "part", "token": "of-a-part", "scopes": ["admin", "read"], "channels": ["/a/*"]},
]
ADMIN_CALLS = (
    ("GET", "api/samples"),
    ("GET", "api/health"),
    ("GET", "api/settings"),
    ("GET", "api/stats"),
    ("GET", "api/channels"),
    ("GET", "api/clients"),
)


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    config = {"server": {"internal_listen": "127.0.0.1:0"}, "api": {"keys": KEYS}}
    async with HostedDaemon(tmp_path, config) as daemon:
        yield daemon


@pytest.fixture
async def page(daemon: HostedDaemon) -> AsyncIterator[AdminPage]:
    async with AdminPage(daemon.internal_url) as page:
        yield page


# -- where it is served


async def test_the_page_is_on_the_internal_listener_only(daemon: HostedDaemon) -> None:
    async with AdminPage(daemon.internal_url) as inside, AdminPage(daemon.url) as outside:
        for path in ("", "main.js", "session", "api/stats"):
            assert (await inside.get(path)).status != 404, path
            assert (await outside.get(path)).status == 404, path
        assert (await outside.log_in(daemon.key)).status == 404


async def test_without_an_internal_listener_it_is_where_the_api_is(tmp_path: Path) -> None:
    async with HostedDaemon(tmp_path) as daemon, AdminPage(daemon.url) as page:
        assert (await page.get("")).status == 200
        assert (await page.log_in(daemon.key)).status == 200


@pytest.mark.parametrize("section", ["admin", "api"])
async def test_it_can_be_switched_off(tmp_path: Path, section: str) -> None:
    config = {section: {"enabled": False}}
    async with HostedDaemon(tmp_path, config) as daemon, AdminPage(daemon.url) as page:
        assert (await page.get("")).status == 404
        assert (await page.log_in(daemon.key)).status == 404


async def test_every_file_of_the_page_is_served(page: AdminPage) -> None:
    files = [each.relative_to(STATIC).as_posix() for each in STATIC.rglob("*") if each.is_file()]
    assert len(files) > 15
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    for file in files:
        answer = await page.get("" if file == "index.html" else file)
        assert answer.status == 200, file
        assert answer.headers["Content-Type"].startswith(kinds[file.rpartition(".")[2]])
        assert answer.text == (STATIC / file).read_text()
    for path in ("nothing.js", "../door.py", "%2e%2e/door.py", "views/", "views"):
        assert (await page.get(path)).status == 404, path


async def test_the_way_to_the_page(daemon: HostedDaemon) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{daemon.internal_url}/admin", allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.headers["Location"]) == (308, "admin/")


def test_nothing_of_the_page_is_inline_or_from_elsewhere() -> None:
    """What the policy would block, and what would make markup of text."""
    for file in STATIC.rglob("*"):
        if not file.is_file():
            continue
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        for forbidden in ("http:", "https:", "innerHTML", "insertAdjacentHTML", "eval(", "style="):
            assert forbidden not in text, (file, forbidden)


# -- what every answer says


async def test_every_answer_is_guarded(daemon: HostedDaemon, page: AdminPage) -> None:
    answers = [
        await page.get(""),
        await page.get("main.js"),
        await page.get("api/stats"),
        await page.get("nothing"),
        await page.log_in("wrong"),
        await page.log_in(daemon.key),
        await page.get("api/stats"),
        await page.get("session"),
        await page.ask("POST", "api/publish", {"channel": "/a", "data": 1}),
    ]
    assert [each.status for each in answers] == [200, 200, 401, 404, 401, 200, 200, 200, 200]
    for answer in answers:
        headers = answer.headers
        policy = dict(
            each.partition(" ")[::2] for each in headers["Content-Security-Policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Server" not in headers


async def test_other_answers_are_as_before(daemon: HostedDaemon) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{daemon.internal_url}/livez") as answer,
    ):
        assert "Content-Security-Policy" not in answer.headers


# -- sessions


async def test_a_login_and_a_logout(daemon: HostedDaemon, page: AdminPage) -> None:
    assert (await page.get("session")).status == 204
    assert (await page.get("api/stats")).status == 401
    answer = await page.log_in(f" {daemon.key}\n")
    assert answer.json["name"] == "api key"
    assert answer.json["scopes"] == ["admin", "publish", "read"]
    assert daemon.key not in answer.text + str(answer.headers)
    cookie = answer.headers["Set-Cookie"]
    assert cookie.endswith("; Max-Age=1800; Path=/admin/; HttpOnly; SameSite=Strict")
    assert (await page.get("session")).json == answer.json
    assert (await page.get("api/stats")).status == 200

    stolen = {"Cookie": cookie.partition(";")[0]}
    async with AdminPage(daemon.internal_url) as thief:
        assert (await thief.ask("GET", "api/stats", headers=stolen)).status == 200
        gone = await page.ask("DELETE", "session")
        assert gone.status == 204
        assert "Max-Age=0" in gone.headers["Set-Cookie"]
        assert (await page.get("api/stats")).status == 401
        assert (await thief.ask("GET", "api/stats", headers=stolen)).status == 401


async def test_the_cookie_is_worth_nothing_to_the_api(
    daemon: HostedDaemon, page: AdminPage
) -> None:
    cookie = (await page.log_in(daemon.key)).headers["Set-Cookie"].partition(";")[0]
    async with (
        aiohttp.ClientSession() as session,
        session.get(
            f"{daemon.internal_url}/api/v1/stats", headers={**HEADERS, "Cookie": cookie}
        ) as answer,
    ):
        assert answer.status == 401


async def test_a_key_is_worth_nothing_without_a_session(
    daemon: HostedDaemon, page: AdminPage
) -> None:
    headers = {"Authorization": f"Bearer {daemon.key}"}
    assert (await page.ask("GET", "api/stats", headers=headers)).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Messagebusd-Admin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
    ],
)
async def test_other_origins_get_and_change_nothing(
    daemon: HostedDaemon, page: AdminPage, headers: dict[str, str]
) -> None:
    await page.log_in(daemon.key)
    for method, path, body in (
        ("POST", "session", {"key": daemon.key}),
        ("DELETE", "session", None),
        ("GET", "session", None),
        ("GET", "api/stats", None),
        ("POST", "api/publish", {"channel": "/forged", "data": 1}),
        ("POST", "api/clients/disconnect", {"client_id": "x"}),
        ("DELETE", "api/backlog?channel=/a", None),
    ):
        answer = await page.ask(method, path, body, headers=headers)
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), path
        assert "Set-Cookie" not in answer.headers
    assert (await page.get("api/last_id", channel="/forged")).json["last_id"] == 0
    assert (await page.get("api/stats")).status == 200


async def test_preflights_allow_nothing(page: AdminPage) -> None:
    asked = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-messagebusd-admin",
    }
    for path in ("session", "api/publish"):
        answer = await page.ask("OPTIONS", path, headers=asked)
        assert answer.status == 405
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_attempts_to_log_in_are_limited(daemon: HostedDaemon, page: AdminPage) -> None:
    for _ in range(20):  # those that succeed do not count
        assert (await page.log_in(daemon.key)).status == 200
    refused = [(await page.log_in("guess")).status for _ in range(door.LOGIN_ATTEMPTS)]
    assert refused == [401] * door.LOGIN_ATTEMPTS
    for key in ("guess", daemon.key):
        answer = await page.log_in(key)
        assert (answer.status, answer.json["code"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) > 0
    assert (await page.get("api/stats")).status == 200  # who is in stays in


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"key": 7}, "invalid_request"),
        ({"key": ""}, "unauthorized"),
        ({"key": "\ud800"}, "invalid_json"),
        ({"key": "x", "more": 1}, "unknown_field"),
    ],
)
async def test_logins_are_read_strictly(page: AdminPage, body: Any, code: str) -> None:
    assert (await page.ask("POST", "session", body)).json["code"] == code


async def test_keys_are_in_no_log(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"log": {"level": "debug"}})
    async with AdminPage(daemon.url) as page:
        await page.log_in("a-guess-that-is-secret")
        await page.log_in(daemon.key)
        cookie = (await page.log_in(daemon.key)).headers["Set-Cookie"]
        await page.ask("POST", "api/publish", {"channel": "/a", "data": "private"})
        await page.ask("DELETE", "session")
    await daemon.stop()
    messages = {each["message"]: each for each in daemon.log}
    assert messages["logged in"]["key"] == "api key"
    assert messages["login refused"]["address"] == "127.0.0.1"
    assert messages["admin call"]["call"] == "/admin/api/publish"
    for secret in (daemon.key, "a-guess", cookie.partition(";")[0].partition("=")[2], "private"):
        assert secret not in daemon.output()


# -- rights


async def test_who_may_not_is_refused(page: AdminPage) -> None:
    for key in ("of-the-reader", "of-the-publisher", "of-a-part"):
        assert (await page.log_in(key)).status == 200
        for method, path in ADMIN_CALLS:
            assert (await page.ask(method, path)).status == 403, (key, path)


async def test_a_key_does_here_what_it_may_do_there(page: AdminPage) -> None:
    await page.log_in("of-the-publisher")
    message = {"channel": "/a/b", "data": 1}
    assert (await page.ask("POST", "api/publish", message)).status == 200
    assert (await page.get("api/backlog", channel="/a/b")).status == 403
    await page.log_in("of-the-reader")
    assert (await page.ask("POST", "api/publish", message)).status == 403
    assert len((await page.get("api/backlog", channel="/a/b")).json["messages"]) == 1
    answer = await page.log_in("of-a-part")
    assert answer.json["channels"] == ["/a/*"]
    assert (await page.get("api/backlog", channel="/a/b")).status == 200
    assert (await page.get("api/backlog", channel="/b")).status == 403


# -- what it tells


async def test_settings_are_as_the_command_line_shows_them(
    daemon: HostedDaemon, page: AdminPage
) -> None:
    await page.log_in(daemon.key)
    answer = await page.get("api/settings")
    for secret in (daemon.key, *(str(each["token"]) for each in KEYS)):
        assert secret not in answer.text
    values = {each["key"]: each["value"] for each in answer.json["settings"]}
    assert values["api.key"] == '"********"'
    assert values["server.internal_listen"] == '"127.0.0.1:0"'


async def test_settings_tell_where_they_come_from(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(env={"MESSAGEBUSD_POLL__MAX_CHANNELS": "77"})
    async with AdminPage(daemon.url) as page:
        await page.log_in(daemon.key)
        rows = {each["key"]: each for each in (await page.get("api/settings")).json["settings"]}
    assert rows["poll.max_channels"]["source"] == "MESSAGEBUSD_POLL__MAX_CHANNELS"
    assert rows["server.listen"]["source"].endswith("bus.toml:2")
    assert rows["log.level"]["source"] == "default"


async def test_health_says_what_is_wrong(
    daemon: HostedDaemon, page: AdminPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await page.log_in(daemon.key)
    healthy = {"store": "ok", "accepting": "ok"}
    assert (await page.get("api/health")).json == {
        "ready": True,
        "workers": [{"worker": 1, "ready": True, "checks": healthy}],
    }
    monkeypatch.setattr(daemon._server, "_draining", True)
    answer = await page.get("api/health")
    assert answer.status == 200
    assert answer.json["ready"] is False
    assert answer.json["workers"][0]["checks"]["accepting"] == "draining"


async def test_a_tail_ends_with_its_session(daemon: HostedDaemon, page: AdminPage) -> None:
    cookie = (await page.log_in("of-the-reader")).headers["Set-Cookie"].partition(";")[0]
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session,
        session.get(
            f"{daemon.internal_url}/admin/api/subscribe", headers={**HEADERS, "Cookie": cookie}
        ) as stream,
    ):
        assert "Content-Security-Policy" in stream.headers
        assert await stream.content.readline() == b"\n"
        await daemon.publish("/a", "<b>")
        assert json.loads(await stream.content.readline())["data"] == "<b>"
        # It is counted where all subscriptions are.
        assert (await daemon.api("GET", "stats"))["subscriptions"] == 1
        await page.ask("DELETE", "session")
        rest = [line for line in (await stream.content.read()).split(b"\n") if line]
        assert json.loads(rest[-1])["end"]["code"] == "unauthorized"


# -- several workers


async def test_any_worker_knows_who_is_logged_in(
    start_daemon: StartDaemon, redis_server: RedisServer
) -> None:
    redis_server.flush()
    daemon = await start_daemon(
        {
            "server": {"workers": 2},
            "backend": {"kind": "redis", "redis": {"url": redis_server.url}},
        }
    )
    many = 24  # so many connections that each worker gets some
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(AdminPage(daemon.url, anew=True))
        for number in range(many):
            connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
            poll = encode_request(
                "POST",
                f"/message-bus/c{number}/poll",
                headers=[("Content-Type", "application/json")],
                body=b'{"/a": 0}',
            )
            await connection.send(poll).chunk_count(1)
        await daemon.publish("/a", 1)
        cookie = (await page.log_in(daemon.key)).headers["Set-Cookie"].partition(";")[0]

        health = (await page.get("api/health")).json
        assert [each["worker"] for each in health["workers"]] == [1, 2]
        assert health["ready"] is True

        async with asyncio.timeout(20):
            # Whoever answers, it is the sum over all of them.
            while await numbers(page) != (many, True):
                await asyncio.sleep(0.2)

        assert (await page.ask("DELETE", "session")).status == 204
        await replace_a_worker(daemon)
        after = [
            (await page.ask("GET", "api/stats", headers={"Cookie": cookie})).status
            for _ in range(16)
        ]
        assert after == [401] * 16


async def replace_a_worker(daemon: Daemon) -> None:
    """Have the first worker die, and wait until its replacement serves."""
    ready = [each for each in daemon.log if each["message"] == "worker ready"]
    os.kill(next(each["pid"] for each in ready if each["worker"] == 1), signal.SIGKILL)
    async with asyncio.timeout(20):
        while len([each for each in daemon.log if each["message"] == "worker ready"]) == len(ready):
            await asyncio.sleep(0.05)


async def numbers(page: AdminPage) -> tuple[int, bool]:
    """The most polls that waited, and whether anything was published, as any worker tells it."""
    rows = {}
    for _ in range(8):
        answer = await page.get("api/samples")
        assert answer.status == 200
        assert "unavailable_workers" not in answer.json
        for values in answer.json["rows"]:
            row = dict(zip(answer.json["columns"], values, strict=True))
            rows[row["at"]] = row
    waiting = max((row["stream"] for row in rows.values()), default=0)
    return waiting, any(row["publishes"] for row in rows.values())


# -- the package


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    [wheel] = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if "http/admin/static" in name}
    assert inside == {
        each.relative_to(root).as_posix() for each in STATIC.rglob("*") if each.is_file()
    }
