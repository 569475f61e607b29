"""The shipped proxies, each as its own program in front of daemons and an application."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.nginx import Nginx, configuration, places, servers
from tests.support.program import Program, accepts, find_program, free_port
from tests.support.shipped import adapted

HOST = "forum.example"


@dataclass(frozen=True)
class Certificate:
    """For `HOST`, signed by itself; ``both`` is certificate and key in one file."""

    certificate: Path
    key: Path
    both: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        made = cls(folder / "site.pem", folder / "site.key", folder / "both.pem")
        subprocess.run(
            [
                *(find_program("openssl", "openssl"), "req", "-x509", "-newkey", "ec"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
                *("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"),
                *("-keyout", str(made.key), "-out", str(made.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        made.both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
        return made


@dataclass(frozen=True)
class Node:
    """Where a daemon listens, as "host:port"."""

    public: str
    internal: str


@dataclass(frozen=True)
class Setting:
    """What a proxy stands in front of."""

    folder: Path
    nodes: Sequence[Node]
    application: str
    certificate: Certificate


@dataclass(frozen=True)
class Way:
    """How clients get in."""

    port: int
    tls: Certificate | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}"

    @asynccontextmanager
    async def client(self, *, http2: bool = False) -> AsyncIterator[httpx.AsyncClient]:
        """A client that takes `HOST` for this machine, and believes its certificate."""
        context = ssl.create_default_context(cafile=self.tls.certificate) if self.tls else True
        transport = _ToThisMachine(verify=context, http1=not http2, http2=http2)
        async with httpx.AsyncClient(transport=transport, base_url=self.url, timeout=10) as client:
            yield client


class _ToThisMachine(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = HOST
        request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


@asynccontextmanager
async def nginx(setting: Setting) -> AsyncIterator[Way]:
    upstream = " ".join(node.public for node in setting.nodes)
    async with Nginx(upstream, setting.folder, configuration) as program:
        yield Way(program.port)


@asynccontextmanager
async def nginx_compose(setting: Setting) -> AsyncIterator[Way]:
    """Without what only a newer nginx can: names that are looked up again."""
    first, second = [*setting.nodes, setting.nodes[0]][:2]

    def configure(folder: Path, port: int, upstream: str) -> str:
        writing = places(folder)
        writing["user nginx;"] = writing.pop("user www-data;")
        return adapted(
            "compose/nginx.conf",
            {
                **writing,
                "resolver 127.0.0.11 valid=2s;": "",
                "server bus1:8090 resolve max_fails=0;": servers(first.public),
                "server bus2:8090 resolve max_fails=0;": servers(second.public),
                "listen 80;": f"listen 127.0.0.1:{port};",
            },
        )

    async with Nginx("", setting.folder, configure) as program:
        yield Way(program.port)


@asynccontextmanager
async def nginx_tls(
    setting: Setting, change: Callable[[str], str] = lambda text: text
) -> AsyncIterator[Way]:
    """``change`` gets the configuration as the test's nginx is about to read it."""

    def configure(folder: Path, port: int, upstream: str) -> str:
        text = adapted(
            "nginx-tls.conf",
            {
                **places(folder),
                "server 127.0.0.1:8090 max_fails=0;": servers(upstream),
                "server 127.0.0.1:8000;": f"server {setting.application};",
                "listen 443 ssl http2; ": f"listen 127.0.0.1:{port} ssl http2; ",
                "/etc/ssl/site.pem": str(setting.certificate.certificate),
                "/etc/ssl/private/site.key": str(setting.certificate.key),
            },
        )
        return change(text)

    upstream = " ".join(node.public for node in setting.nodes)
    async with Nginx(upstream, setting.folder, configure) as program:
        yield Way(program.port, setting.certificate)


@contextmanager
def _running(
    setting: Setting, name: str, text: str, port: int, arguments: Callable[[Path], Sequence[str]]
) -> Iterator[Way]:
    path = setting.folder / name
    path.write_text(text)
    env = {"HOME": str(setting.folder), "XDG_DATA_HOME": str(setting.folder)}
    program = Program(setting.folder, arguments(path), lambda: accepts(port), env=env)
    program.start()
    try:
        yield Way(port, setting.certificate)
    finally:
        program.kill()  # their own ends wait for idle connections


@asynccontextmanager
async def haproxy(setting: Setting) -> AsyncIterator[Way]:
    """With one node, its second place is taken by nobody."""
    port = free_port()
    spare = Node(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    first, second = [*setting.nodes, spare][:2]
    text = adapted(
        "haproxy.cfg",
        {
            "maxconn 40000 ": "maxconn 2000 ",  # it takes its descriptors at start
            "bind :443 ": f"bind 127.0.0.1:{port} ",
            "/etc/haproxy/site.pem": str(setting.certificate.both),
            "bus1 127.0.0.1:8090 check port 8091": _checked("bus1", first),
            "bus2 127.0.0.1:8092 check port 8093": _checked("bus2", second),
        },
    )
    program = find_program("haproxy", "haproxy")
    with _running(setting, "haproxy.cfg", text, port, lambda path: [program, "-f", str(path)]) as w:
        yield w


def _checked(name: str, node: Node) -> str:
    return f"{name} {node.public} check port {node.internal.rpartition(':')[2]}"


@asynccontextmanager
async def caddy(
    setting: Setting, change: Callable[[str], str] = lambda text: text
) -> AsyncIterator[Way]:
    port = free_port()
    text = adapted(
        "Caddyfile",
        {
            "admin off ": f"admin off\n\tauto_https disable_redirects\n\thttp_port {free_port()} ",
            "forum.example {": f"https://{HOST}:{port} {{",
            "/etc/ssl/site.pem /etc/ssl/private/site.key": (
                f"{setting.certificate.certificate} {setting.certificate.key}"
            ),
            "health_port 8091 ": f"health_port {setting.nodes[0].internal.rpartition(':')[2]} ",
            "reverse_proxy 127.0.0.1:8090 ": (
                f"reverse_proxy {' '.join(node.public for node in setting.nodes)} "
            ),
        },
    )
    program = find_program("caddy", "caddy")
    with _running(
        setting,
        "Caddyfile",
        change(text),
        port,
        lambda path: [program, "run", "--adapter", "caddyfile", "--config", str(path)],
    ) as way:
        yield way


@asynccontextmanager
async def frames(
    client: httpx.AsyncClient, positions: dict[str, int], *, client_id: str = "c1"
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[list[Any]]]]:
    """A stream of a poll, frame by frame as they arrive."""
    async with client.stream("POST", f"/message-bus/{client_id}/poll", json=positions) as response:
        yield response, _split(response)


async def _split(response: httpx.Response) -> AsyncIterator[list[Any]]:
    received = ""
    async for piece in response.aiter_text():
        received += piece
        while (end := received.find("\r\n|\r\n")) >= 0:
            yield json.loads(received[:end])
            received = received[end + 5 :]
