"""What docs/deploying.md says is true as far as a machine can tell."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
import tomllib
from pathlib import Path

import httpx2
import jwt

from messagebusd.listeners import LISTEN_BACKLOG
from tests.support.hosted import HostedDaemon
from tests.support.pages import Page
from tests.support.program import Program, accepts, free_port
from tests.support.shipped import DEPLOY

PAGE = Page("docs/deploying.md", __name__)
TEXT = PAGE.text
SYSCTL = PAGE.block("sysctl")
PROCFILE = PAGE.block("Procfile")
CROSS_ORIGIN = PAGE.block("toml", "[cors]")


def test_everything_shipped_is_named() -> None:
    named = set(re.findall(r"\]\(\.\./([^)]+)\)", TEXT))
    for path in DEPLOY.rglob("*"):
        name = str(path.relative_to(DEPLOY.parent))
        if path.is_file() and path.name not in ("install-test-packages.sh", "alerts_test.yml"):
            assert any(name == each or name.startswith(f"{each}/") for each in named), name


def test_the_kernel_keeps_as_many_waiting_as_we_ask_for() -> None:
    assert f"net.core.somaxconn = {LISTEN_BACKLOG} " in SYSCTL.text


async def test_one_port_from_the_platform(tmp_path: Path) -> None:
    kind, _, command = PROCFILE.text.strip().partition(": ")
    assert kind == "web"
    port = free_port()
    env = {
        "PORT": str(port),
        "MESSAGEBUSD_API__KEY": "k" * 32,
        "MESSAGEBUSD_METRICS__ENABLED": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    program = Program(tmp_path, ["sh", "-c", f"exec {command}"], lambda: accepts(port), env=env)
    program.start()
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/message-bus/c1/poll?dlp=t", data={"/a": "0"})
            assert answer.json() == []
            assert (await client.get("/api/v1/stats")).status_code == 401
            assert (await client.get("/metrics")).status_code == 404
    finally:
        program.stop()


async def test_a_domain_of_its_own(tmp_path: Path) -> None:
    settings = tomllib.loads(CROSS_ORIGIN.text)
    secret = secrets.token_hex(32)
    settings["lookup"]["jwt"] = {"secret": secret}
    origin = settings["cors"]["allow_origins"][0]
    async with HostedDaemon(tmp_path, settings) as daemon:
        await daemon.publish("/secret", "for ada", user_ids=["ada"])
        async with httpx2.AsyncClient(base_url=daemon.url, headers={"Origin": origin}) as client:
            asked = {
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            }
            path = "/message-bus/c1/poll?dlp=t"
            preflight = await client.options(path, headers=asked)
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "Authorization" in preflight.headers["access-control-allow-headers"]
            assert preflight.headers["access-control-max-age"] == "7200"
            token = jwt.encode({"sub": "ada", "exp": time.time() + 60}, secret, "HS256")
            bearer = {"Authorization": f"Bearer {token}"}
            answer = await client.post(path, json={"/secret": 0}, headers=bearer)
            assert answer.headers["access-control-allow-origin"] == origin
            assert [each["data"] for each in answer.json()] == ["for ada"]
