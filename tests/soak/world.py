"""The servers of a soak: a store behind a proxy that misbehaves, daemons, and nginx before them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.faults.world import World, postgres_world, redis_world
from tests.support.daemon import Daemon
from tests.support.nginx import Nginx

STORES = ("redis", "postgres", "memory")
READY_SECONDS = 30.0


class Installation:
    """A store with its daemons. The first of them is restarted often, the last one seldom: what it
    takes can be watched for hours.

    ``world`` is the store, None where it is in the daemon's own memory.
    """

    def __init__(
        self, kind: str, daemons: Sequence[Daemon], nginx: Nginx, world: World | None, secret: str
    ) -> None:
        self.kind = kind
        self.daemons = daemons
        self.nginx = nginx
        self.world = world
        self.secret = secret
        self._serving = set(daemons)

    @property
    def headers(self) -> dict[str, str]:
        """What opens the API, of every daemon."""
        return {"Authorization": f"Bearer {self.daemons[0].key}"}

    @property
    def public(self) -> tuple[str, int]:
        """Where browsers go: nginx."""
        return "127.0.0.1", self.nginx.port

    def direct(self, index: int) -> tuple[str, int]:
        """Where those go whom nginx would hide something of."""
        address = urlsplit(self.daemons[index % len(self.daemons)].url)
        assert address.hostname is not None
        assert address.port is not None
        return address.hostname, address.port

    def serving(self) -> Sequence[Daemon]:
        """Whom publishers ask: the daemons that serve; all of them if none does."""
        return [each for each in self.daemons if each in self._serving] or self.daemons

    def announce(self, daemon: Daemon, *, serves: bool) -> None:
        """Have publishers go elsewhere, as a load balancer does by ``/readyz``, or come back."""
        (self._serving.add if serves else self._serving.discard)(daemon)


def _config(key: str, secret: str, interval: float, backend: dict[str, Any]) -> dict[str, Any]:
    return {
        "server": {
            "trusted_proxies": ["127.0.0.1"],
            "shutdown_timeout": 10.0,
            "internal_listen": "127.0.0.1:0",
        },
        # A small buffer, so that the slow are slow with what a soak sends.
        "poll": {
            "long_polling_interval": interval,
            "max_client_buffer": 16384,
            "max_active_clients": 2000,
        },
        "lookup": {"mode": "jwt", "jwt": {"secret": secret}},
        # Full soon: until then a store in memory grows.
        "backend": {"max_backlog_size": 100, "max_global_backlog_size": 3000, **backend},
        "api": {"keys": [{"name": "soak", "token": key, "scopes": ["publish", "read", "admin"]}]},
    }


@asynccontextmanager
async def installation(kind: str, folder: Path, interval: float) -> AsyncIterator[Installation]:
    """An installation of this kind of store (`STORES`), running in a folder of its own below this
    one. ``interval`` is that of the polls, in seconds."""
    async with AsyncExitStack() as stack:
        (folder / kind).mkdir()
        folder = folder / kind
        world: World | None = None
        if kind == "memory":
            backend: dict[str, Any] = {
                "kind": "memory",
                "memory": {"snapshot_file": str(folder / "snapshot")},
            }
        else:
            making = redis_world(folder) if kind == "redis" else postgres_world()
            world = await stack.enter_async_context(making)
            backend = world.backend
        key, secret = secrets.token_urlsafe(24), secrets.token_urlsafe(40)
        daemons = []
        for number in range(1 if world is None else 2):
            place = folder / f"daemon-{number}"
            place.mkdir()
            daemons.append(Daemon(place, _config(key, secret, interval, backend)))
            # Their own keys are of no use here: one that holds at all of them is.
            daemons[-1].key = key
        await asyncio.gather(*map(stack.enter_async_context, daemons))
        front = folder / "nginx"
        front.mkdir()
        addresses = (urlsplit(each.url).netloc for each in daemons)
        upstream = " ".join(addresses)
        nginx = await stack.enter_async_context(Nginx(upstream, front))
        yield Installation(kind, daemons, nginx, world, secret)
