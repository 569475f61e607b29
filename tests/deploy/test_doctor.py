"""`messagebusd doctor --public-url` through real proxies: good ones, and each thing that hurts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from messagebusd.doctor import examine, public
from messagebusd.doctor.report import Finding, Level
from messagebusd.settings import load_settings
from tests.browser.proxies import buffering_proxy
from tests.deploy.proxies import Certificate, Node, Setting, nginx_tls
from tests.support import nginx as shipped
from tests.support.hosted import HostedDaemon
from tests.support.nginx import Nginx
from tests.support.program import free_port

INTERVAL = 2.0
# What tests of plain HTTP on this machine always have.
USUAL = {"process.files", "memory.snapshot", "public.http_version"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held back is known to be sooner; still longer than anything takes that is not."""
    monkeypatch.setattr(public, "HELD_BACK_SECONDS", 1.5)
    monkeypatch.setattr(public, "END_SECONDS", 3.0)


@asynccontextmanager
async def running(folder: Path, **config: Any) -> AsyncIterator[HostedDaemon]:
    config = {
        "poll": {"long_polling_interval": INTERVAL},
        **config,
        "server": {
            "listen": f"127.0.0.1:{free_port()}",
            "internal_listen": f"127.0.0.1:{free_port()}",
            "trusted_proxies": ["127.0.0.1"],
            **config.get("server", {}),
        },
    }
    config["server"] = {name: each for name, each in config["server"].items() if each is not None}
    async with HostedDaemon(folder, config) as daemon:
        yield daemon


async def diagnose(daemon: HostedDaemon, url: str, **options: Any) -> dict[str, Finding]:
    settings = load_settings(daemon.folder / "bus.toml", {}, {}).settings
    report = await examine(settings, public_url=url, key=daemon.key, **options)
    found = {each.check: each for each in report.findings}
    assert len(found) == len(report.findings)
    assert all(each.advice for each in report.findings if each.level is not Level.OK)
    return found


def bad(found: dict[str, Finding]) -> set[str]:
    return {each.check for each in found.values() if each.level is not Level.OK} - USUAL


Change = Callable[[str], str]


def replacing(*pairs: tuple[str, str]) -> Change:
    """A change for the worse of the shipped configuration."""

    def change(text: str) -> str:
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return text

    return change


@asynccontextmanager
async def proxied(
    daemon: HostedDaemon, folder: Path, change: Change = lambda text: text
) -> AsyncIterator[str]:
    def configure(directory: Path, port: int, upstream: str) -> str:
        return change(shipped.configuration(directory, port, upstream))

    os.makedirs(folder, exist_ok=True)
    async with Nginx(daemon.url.removeprefix("http://"), folder, configure) as proxy:
        yield proxy.url


