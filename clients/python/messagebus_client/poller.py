"""`AsyncPoller` in a thread of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack

from messagebus_client._poller import Callback, PollerOptions, PollerStats, PollerStatus
from messagebus_client._positions import FROM_NOW
from messagebus_client.async_poller import AsyncPoller


class Poller:
    """Polls a bus in a thread of its own: callbacks are called there, one after the other.

    See `AsyncPoller` for the options. Methods may be called from any thread, also from callbacks.
    """

    def __init__(
        self,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        **options: Unpack[PollerOptions],
    ) -> None:
        self._poller = AsyncPoller(url, ssl_context=ssl_context, **options)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def status(self) -> PollerStatus:
        """Whether it polls."""
        task = self._task
        return PollerStatus.STOPPED if task is None or task.done() else PollerStatus.STARTED

    @property
    def stats(self) -> PollerStats:
        """Numbers since it was made."""
        return self._poller.stats

    @property
    def channels(self) -> Mapping[str, int]:
        """The channels that are subscribed to, and how far each is."""
        return self._poller.channels

    @property
    def client_id(self) -> str:
        """What the daemon knows this client by."""
        return self._poller.client_id

    def subscribe(self, channel: str, callback: Callback, last_message_id: int = FROM_NOW) -> None:
        """See `AsyncPoller.subscribe`; the callback is a plain function."""
        self._poller._state.subscribe(channel, callback, last_message_id)
        self._tell()

    def unsubscribe(self, channel: str, callback: Callback | None = None) -> None:
        """Forget a callback, or all of a channel."""
        if self._poller._state.unsubscribe(channel, callback):
            self._tell()

    def start(self) -> None:
        """Begin to poll, as soon as there is a channel; nothing happens if it polls already."""
        with self._lock:
            if self.status is PollerStatus.STARTED:
                return
            self._loop = loop = asyncio.new_event_loop()
            self._task = task = loop.create_task(self._poller.run())
            self._thread = threading.Thread(
                target=_run, args=(loop, task, self._thread), name="messagebus-poller", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End polling, and wait for it, unless a callback asks. `start` continues where it was."""
        with self._lock:
            loop, task, thread = self._loop, self._task, self._thread
            self._loop = self._task = None
        if loop is None or task is None or thread is None:
            return
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        if thread is not threading.current_thread():
            thread.join()

    def _tell(self) -> None:
        """Have the poller see a change."""
        with self._lock:
            if self._loop is None:
                self._poller._has_changed = True
            else:
                with suppress(RuntimeError):  # it has ended by itself
                    self._loop.call_soon_threadsafe(self._poller._change)


def _run(
    loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], before: threading.Thread | None
) -> None:
    """The thread of a poller, after the one ``before`` it, which a callback may have stopped."""
    if before is not None:
        before.join()
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
