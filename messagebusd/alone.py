"""One process that serves by itself, and what signals mean to it.

SIGTERM and SIGINT: stop gracefully, and a second one at once. SIGHUP: read the settings again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop

from messagebusd.errors import MessageBusError, problems_of
from messagebusd.listeners import announce
from messagebusd.log import configure_logging
from messagebusd.notify import Notifier
from messagebusd.reloading import Load, Reloader
from messagebusd.server import Extend, Server
from messagebusd.settings import LoadedSettings, Settings


def run(loaded: LoadedSettings, load: Load | None = None, extend: Extend | None = None) -> int:
    """Serve until a signal; the process' exit status. ``load`` reads the settings again."""
    settings = loaded.settings
    configure_logging(settings.log.level, settings.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
        try:
            return loop_runner.run(_serve(loaded, load, extend))
        except (MessageBusError, OSError) as error:
            for problem in problems_of(error):
                print(f"error: {problem}", file=sys.stderr)
    return 1


def without_sources(settings: Settings) -> LoadedSettings:
    """Settings that were written down nowhere."""
    return LoadedSettings(settings, {}, ())


async def _serve(loaded: LoadedSettings, load: Load | None, extend: Extend | None) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    notifier = Notifier.from_environment(os.environ)
    server = Server(loaded.settings, extend, sources=loaded.sources)

    async def apply(changed: LoadedSettings) -> None:
        await server.prepare(changed)
        server.adopt()
        configure_logging(changed.settings.log.level, changed.settings.log.format)

    reloader = None
    if load is not None:
        # What is asked for during the start is done after it.
        reloader = Reloader(loaded, load, apply, server.metrics.config_reloaded, notifier)
        reloader.listen()
    try:
        await server.start()
    except OSError:
        await server.lookup.close()  # or its connections complain, after the reason was told
        raise
    announce(loaded.settings, server.addresses, server.made_key)
    notifier.ready()
    watching = asyncio.create_task(notifier.keep_alive())
    reloading = None if reloader is None else asyncio.create_task(reloader.run())
    try:
        await stop.wait()
    finally:
        notifier.stopping()
        if reloading is not None:
            await _end(reloading)
        await server.drain(hurry)
        await _end(watching)
        notifier.close()
    return 0


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
