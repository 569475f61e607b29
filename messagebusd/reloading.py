"""Read the settings again while the daemon runs, all or nothing (SPEC 8)."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from threading import Thread
from typing import Literal

from messagebusd.errors import MessageBusError, problems_of
from messagebusd.notify import Notifier
from messagebusd.settings import LoadedSettings, merge

# Reads the settings from where they were read at start. Raises ConfigurationError.
Load = Callable[[], LoadedSettings]
Outcome = Literal["done", "refused"]

_log = logging.getLogger(__name__)


class Reloader:
    """Reads the settings whenever it is asked to, one time after the other.

    ``running`` are those in effect. ``apply`` puts others into effect; where it raises
    MessageBusError or OSError nothing has changed. ``count`` is told how it went.
    """

    def __init__(
        self,
        running: LoadedSettings,
        load: Load,
        apply: Callable[[LoadedSettings], Awaitable[None]],
        count: Callable[[Outcome], None],
        notifier: Notifier,
    ) -> None:
        self.running = running
        self._load = load
        self._apply = apply
        self._count = count
        self._notifier = notifier
        self._asked = asyncio.Event()

    def listen(self) -> None:
        """Be asked by SIGHUP from now on; by those, too, that came while it was blocked."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def ask(self) -> None:
        """Have the settings read; asking more than once meanwhile is asking once."""
        self._asked.set()

    async def run(self) -> None:
        """Do what is asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._notifier.reloading()
            try:
                outcome = await self.reload()
            finally:
                self._notifier.ready()
            self._count(outcome)

    async def reload(self) -> Outcome:
        """Read the settings once; say what came of it."""
        try:
            read = await self._read()
            reload = merge(self.running, read)
            await self._apply(reload.loaded)
        except (MessageBusError, OSError) as error:
            _refuse(problems_of(error))
            return "refused"
        except Exception:
            _log.exception("reading the settings again failed")
            _refuse([])
            return "refused"
        self.running = reload.loaded
        for warning in read.warnings:
            _log.warning(warning)
        _log.info("settings reloaded", extra={"changed": ", ".join(reload.changed) or "nothing"})
        if reload.left:
            _log.warning(
                "these settings stay as they were until a restart",
                extra={"keys": ", ".join(reload.left)},
            )
        return "done"

    async def _read(self) -> LoadedSettings:
        """Files may be slow to read: meanwhile the loop turns, and where they are never read, a
        thread that nobody waits for is left behind, and the daemon can end."""
        found: Future[LoadedSettings] = Future()

        def read() -> None:
            found.set_running_or_notify_cancel()
            try:
                found.set_result(self._load())
            except BaseException as error:
                found.set_exception(error)

        Thread(target=read, name="settings", daemon=True).start()
        return await asyncio.wrap_future(found)


def _refuse(problems: list[str]) -> None:
    for problem in problems:
        _log.error("the settings cannot be used", extra={"problem": problem})
    _log.error("settings not reloaded, those of before stay in force")
