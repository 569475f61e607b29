"""The Python client as it is installed, and what its README shows."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import messagebus_client
from messagebus_client import AsyncPoller, InvalidWebhook, WebhookVerifier, mint_token
from tests.clients.conftest import Host
from tests.support.daemon import Daemon
from tests.support.pages import Page
from tests.support.program import find_program

FOLDER = Path(__file__).parents[2] / "clients" / "python"
README = Page("clients/python/README.md", __name__)
PROGRAMS = README.blocks("python")
ERRORS = README.block("", "MessageBusError").text
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WAIT_SECONDS = 30.0


def examples(*words: str) -> list[str]:
    """The README's programs that contain these words."""
    found = [each.text for each in PROGRAMS]
    return [each for each in found if all(word in each for word in words)]


@pytest.mark.timeout(240)
def test_the_packages_install_and_work(tmp_path: Path) -> None:
    """Built as for PyPI, and installed where nothing else is."""

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    build = "import sys; from hatchling import build; build.build_{}(sys.argv[1])"
    for kind in ("wheel", "sdist"):
        done = subprocess.run(
            [sys.executable, "-c", build.format(kind), str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=FOLDER,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "messagebus_client/py.typed" in names
    assert not [each for each in names if not each.startswith("messagebus_client")]
    with tarfile.open(sdist) as archive:
        inside = {each.partition("/")[2] for each in archive.getnames()}
    assert inside >= {"README.md", "LICENSE", "pyproject.toml", "messagebus_client/client.py"}
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    program = "import messagebus_client; print(messagebus_client.__version__)"
    assert run(python, "-I", "-c", program) == f"{messagebus_client.__version__}\n"


def test_everything_public_is_named() -> None:
    for name in messagebus_client.__all__:
        assert getattr(messagebus_client, name).__doc__, name
        assert re.search(rf"\b{name}\b", README.text), name


def test_the_tree_of_errors_is_the_real_one() -> None:
    """Each line of the drawing is a class; the deeper it stands, the more classes are above it."""
    line = re.compile(r"(?P<branch>[│├└─ ]*)(?P<name>\w+)")
    above: list[type] = []
    drawn = set()
    for each in ERRORS.splitlines():
        found = line.match(each)
        assert found is not None, each
        depth = len(found["branch"]) // 4
        error = getattr(messagebus_client, found["name"])
        assert depth == 0 or above[depth - 1] in error.__bases__, each
        above[depth:] = [error]
        drawn.add(found["name"])
    public = {name: getattr(messagebus_client, name) for name in messagebus_client.__all__}
    assert drawn == {
        name
        for name, error in public.items()
        if isinstance(error, type) and issubclass(error, messagebus_client.MessageBusError)
    }


@pytest.fixture
async def daemon(host: Host) -> Daemon:
    return await host()


async def run_example(daemon: Daemon, program: str) -> str:
    """Run a program of the README, which must end by itself; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        re.sub(r"http://127.0.0.1:80[0-9]{2}", daemon.url, program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "MESSAGEBUSD_KEY": daemon.key,
            "TOKEN_SECRET": "s" * 32,
            "WEBHOOK_SECRET": SECRET,
            "PYTHONPATH": str(FOLDER),
        },
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_examples_of_the_readme_run(daemon: Daemon) -> None:
    """One after the other, on one daemon."""
    printed = [await run_example(daemon, each) for each in examples()]
    assert printed[0] == "1\n"
    assert await daemon.api("GET", "last_id", query={"channel": "/chat/1"}) == {
        "channel": "/chat/1",
        "last_id": 2,
    }
    assert printed[2] == "/orders 1 {'number': 1}\n{'/orders': 1}\n"
    assert printed[3].startswith("It works 1 ")
    assert printed[4] == "Forum\n"
    assert printed[6].count(".") == 2


# -- what the daemon signs, and what it reads


@asynccontextmanager
async def application(handle: Any) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/lookup", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/lookup"))


@pytest.mark.parametrize("secret", [SECRET, "a-secret-of-plain-text"])
async def test_the_daemons_webhooks_are_verified(host: Host, secret: str) -> None:
    verified: list[bool] = []

    async def lookup(request: web.Request) -> web.Response:
        body = await request.read()
        verifier = WebhookVerifier("an older one", secret)
        try:
            verifier.verify(body, request.headers)
        except InvalidWebhook:
            verified.append(False)
        else:
            verified.append(True)
        with pytest.raises(InvalidWebhook):
            verifier.verify(body + b" ", request.headers)
        return web.json_response({"user_id": 42})

    async with application(lookup) as url:
        webhook = {"url": url, "secret": secret}
        daemon = await host({"lookup": {"mode": "webhook", "webhook": webhook}})
        await daemon.publish("/a", "for 42", user_ids=[42])
        seen = asyncio.Event()
        async with AsyncPoller(daemon.url) as poller:
            poller.subscribe("/a", lambda *call: seen.set(), 0)
            async with asyncio.timeout(WAIT_SECONDS):
                await seen.wait()
    assert verified == [True]


async def test_the_daemon_reads_tokens_of_both_clients(host: Host) -> None:
    secret, audience = "s" * 32, "messagebusd"
    daemon = await host(
        {"lookup": {"mode": "jwt", "jwt": {"secret": secret, "audience": audience}}}
    )
    program = (
        "require 'messagebusd/client'; print Messagebusd.mint_token('s' * 32, 42, expires_in: 60,"
        " group_ids: ['staff'], site_id: 'forum', channels: ['/a*'], audience: 'messagebusd')"
    )
    of_ruby = await asyncio.to_thread(
        subprocess.check_output,
        [find_program("ruby", "ruby"), "-I", FOLDER.parent / "ruby" / "lib", "-e", program],
        text=True,
        timeout=WAIT_SECONDS,
    )
    of_python = mint_token(
        secret,
        42,
        expires_in=60,
        group_ids=["staff"],
        site_id="forum",
        channels=["/a*"],
        audience=audience,
    )
    for channel, audience_of_message in (
        ("/a", {"user_ids": [42]}),
        ("/a", {"user_ids": ["42"]}),
        ("/b", {"user_ids": [42]}),
        ("/a", {"group_ids": ["staff"]}),
    ):
        await daemon.publish(channel, audience_of_message, site_id="forum", **audience_of_message)
    for token in (of_python, of_ruby):
        seen = await seen_with(token, daemon.url)
        assert seen == [{"user_ids": [42]}, {"group_ids": ["staff"]}]


async def seen_with(token: str, url: str) -> list[Any]:
    """The first two messages that this token lets see."""
    received: asyncio.Queue[Any] = asyncio.Queue()
    async with AsyncPoller(url, headers={"Authorization": f"Bearer {token}"}) as poller:
        for channel in ("/b", "/a"):
            poller.subscribe(channel, lambda data, *_: received.put_nowait(data), 0)
        async with asyncio.timeout(WAIT_SECONDS):
            return [await received.get() for _ in range(2)]
