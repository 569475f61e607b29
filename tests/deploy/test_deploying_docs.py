"""What docs/deploying.md says is true as far as a machine can tell."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import time
import tomllib
from pathlib import Path

import httpx
import jwt
import pytest

from messagebusd.listeners import LISTEN_BACKLOG
from messagebusd.metrics import Metrics
from messagebusd.settings import Settings, load_settings
from messagebusd.settings.keys import keys_of
from tests.support.hosted import HostedDaemon
from tests.support.program import Program, accepts, free_port
from tests.support.shipped import DEPLOY

PAGE = DEPLOY.parent / "docs" / "deploying.md"
TEXT = PAGE.read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert len(links) > 10
    for link in links:
        assert (PAGE.parent / link).exists(), link


def test_everything_shipped_is_named() -> None:
    named = set(re.findall(r"\]\(\.\./([^)]+)\)", TEXT))
    for path in DEPLOY.rglob("*"):
        name = str(path.relative_to(DEPLOY.parent))
        if path.is_file() and path.name not in ("install-test-packages.sh", "alerts_test.yml"):
            assert any(name == each or name.startswith(f"{each}/") for each in named), name


@pytest.mark.parametrize("block", _blocks("toml"))
def test_settings_are_settings(tmp_path: Path, block: str) -> None:
    path = tmp_path / "bus.toml"
    secret = tmp_path / "jwt.secret"
    secret.write_text(secrets.token_hex(32))
    path.write_text(block.replace("/etc/messagebusd/jwt.secret", str(secret)))
    load_settings(path, {}, {})


def test_keys_and_metrics_that_are_mentioned_exist() -> None:
    known = {".".join(key.path) for key in keys_of(Settings)}
    sections = "|".join({name.partition(".")[0] for name in known if "." in name})
    mentioned = set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)", TEXT))
    assert len(mentioned) > 8
    assert mentioned <= known, mentioned - known
    variables = set(re.findall(r"MESSAGEBUSD_(\w+)", TEXT))
    assert {name.lower().replace("__", ".") for name in variables} <= known

    told = Metrics().render().decode()
    metrics = set(re.findall(r"`(messagebusd_\w+)", TEXT))
    assert len(metrics) > 1
    for name in metrics:
        assert f"# TYPE {name} " in told, name


def test_the_kernel_keeps_as_many_waiting_as_we_ask_for() -> None:
    assert f"net.core.somaxconn = {LISTEN_BACKLOG} " in TEXT


async def test_one_port_from_the_platform(tmp_path: Path) -> None:
    [line] = _blocks("Procfile")
    kind, _, command = line.strip().partition(": ")
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
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.post("/message-bus/c1/poll?dlp=t", data={"/a": "0"})
            assert answer.json() == []
            assert (await client.get("/api/v1/stats")).status_code == 401
            assert (await client.get("/metrics")).status_code == 404
    finally:
        program.stop()


async def test_the_probe_shows_a_stream(tmp_path: Path) -> None:
    """Its first line at once, its last one at the deadline."""
    [command] = [each for each in _blocks("sh") if each.startswith("curl")]
    async with HostedDaemon(tmp_path, {"poll": {"long_polling_interval": 0.5}}) as daemon:
        command = command.replace("https://forum.example", daemon.url)
        process = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
        shown, _ = await process.communicate()
    assert process.returncode == 0
    assert shown.count(b"\r\n|\r\n") >= 2


async def test_a_domain_of_its_own(tmp_path: Path) -> None:
    [block] = [each for each in _blocks("toml") if "[cors]" in each]
    settings = tomllib.loads(block)
    secret = secrets.token_hex(32)
    settings["lookup"]["jwt"] = {"secret": secret}
    origin = settings["cors"]["allow_origins"][0]
    async with HostedDaemon(tmp_path, settings) as daemon:
        await daemon.publish("/secret", "for ada", user_ids=["ada"])
        async with httpx.AsyncClient(base_url=daemon.url, headers={"Origin": origin}) as client:
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
