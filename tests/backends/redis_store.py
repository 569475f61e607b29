"""The Redis store under test."""

from __future__ import annotations

from messagebusd.backends.base import Backend, Retention
from messagebusd.backends.redis import RedisBackend
from messagebusd.protocol.stored import JSON, EnvelopeCodec
from messagebusd.settings.backend import RedisSettings
from tests.backends.stores import Store
from tests.support.redis_server import RedisServer


class RedisStore(Store):
    def __init__(
        self, server: RedisServer, *, codec: EnvelopeCodec = JSON, **settings: object
    ) -> None:
        super().__init__()
        self.server = server
        self.codec = codec
        self.settings = RedisSettings(**{"url": server.url, **settings})
        self.keepalive_interval = 0.0

    async def build(self, retention: Retention) -> Backend:
        self.server.flush()
        return self.backend_beside(retention)

    def backend_beside(self, retention: Retention | None = None) -> RedisBackend:
        """Another backend on the same server, with what it has."""
        return RedisBackend(
            retention or Retention(),
            self.settings,
            self.reports,
            keepalive_interval=self.keepalive_interval,
            codec=self.codec,
        )

    async def pass_time(self, seconds: float) -> None:
        """As if it had passed: what is left of every key's lifetime becomes shorter."""
        control = self.server.control
        for key in control.scan_iter():
            left = control.pttl(key)
            if left >= 0:
                # Above 0: the server itself would delete it in the next moment.
                control.pexpire(key, int(left - 1000 * seconds))
