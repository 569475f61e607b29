"""The browser client, as the daemon serves it."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import aiohttp.test_utils
import aiohttp.web
import pytest

from messagebusd.http.scripts import FOLDER, NAMES, ClientScripts
from tests.support.hosted import HostedDaemon

PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    config = {"server": {"base_route": "/sub"}, "cors": {"allow_origins": ["https://a.example"]}}
    async with HostedDaemon(tmp_path, config) as daemon:
        yield daemon


@pytest.fixture
async def session(daemon: HostedDaemon) -> AsyncIterator[aiohttp.ClientSession]:
    url = f"{daemon.url}/sub/message-bus/"
    async with aiohttp.ClientSession(url, auto_decompress=False) as session:
        yield session


@pytest.mark.parametrize("name", NAMES)
async def test_a_script(session: aiohttp.ClientSession, name: str) -> None:
    content = (FOLDER / name).read_bytes()
    async with session.get(name, headers=PLAIN) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert answer.headers["Cache-Control"] == "public, max-age=600"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert await answer.read() == content
        tag = answer.headers["ETag"]
    async with session.head(name, headers=PLAIN) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(content))
        assert await answer.read() == b""
    async with session.get(name, headers={"Accept-Encoding": "br;q=0.9, gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(await answer.read()) == content
        assert answer.headers["ETag"] != tag


@pytest.mark.parametrize(
    ("known", "status"),
    [("{tag}", 304), ('"other", {tag}', 304), ("W/{tag}", 304), ("*", 304), ('"other"', 200)],
)
async def test_a_page_that_has_it(session: aiohttp.ClientSession, known: str, status: int) -> None:
    async with session.get("client.js", headers=PLAIN) as answer:
        tag = answer.headers["ETag"]
    headers = {**PLAIN, "If-None-Match": known.format(tag=tag)}
    async with session.get("client.js", headers=headers) as answer:
        assert answer.status == status
        assert answer.headers["ETag"] == tag
        assert (await answer.read() == b"") == (status == 304)


async def test_a_client_of_that_name_may_poll(session: aiohttp.ClientSession) -> None:
    for path in ("client.js", "client.js/poll", "worker.js/poll"):
        async with session.post(f"{path}?dlp=t", data={"/foo": "-1"}) as answer:
            assert answer.status == 200
            assert b'"/foo":0' in await answer.read()
    async with session.options("client.js", headers={"Origin": "https://a.example"}) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
    async with session.get("client.js/poll") as answer:
        assert answer.status == 405


async def test_an_installation_without_it(tmp_path: Path) -> None:
    app = aiohttp.web.Application()
    ClientScripts("/message-bus/", tmp_path).add_to(app)
    async with (
        aiohttp.test_utils.TestClient(aiohttp.test_utils.TestServer(app)) as client,
        client.get("/message-bus/client.js") as answer,
    ):
        assert answer.status == 404
        assert answer.content_type == "application/problem+json"
        problem = await answer.json()
        assert problem["code"] == "not_found"
        assert "make clients" in problem["detail"]


async def test_a_node_that_only_publishes_has_none(tmp_path: Path) -> None:
    async with (
        HostedDaemon(tmp_path, {"poll": {"enabled": False}}) as daemon,
        aiohttp.ClientSession() as session,
        session.get(f"{daemon.url}/message-bus/client.js") as answer,
    ):
        assert answer.status == 404
