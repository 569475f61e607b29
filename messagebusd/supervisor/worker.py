"""One worker: a `Server` in a process of its own, led by the supervisor.

Signals are the supervisor's business: a terminal's Ctrl-C and a service manager's SIGTERM may reach
every process, but only one of them counts. Where the supervisor is gone, a worker drains and ends
by itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from itertools import chain

import uvloop

from messagebusd.errors import MessageBusError, problems_of
from messagebusd.http.siblings import sibling_socket
from messagebusd.log import configure_logging
from messagebusd.server import Server
from messagebusd.settings import LoadedSettings
from messagebusd.supervisor.assignment import (
    ABANDON,
    ADOPT,
    ANSWER,
    BEAT,
    BEAT_SECONDS,
    COUNT,
    DRAIN,
    FAILED,
    HURRY,
    LINE_BYTES,
    PREPARE,
    READY,
    SIGNALS,
    Place,
    decode_settings,
    receive_assignment,
)

_log = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    """Be a worker, with this descriptor as the way to the supervisor. Ends the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # They were blocked when the process began, so that none came too early.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    control = socket.socket(fileno=descriptor)
    try:
        loaded, place = receive_assignment(control)
    except EOFError:
        sys.exit(1)
    # A program that a filter starts must keep neither a port nor the way to the supervisor open.
    for each in (descriptor, *chain.from_iterable(place.descriptors.values())):
        os.set_inheritable(each, False)
    _configure_logging(loaded, place)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_work(loaded, place, control)))


async def _work(loaded: LoadedSettings, place: Place, control: socket.socket) -> int:
    """Serve until the supervisor, or its end, says otherwise; the process' exit status."""
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=LINE_BYTES)
    orders = _Orders()
    tasks = [asyncio.create_task(_beat(writer)), asyncio.create_task(orders.follow(reader))]
    problems = []
    try:
        server = Server(loaded.settings, place=place, sources=loaded.sources)
        await server.start()
        writer.write(READY + b"\n")
        tasks.append(asyncio.create_task(_change(server, place, orders, writer)))
        try:
            await orders.stop.wait()
        finally:
            # Without the supervisor a new daemon may be waiting for our addresses.
            await server.drain(orders.hurry, leave=orders.is_alone)
    except (MessageBusError, OSError) as error:
        problems = problems_of(error)
        writer.write(FAILED + b" " + json.dumps(problems).encode() + b"\n")
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    if orders.is_alone:
        # Nobody else is left to say it, or to clean up.
        for problem in problems:
            _log.error("failed", extra={"reason": problem})
        _leave(place)
    return 1 if problems else 0


async def _beat(writer: asyncio.StreamWriter) -> None:
    """Let the supervisor know that the loop turns."""
    while not writer.is_closing():
        # A supervisor that is stopped for a while reads nothing: it must not be buried.
        if writer.transport.get_write_buffer_size() == 0:
            writer.write(BEAT + b"\n")
        await asyncio.sleep(BEAT_SECONDS)


async def _change(
    server: Server, place: Place, orders: _Orders, writer: asyncio.StreamWriter
) -> None:
    """Go by other settings when the supervisor says so.

    What goes wrong with that ends the worker, at once: the next one begins with the right ones.
    """
    loaded: LoadedSettings | None = None
    try:
        while True:
            word, value = await orders.changes.get()
            if word == PREPARE:
                number, loaded = decode_settings(value)
                _answer(writer, number, await _prepare(server, loaded))
            elif word == ADOPT and loaded is not None:
                server.adopt()
                _configure_logging(loaded, place)
                _answer(writer, int(value), [])
            elif word == ABANDON:
                await server.abandon()
            elif word == COUNT:
                server.metrics.config_reloaded(value.decode())
    except Exception:
        _log.exception("changing the settings failed, this worker ends")
        orders.hurry.set()
        orders.stop.set()


def _answer(writer: asyncio.StreamWriter, number: int, problems: list[str]) -> None:
    writer.write(ANSWER + b" " + json.dumps([number, problems]).encode() + b"\n")


async def _prepare(server: Server, loaded: LoadedSettings) -> list[str]:
    """Get ready for other settings; what is wrong with them."""
    try:
        await server.prepare(loaded)
    except (MessageBusError, OSError) as error:
        return problems_of(error)
    except Exception as error:
        _log.exception("preparing for other settings failed")
        return [f"they cannot be put into force: {type(error).__name__}, see the log"]
    return []


class _Orders:
    """What the supervisor wants; if it is gone, that is to stop."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        # What concerns the settings: words and what is behind them.
        self.changes: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self.is_alone = False

    async def follow(self, reader: asyncio.StreamReader) -> None:
        """Hear the supervisor, to its end."""
        with suppress(ConnectionError):
            async for line in reader:
                word, _, value = line.rstrip(b"\n").partition(b" ")
                if word not in (DRAIN, HURRY):
                    self.changes.put_nowait((word, value))
                    continue
                self.stop.set()
                if word == HURRY:
                    self.hurry.set()
        self.is_alone = True
        _log.error("the supervisor is gone, this worker ends as well")
        self.stop.set()


def _configure_logging(loaded: LoadedSettings, place: Place) -> None:
    log = loaded.settings.log
    configure_logging(log.level, log.format, worker=place.number)


def _leave(place: Place) -> None:
    """Take away what is ours of the folder that the workers share; the last one takes it all."""
    sibling_socket(place.folder, place.number).unlink(missing_ok=True)
    if not any(place.folder.glob("*.sock")):
        shutil.rmtree(place.folder, ignore_errors=True)
