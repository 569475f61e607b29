"""Real polls through the shipped configurations of real proxies (SPEC 2.4, REFERENCE 2.1).

Traefik is in no registry that the tests may use: `test_traefik.py` reads its files.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.deploy.proxies import (
    HOST,
    Certificate,
    Node,
    Setting,
    Way,
    caddy,
    frames,
    haproxy,
    nginx,
    nginx_compose,
    nginx_tls,
)
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.nginx import Nginx, configuration
from tests.support.program import free_port
from tests.support.rawhttp import RawConnection, encode_request
from tests.support.shipped import adapted

PROXIES = {
    "nginx": nginx,
    "nginx-compose": nginx_compose,
    "nginx-tls": nginx_tls,
    "haproxy": haproxy,
    "caddy": caddy,
}
GOOD = (200, True)
# Frames that somebody holds back come when the poll ends, after 25 s.
UNBUFFERED_SECONDS = 10.0
ADA = {"X-MessageBus-User": "ada", "X-MessageBus-Groups": '["staff"]'}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Application:
    """The application beside the bus. It says who asks by the cookie, unless it is ``down``."""

    def __init__(self) -> None:
        self.down = False
        self.asked: list[web.Request] = []
        self.hold = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        if request.path != "/message-bus-auth":
            await self.hold.wait()
            return web.Response(text="a page")
        self.asked.append(request)
        if self.down:
            return web.Response(status=503)
        if request.cookies.get("banned"):
            return web.Response(status=403)
        return web.Response(headers=ADA if request.cookies.get("user") == "ada" else {})


@pytest.fixture
def application() -> Application:
    return Application()


@asynccontextmanager
async def served(application: Application) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", application.answer)
    async with TestServer(app) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def place(
    tmp_path: Path, certificate: Certificate, application: Application
) -> AsyncIterator[Callable[..., Any]]:
    """Start so many daemons and an application: what proxies are put in front of."""
    async with AsyncExitStack() as stack:

        async def start(**config: Any) -> tuple[Setting, list[HostedDaemon]]:
            count = config.pop("daemons", 1)
            daemons = []
            internal = free_port()
            for number in range(count):
                # Each node with an address of its own, and the same ports.
                host = f"127.0.0.{number + 1}"
                folder = tmp_path / f"daemon-{number}"
                folder.mkdir()
                settings = {
                    "server": {
                        "listen": f"{host}:0",
                        "internal_listen": f"{host}:{internal}",
                        "trusted_proxies": ["127.0.0.1"],
                    },
                    "lookup": {"mode": "headers"},
                    **config,
                }
                daemons.append(await stack.enter_async_context(HostedDaemon(folder, settings)))
            folder = tmp_path / "proxy"
            folder.mkdir()
            nodes = [Node(_place(each.url), _place(each.internal_url)) for each in daemons]
            where = await stack.enter_async_context(served(application))
            return Setting(folder, nodes, where, certificate), daemons

        yield start


def _place(url: str) -> str:
    return url.removeprefix("http://")


async def _watch(way: Way, daemon: Daemon, *, http2: bool) -> None:
    """A stream begins at once, and brings each message before the next one is published."""
    version = "HTTP/2" if http2 else "HTTP/1.1"
    async with (
        way.client(http2=http2) as client,
        asyncio.timeout(UNBUFFERED_SECONDS),
        frames(client, {"/news": 0}) as (response, arriving),
    ):
        assert response.status_code == 200
        assert response.http_version == version
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "content-encoding" not in response.headers
        assert await anext(arriving) == []
        for text in ("one", "two", "three"):
            await daemon.publish("/news", text)
            [message] = await anext(arriving)
            assert message["data"] == text


async def test_messages_pass_one_by_one(place: Callable[..., Any], proxy: str) -> None:
    setting, [daemon] = await place()
    async with PROXIES[proxy](setting) as way:
        await _watch(way, daemon, http2=False)
        if way.tls:
            await daemon.api("DELETE", "backlog", query={"channel": "/news"})
            await _watch(way, daemon, http2=True)


async def test_browsers_cannot_say_who_they_are(place: Callable[..., Any], proxy: str) -> None:
    setting, [daemon] = await place()
    await daemon.publish("/secret", "for ada", user_ids=["ada"])
    await daemon.publish("/secret", "for staff", group_ids=["staff"])
    async with PROXIES[proxy](setting) as way, way.client() as client:
        assert await _seen(client, "/secret", headers=ADA) == []
    async with httpx.AsyncClient(base_url=daemon.url) as client:  # the daemon believes proxies
        assert await _seen(client, "/secret", headers=ADA) == ["for ada", "for staff"]


async def _seen(client: httpx.AsyncClient, channel: str, **options: Any) -> list[Any]:
    answer = await client.post("/message-bus/c1/poll?dlp=t", json={channel: 0}, **options)
    assert answer.status_code == 200
    return [each["data"] for each in answer.json() if each["channel"] == channel]


async def test_only_the_subscribers_path_is_forwarded(
    place: Callable[..., Any], proxy: str, application: Application
) -> None:
    application.hold.set()
    everything_on_one = {"trusted_proxies": ["127.0.0.1"]}
    setting, [daemon] = await place(server=everything_on_one)
    async with httpx.AsyncClient(base_url=daemon.url) as client:
        assert (await client.get("/metrics")).status_code == 200
    async with PROXIES[proxy](setting) as way:
        for path in (
            "/metrics",
            "/readyz",
            "/api/v1/stats",
            "/message-bus/../metrics",
            "/message-bus/%2e%2e/metrics",
            "/message-bus/..%2fmetrics",
            "/message-bus/x/../../metrics",
        ):
            head, text = await _get(way, path)
            assert b" 200 " not in head or text == b"a page", path
            assert b"messagebusd_" not in text, path


async def _get(way: Way, path: str) -> tuple[bytes, bytes]:
    """The answer to a path that no client library has tidied up."""
    if way.tls:
        context = ssl.create_default_context(cafile=way.tls.certificate)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", way.port, ssl=context, server_hostname=HOST
        )
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        head, _, text = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        return head, text
    finally:
        writer.close()


async def test_a_refusal_passes_with_its_time(place: Callable[..., Any], proxy: str) -> None:
    setting, _ = await place(poll={"client_rate": "1/60s"})
    async with PROXIES[proxy](setting) as way, way.client() as client:
        answers = [
            await client.post("/message-bus/c1/poll?dlp=t", json={"/a": 0}) for _ in range(2)
        ]
    assert [each.status_code for each in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) >= 1
    assert answers[1].json()["code"] == "rate_limited"


async def test_addresses_are_the_clients_own(place: Callable[..., Any], proxy: str) -> None:
    """What a client writes into X-Forwarded-For is not taken for its address."""
    setting, _ = await place(poll={"address_rate": "1/60s"}, server=_trusting_another_address())
    async with PROXIES[proxy](setting) as way, way.client() as client:
        statuses = [
            (
                await client.post(
                    f"/message-bus/c{number}/poll?dlp=t",
                    json={"/a": 0},
                    headers={"X-Forwarded-For": f"203.0.113.{number}"},
                )
            ).status_code
            for number in range(2)
        ]
    assert statuses == [200, 429]


def _trusting_another_address() -> dict[str, Any]:
    """Clients within the trusted networks are not counted, and all of this test's are local."""
    return {"internal_listen": "127.0.0.1:0", "trusted_proxies": ["unix"]}


