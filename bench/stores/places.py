"""The stores that are measured: servers of our own, and the settings that lead to them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import Peer, daemon
from messagebusd.settings import BackendSettings
from tests.support.daemon import to_toml
from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

# On a busy machine an answer may take longer than a site would want to wait.
TIMEOUT_SECONDS = 10.0
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@dataclass(frozen=True, slots=True)
class Place:
    """A store on its server. ``url`` is ours, ``gem_url`` another database for the gem's way."""

    name: str
    kind: str
    pid: int | None = None
    url: str = ""
    gem_url: str = ""
    port: int = 0

    def config(self, url: str = "") -> dict[str, Any]:
        if self.kind == "memory":
            return {"kind": "memory"}
        return {"kind": self.kind, self.kind: {"url": url or self.url, "timeout": TIMEOUT_SECONDS}}

    def settings(self, url: str = "") -> BackendSettings:
        return BackendSettings.model_validate(self.config(url))

    def peer(self, workers: int = 1) -> Peer:
        """The daemon on this store."""
        return daemon(to_toml({"backend": self.config()}), workers)

    def through(self, port: int) -> str:
        """The URL with another port of this machine."""
        return self.url.replace(f":{self.port}/", f":{port}/")


@contextmanager
def places() -> Iterator[list[Place]]:
    """Start the servers, on the cores that this process may use now; end them."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(_folder(stack)))
        quick = stack.enter_context(PostgresServer(_folder(stack)))
        durable = stack.enter_context(PostgresServer(_folder(stack), _DURABLE))
        yield [
            Place("memory", "memory"),
            # Database 1 is the gem's: keys of its own, and a pub/sub channel nobody listens to.
            Place("Redis", "redis", redis.pid, redis.url, redis.url[:-1] + "1", redis.port),
            _postgres("PostgreSQL, fsync off", quick),
            _postgres("PostgreSQL, fsync on", durable),
        ]


def versions() -> Mapping[str, str]:
    """Of the servers, for the head of the report."""
    found = (_first_line("redis-server", "--version"), _first_line("psql", "--version"))
    return {"servers": "; ".join(found)}


def _folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="messagebusd-bench-")))


def _postgres(name: str, server: PostgresServer) -> Place:
    ours, gems = (server.url(server.create_database()) for _ in range(2))
    return Place(name, "postgres", server.pid, ours, gems, server.port)


def _first_line(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return " ".join(done.stdout.splitlines()[0].split()[:3])