async def test_the_shipped_configuration_has_nothing_wrong(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, proxied(daemon, tmp_path / "nginx") as url:
        found = await diagnose(daemon, url)
        assert bad(found) == set(), found
        assert {each for each in found if each.startswith("public.")} == {
            *("public.reachable", "public.upstream_version", "public.http_version"),
            *("public.first_frame", "public.messages", "public.compression", "public.timeout"),
            *("public.host", "public.address", "public.scheme", "public.credentials"),
            *("public.identity", "public.cors", "public.internal"),
        }
        assert found["public.messages"].found.startswith("each of 3 came by itself")
        assert "anonymous" in found["public.identity"].found


BAD: dict[str, tuple[Change, dict[str, str]]] = {
    "gzip": (
        replacing(
            ("gzip off;", "gzip on; gzip_proxied any; gzip_types text/plain; gzip_min_length 0;")
        ),
        {"public.compression": "compressed (gzip)"},
    ),
    "a short timeout": (
        replacing(("proxy_read_timeout 60s;", "proxy_read_timeout 1s;")),
        {"public.timeout": "is cut after 1."},
    ),
    "HTTP/1.0": (
        replacing(
            ("proxy_http_version 1.1;", "proxy_http_version 1.0;"),
        ),
        {"public.upstream_version": "HTTP/1.0", "public.first_frame": "application/json"},
    ),
    "no Host": (
        replacing(("proxy_set_header Host $host;", "")),
        {"public.host": "the daemon is told the host messagebusd"},
    ),
    "no address": (
        replacing(("X-Forwarded-For $proxy_add_x_forwarded_for", 'X-Forwarded-For ""')),
        {"public.address": "does not arrive"},
    ),
    "any address": (
        replacing(("X-Forwarded-For $proxy_add_x_forwarded_for", "X-Real-Ip $remote_addr")),
        {"public.address": "that a visitor wrote"},
    ),
    "any scheme": (
        replacing(("proxy_set_header X-Forwarded-Proto $scheme;", "")),
        {"public.scheme": "does not say http"},
    ),
    "no cookies": (
        replacing(
            ("proxy_set_header Forwarded", 'proxy_set_header Cookie "";\nproxy_set_header F')
        ),
        {"public.credentials": "Cookie of a visitor"},
    ),
    "its own preflights": (
        replacing(
            (
                "proxy_buffering off;",
                "proxy_buffering off; if ($request_method = OPTIONS) { return 204; }",
            )
        ),
        {"public.cors": "OPTIONS is answered 204"},
    ),
    "a wrong place": (
        replacing(("location /message-bus/ {", "location /message_bus/ {")),
        {"public.reachable": "is answered 404, and did not arrive"},
    ),
    "a redirect": (
        replacing(
            ("location /message-bus/ {", "location /message-bus/ { return 301 https://$host; ")
        ),
        {"public.reachable": "is redirected (301)"},
    ),
    "nobody behind it": (
        replacing(("server 127.0.0.1:", "server 127.0.0.1:1; #")),
        {"public.reachable": "does not reach its upstream (502)"},
    ),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_hurts_is_named(tmp_path: Path, name: str) -> None:
    change, expected = BAD[name]
    async with running(tmp_path) as daemon, proxied(daemon, tmp_path / "nginx", change) as url:
        found = await diagnose(daemon, url)
        allowed = set(expected)
        assert bad(found) <= allowed, found
        for check, words in expected.items():
            if words:
                assert check in bad(found), found
                assert words in found[check].found


async def test_a_cdn_in_front_that_buffers(tmp_path: Path) -> None:
    # nginx itself passes on what comes in chunks, whatever proxy_buffering says.
    async with (
        running(tmp_path) as daemon,
        proxied(daemon, tmp_path / "nginx") as behind,
        buffering_proxy(behind) as url,
    ):
        found = await diagnose(daemon, url)
        assert bad(found) == {"public.first_frame"}
        assert "held back" in found["public.first_frame"].found
        assert "proxy_buffering off" in found["public.first_frame"].advice


async def test_everything_on_one_address_for_the_world(tmp_path: Path) -> None:
    change = replacing(
        ("location / {\n            return 404;", "location / {\n proxy_pass http://messagebusd;")
    )
    async with (
        running(tmp_path, server={"internal_listen": None}) as daemon,
        proxied(daemon, tmp_path / "nginx", change) as url,
    ):
        found = await diagnose(daemon, url)
        assert bad(found) == {"public.internal"}
        for path in ("/metrics", "/api/v1/openapi.json", "/admin/"):
            assert path in found["public.internal"].found


async def test_a_proxy_that_is_not_trusted(tmp_path: Path) -> None:
    async with (
        running(tmp_path, server={"trusted_proxies": []}) as daemon,
        proxied(daemon, tmp_path / "nginx") as url,
    ):
        found = await diagnose(daemon, url)
        assert bad(found) == {"public.address"}
        assert found["public.address"].advice == 'server.trusted_proxies = ["127.0.0.1"]'


async def test_visitors_who_say_themselves_who_they_are(tmp_path: Path) -> None:
    change = replacing(('proxy_set_header X-MessageBus-User "";', ""))
    async with (
        running(tmp_path, lookup={"mode": "headers"}) as daemon,
        proxied(daemon, tmp_path / "nginx", change) as url,
    ):
        found = await diagnose(daemon, url)
        assert bad(found) == {"public.identity"}
        assert "taken for whomever he names" in found["public.identity"].found


async def test_rules_and_origins_of_the_daemon(tmp_path: Path) -> None:
    change = replacing(
        (
            "proxy_buffering off;",
            "proxy_buffering off; proxy_hide_header Access-Control-Allow-Origin;",
        )
    )
    async with (
        running(
            tmp_path,
            channels=[{"pattern": "*", "subscribe": "authenticated"}],
            cors={"allow_origins": ["https://forum.example"]},
        ) as daemon,
        proxied(daemon, tmp_path / "nginx", change) as url,
    ):
        found = await diagnose(daemon, url)
        assert bad(found) == {"public.messages", "public.cors"}
        assert "channel rules" in found["public.messages"].found
        assert "is not allowed" in found["public.cors"].found


async def test_tls_and_a_daemon_that_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate.make(tmp_path)
    async with running(tmp_path, lookup={"mode": "headers"}) as daemon:
        place = tmp_path / "nginx"
        os.makedirs(place)
        address = daemon.url.removeprefix("http://")
        setting = Setting(place, [Node(address, "")], f"127.0.0.1:{free_port()}", certificate)
        async with nginx_tls(setting) as way:
            url = f"https://localhost:{way.port}"
            found = await diagnose(daemon, url)
            assert "certificate is not valid" in found["public.reachable"].found
    assert [each for each in found if each.startswith("public.")] == ["public.reachable"]


async def test_without_a_key_less_is_known(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, proxied(daemon, tmp_path / "nginx") as url:
        settings = load_settings(daemon.folder / "bus.toml", {}, {}).settings
        report = await examine(settings, public_url=url, key="wrong")
        found = {each.check: each for each in report.findings}
        assert "public.daemon" in bad(found)
        assert "public.first_frame" in found
        assert "public.address" not in found
        assert bad(found) == {"public.daemon"}


async def test_a_key_that_may_not_publish(tmp_path: Path) -> None:
    keys = [{"name": "watcher", "token": "watching", "scopes": ["admin"]}]
    async with running(tmp_path, api={"keys": keys}) as daemon:
        async with proxied(daemon, tmp_path / "nginx") as url:
            settings = load_settings(daemon.folder / "bus.toml", {}, {}).settings
            report = await examine(settings, public_url=url, key="watching")
        found = {each.check: each for each in report.findings}
        assert bad(found) == {"public.daemon"}
        assert "the scopes publish and admin" in found["public.daemon"].found
        assert found["public.address"].level is Level.OK
        assert "public.messages" not in found


async def test_the_command(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon, proxied(daemon, tmp_path / "nginx") as url:
        headers = tmp_path / "headers"
        headers.write_text("Cookie: user=ada\n")
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(sys.executable, "-m", "messagebusd", "doctor", "--json"),
                *("--config", str(daemon.folder / "bus.toml"), "--public-url", url),
                *("--headers-file", str(headers)),
            ],
            env={"MESSAGEBUSD_KEY": daemon.key, "PATH": ""},
            capture_output=True,
            text=True,
            timeout=40,
        )
        levels = {each["check"]: each["level"] for each in json.loads(done.stdout)["checks"]}
        assert levels["public.messages"] == "ok", done.stdout
        assert daemon.key not in done.stdout + done.stderr
        assert "ada" not in done.stdout + done.stderr
        assert done.returncode == 0
