"""Where the daemon and Ruby meet."""

from __future__ import annotations

from typing import Any, Protocol

from tests.support.postgres_server import PostgresServer
from tests.support.redis_server import RedisServer

# Ruby announces by the number of its database: 0 would not show whether the names agree.
REDIS_DATABASE = 3


class StorePlace(Protocol):
    """A store, as the daemon's settings and the gem's options name it."""

    kind: str
    backend: dict[str, Any]
    ruby_options: dict[str, Any]
    largest: int
    """Bytes of data that Ruby can announce."""


class RedisPlace:
    kind = "redis"
    largest = 500_000

    def __init__(self, server: RedisServer) -> None:
        url = server.url.removesuffix("/0")
        self.backend = {
            "kind": "redis",
            "keepalive_interval": 0.5,
            "redis": {"url": f"{url}/{REDIS_DATABASE}"},
        }
        self.ruby_options = {"host": "127.0.0.1", "port": server.port, "db": REDIS_DATABASE}


class PostgresPlace:
    kind = "postgres"
    largest = 7_000

    def __init__(self, server: PostgresServer, database: str) -> None:
        self.backend = {
            "kind": "postgres",
            "keepalive_interval": 0.5,
            "postgres": {"url": server.url(database)},
        }
        self.ruby_options = {
            "host": "127.0.0.1",
            "port": server.port,
            "user": "postgres",
            "dbname": database,
        }