@pytest.mark.parametrize("name", PROXIES)
async def test_a_node_leaves_and_nobody_notices(place: Callable[..., Any], name: str) -> None:
    """Two nodes, clients that poll again and again, and one node that is told to stop.

    Caddy cannot send a body twice: polls that meet the closed door are lost until it notices.
    """
    setting, [leaving, staying] = await place(daemons=2, poll={"long_polling_interval": 0.25})
    answers: list[tuple[int, bool]] = []  # status, and whether the last frame was whole
    done = asyncio.Event()

    async def poll(client: httpx.AsyncClient, number: int) -> None:
        while not done.is_set():
            answer = await client.post(f"/message-bus/c{number}/poll", json={"/a": -1})
            answers.append((answer.status_code, answer.text.endswith("\r\n|\r\n")))

    async with (
        PROXIES[name](setting) as way,
        way.client() as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(8):
            tasks.create_task(poll(client, number))
        while not (await _parked(leaving) and await _parked(staying)):
            await asyncio.sleep(0.02)
        await leaving.stop()
        left = len(answers)
        # Everybody again, with one node; of Caddy until it has noticed.
        while len(answers) < left + 16 or any(each != GOOD for each in answers[-8:]):
            await asyncio.sleep(0.02)
        done.set()
    if name != "caddy":
        assert set(answers) == {GOOD}


@pytest.mark.parametrize("name", [each for each in PROXIES if each.startswith("nginx")])
async def test_a_node_is_back_and_the_other_leaves(place: Callable[..., Any], name: str) -> None:
    """As in a rolling restart: as soon as the first node is ready again, the second one goes.

    nginx must not be wary of the first for having refused it. (Those that ask for a node's health
    need another look first.)
    """
    setting, [first, second] = await place(daemons=2, poll={"long_polling_interval": 3.0})
    async with PROXIES[name](setting) as way, way.client() as client:

        async def poll(number: int) -> int:
            answer = await client.post(f"/message-bus/c{number}/poll?dlp=t", json={"/a": -1})
            return answer.status_code

        await first.stop()
        statuses = [await poll(number) for number in range(8)]  # so that it has refused them
        await first.restart()
        # Polls that wait there tell nginx nothing about the node until they end.
        waiting = [
            asyncio.create_task(client.post(f"/message-bus/w{number}/poll", json={"/a": 0}))
            for number in range(16)
        ]
        while await _parked(first) + await _parked(second) < len(waiting):
            await asyncio.sleep(0.02)
        await second.stop()
        statuses += [await poll(number) for number in range(8, 24)]
        statuses += [each.status_code for each in await asyncio.gather(*waiting)]
    assert set(statuses) == {200}


async def _parked(daemon: Daemon) -> int:
    stats = await daemon.api("GET", "stats")
    return int(stats["clients"]["stream"]) + int(stats["clients"]["long_poll"])


# -- nginx


async def test_http_1_0_to_the_daemon_long_polls(place: Callable[..., Any]) -> None:
    """nginx' default, where a line of the configuration is forgotten: slower, but it works."""
    setting, [daemon] = await place()

    def configure(folder: Path, port: int, upstream: str) -> str:
        text = configuration(folder, port, upstream)
        assert text.count("proxy_http_version 1.1;") == 1
        return text.replace("proxy_http_version 1.1;", "")

    async with (
        Nginx(setting.nodes[0].public, setting.folder, configure) as program,
        await RawConnection.open(program.url) as connection,
    ):
        polling = connection.send(encode_request("POST", "/message-bus/c1/poll", body=b"/news=0"))
        while not await _parked(daemon):
            await asyncio.sleep(0.02)
        assert polling.status_line is None  # a long poll: nothing until there is news
        await daemon.publish("/news", "one")
        answer = await polling.finished()
    assert answer.header("content-type") == "application/json; charset=utf-8"
    assert b'"data":"one"' in answer.body


async def test_http_1_0_from_the_client_gets_a_stream(place: Callable[..., Any]) -> None:
    """nginx speaks 1.1 to the daemon and takes the chunks apart."""
    setting, [daemon] = await place()
    async with (
        nginx(setting) as way,
        await RawConnection.open(f"http://127.0.0.1:{way.port}") as connection,
    ):
        polling = connection.send(
            encode_request("POST", "/message-bus/c1/poll", body=b"/news=0", version="1.0")
        )
        assert await polling.until(lambda answer: answer.body == b"[]\r\n|\r\n")
        await daemon.publish("/news", "one")
        assert await polling.until(lambda answer: b'"data":"one"' in answer.body)


async def test_the_application_says_who_asks(
    place: Callable[..., Any], application: Application
) -> None:
    setting, [daemon] = await place()
    await daemon.publish("/secret", "for ada", user_ids=["ada"])
    await daemon.publish("/secret", "for staff", group_ids=["staff"])
    async with nginx_tls(setting) as way, way.client() as client:
        both = {**ADA, "Cookie": "user=ada"}
        assert await _seen(client, "/secret", headers=both) == ["for ada", "for staff"]
        [asked] = application.asked
        assert asked.method == "GET"
        assert asked.headers["Host"] == HOST
        assert not [name for name in asked.headers if name.lower().startswith("x-messagebus")]
        assert not asked.can_read_body

        banned = await client.post("/message-bus/c1/poll?dlp=t", headers={"Cookie": "banned=1"})
        assert banned.status_code == 403

        application.down = True
        later = await client.post("/message-bus/c1/poll?dlp=t", headers={"Cookie": "user=ada"})
        assert later.status_code == 429
        assert 15 <= int(later.headers["retry-after"]) <= 30


async def test_limits_of_the_site_leave_subscribers_alone(
    place: Callable[..., Any], application: Application
) -> None:
    setting, [daemon] = await place()
    async with nginx_tls(setting) as way, way.client() as client:
        async with AsyncExitStack() as stack:
            streams = []  # dropped, they would be closed
            for number in range(30):
                response, arriving = await stack.enter_async_context(
                    frames(client, {"/news": 0}, client_id=f"c{number}")
                )
                assert response.status_code == 200
                assert await anext(arriving) == []
                streams.append(arriving)
            assert await _parked(daemon) == 30
        async with asyncio.TaskGroup() as tasks:
            pages = [tasks.create_task(client.get(f"/page/{number}")) for number in range(30)]
            while not any(page.done() for page in pages):
                await asyncio.sleep(0.02)
            application.hold.set()
    statuses = [page.result().status_code for page in pages]
    assert statuses.count(200) == 20  # limit_conn
    assert statuses.count(429) == 10


@pytest.mark.parametrize("is_cloudflare", [True, False])
async def test_cloudflare_says_for_whom_it_asks(
    tmp_path: Path, certificate: Certificate, is_cloudflare: bool
) -> None:
    """And nobody else can: its networks are listed, to which this test adds its own."""
    seen: list[str] = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.headers["X-Forwarded-For"])
        return web.json_response([])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", note)
    included = tmp_path / "nginx-cloudflare.conf"
    own = "set_real_ip_from 127.0.0.1;\n" if is_cloudflare else ""
    included.write_text(adapted("nginx-cloudflare.conf", {}) + own)

    def include(text: str) -> str:
        shipped = "# include nginx-cloudflare.conf;"
        assert text.count(shipped) == 1
        return text.replace(shipped, f"include {included};")

    async with TestServer(app) as server:
        where = f"127.0.0.1:{server.port}"
        setting = Setting(tmp_path, [Node(where, where)], where, certificate)
        async with nginx_tls(setting, include) as way, way.client() as client:
            headers = {"CF-Connecting-IP": "203.0.113.9", "X-Forwarded-For": "198.51.100.1"}
            await client.post("/message-bus/c1/poll", headers=headers)
    assert set(seen) == {"203.0.113.9" if is_cloudflare else "127.0.0.1"}


# -- Caddy


async def test_caddy_asks_the_application(
    place: Callable[..., Any], application: Application
) -> None:
    """With the lines for that, which are shipped as a comment."""
    setting, [daemon] = await place()
    await daemon.publish("/secret", "for ada", user_ids=["ada"])

    def ask(text: str) -> str:
        begin, end = text.index("# forward_auth"), text.index("# Caddy sets")
        asking = text[begin:end].replace("# ", "").replace("127.0.0.1:8000", setting.application)
        return text[:begin] + asking + text[end:]

    async with caddy(setting, ask) as way, way.client(http2=True) as client:
        assert await _seen(client, "/secret", headers={"Cookie": "user=ada"}) == ["for ada"]
        assert await _seen(client, "/secret", headers=ADA) == []
        async with frames(client, {"/secret": -1}, client_id="visitor") as (_, arriving):
            await anext(arriving)
            [visitor] = (await daemon.api("GET", "clients"))["clients"]
            assert (visitor["user_id"], visitor["site_id"]) == (None, None)
