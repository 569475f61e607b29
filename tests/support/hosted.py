"""The daemon in the tests' own process: hundreds of them start in the time of a few."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from messagebusd.backends.postgres import PostgresBackend
from messagebusd.notify import Notifier
from messagebusd.reloading import Reloader
from messagebusd.server import Server
from messagebusd.settings import LoadedSettings, load_settings
from tests.support.daemon import STOP_SECONDS, Config, Daemon


class HostedDaemon(Daemon):
    """A `Daemon` without a process: everything of it but command line, signals and uvloop.

    ``log`` has the errors that were logged while it ran, its own or those of its neighbours.
    """

    _server: Server | None = None

    async def start(self, within: float = 0) -> None:
        path = self.configure()
        self._errors = _Errors()
        logging.getLogger("messagebusd").addHandler(self._errors)
        loaded = load_settings(path, self._env, {})
        self._server = server = Server(loaded.settings, sources=loaded.sources)
        await server.start()
        self.addresses = dict(server.addresses)

        async def apply(changed: LoadedSettings) -> None:
            await server.prepare(changed)
            server.adopt()

        self._reloader = Reloader(
            loaded,
            lambda: load_settings(path, self._env, {}),
            apply,
            server.metrics.config_reloaded,
            Notifier(),
        )

    async def reload(self, config: Config) -> bool:
        self.configure(config)
        return await self._reloader.reload() == "done"

    async def stop(self, within: float = STOP_SECONDS) -> int:
        server, self._server = self._server, None
        if server is not None:
            async with asyncio.timeout(within):
                await server.drain(asyncio.Event())
            logging.getLogger("messagebusd").removeHandler(self._errors)
        return 0

    async def settle(self) -> None:
        """Have the store done with what may follow a publish a moment later."""
        assert self._server is not None
        if isinstance(self._server.backend, PostgresBackend):
            await self._server.backend.trim()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self.stop()

    @property
    def running(self) -> bool:
        return self._server is not None

    @property
    def log(self) -> list[dict[str, Any]]:
        return self._errors.records


class _Errors(logging.Handler):
    """Keeps errors, in the form of the JSON log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append({"level": record.levelname.lower(), "message": record.getMessage()})
