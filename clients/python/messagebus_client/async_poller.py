"""Receive messages as a page does: polls of the public listener, with callbacks.

For programs that are visitors: they see what their user may see. Servers that may see everything
use `Client.subscribe`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from messagebus_client import _schedule
from messagebus_client._http import base_url, default_headers, timeouts, translated
from messagebus_client._poller import (
    FIRST_CHUNK_SECONDS,
    Callback,
    Poll,
    PollerOptions,
    PollerState,
    PollerStats,
    PollerStatus,
    Settings,
)
from messagebus_client._positions import FROM_NOW
from messagebus_client._schedule import Answered, Changed, Outcome, next_poll
from messagebus_client.errors import MessageBusError, UnexpectedAnswer

# A poll that waits is silent until its deadline, 25 seconds by default.
_SILENCE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
_MAX_BYTES = 64 * 1024 * 1024

_log = logging.getLogger("messagebus_client")


class AsyncPoller:
    """Polls a bus in a task of its own and calls back in the event loop.

    ``url`` is where ``/message-bus/`` is found. The options are those of the Ruby gem's
    ``HTTPClient``; times are in seconds:

    * ``enable_long_polling``: wait at the server for news, else ask every
      ``background_callback_interval`` (60)
    * ``enable_chunked_encoding``: take messages as a stream. Where something on the way holds
      streams back, long polls take their place for a while
    * ``min_poll_interval`` (0.1) and ``max_poll_interval`` (180): bounds of the time between polls,
      which grows when they fail
    * ``callback_interval`` (15): polls that bring nothing start so far apart, if they end sooner
    * ``headers``: sent with every poll, or a function that makes them, for tokens that expire; one
      that raises is asked again later

    ``ssl_context`` is for servers with certificates of their own authority.
    """

    def __init__(
        self,
        url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        **options: Unpack[PollerOptions],
    ) -> None:
        self._url = base_url(url)
        self._state: PollerState[Callback] = PollerState(Settings(**options))
        self._ssl_context = ssl_context
        self._task: asyncio.Task[None] | None = None
        # Set when something else has to be asked for; the scope of what waits meanwhile.
        self._has_changed = False
        self._waiting: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def status(self) -> PollerStatus:
        """Whether it polls."""
        is_started = self._task is not None and not self._task.done()
        return PollerStatus.STARTED if is_started else PollerStatus.STOPPED

    @property
    def stats(self) -> PollerStats:
        """Numbers since it was made."""
        return self._state.stats

    @property
    def channels(self) -> Mapping[str, int]:
        """The channels that are subscribed to, and how far each is."""
        return self._state.channels

    @property
    def client_id(self) -> str:
        """What the daemon knows this client by, as in ``client_ids`` of a publication."""
        return self._state.client_id

    def subscribe(
        self,
        channel: str,
        callback: Callback,
        last_message_id: int = FROM_NOW,
    ) -> None:
        """Call ``callback`` with data, message id and global id of each message.

        From ``last_message_id`` on: -1 from now on, -2 with the last message, -3 with the last
        two, ``n`` with what came after that id. Several callbacks of a channel each get what they
        asked for. One that returns an awaitable is awaited before the next message is delivered;
        what it raises is logged, and the poller goes on.
        """
        self._state.subscribe(channel, callback, last_message_id)
        self._change()

    def unsubscribe(self, channel: str, callback: Callback | None = None) -> None:
        """Forget a callback, or all of a channel."""
        if self._state.unsubscribe(channel, callback):
            self._change()

    def start(self) -> None:
        """Begin to poll, as soon as there is a channel; nothing happens if it polls already."""
        if self.status is PollerStatus.STOPPED:
            self._task = asyncio.get_running_loop().create_task(self.run())

    async def stop(self) -> None:
        """End polling. Positions are kept: `start` continues where it was."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        if task is not asyncio.current_task():
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def run(self) -> None:
        """Poll until this is cancelled: for those who own the task themselves."""
        loop = asyncio.get_running_loop()
        async with httpx2.AsyncClient(
            headers=default_headers(None),
            timeout=timeouts(_CONNECT_SECONDS, read=_SILENCE_SECONDS),
            verify=True if self._ssl_context is None else self._ssl_context,
        ) as client:
            outcome: Outcome = Changed()
            sent_at = float("-inf")
            while True:
                if not self._state.has_channels():
                    await self._rest(None)
                    continue
                if await self._pause(outcome, sent_at) and self._state.has_channels():
                    sent_at = loop.time()
                    outcome = await self._poll(client)

    async def _pause(self, outcome: Outcome, sent_at: float) -> bool:
        """Wait until the next poll is due. False if nobody is left who wants one."""
        loop = asyncio.get_running_loop()
        intervals = self._state.settings.intervals
        due = loop.time() + next_poll(
            outcome,
            intervals,
            long_polling=self._state.settings.enable_long_polling,
            elapsed=loop.time() - sent_at,
            random=random.random(),
        )
        while not await self._rest(due - loop.time()):
            # Changes are asked for at once, unless the server or its failures say to wait.
            if isinstance(outcome, Changed | Answered):
                due = sent_at + intervals.minimum
            if not self._state.has_channels():
                return False
        return True

    async def _poll(self, client: httpx2.AsyncClient) -> Outcome:
        loop = asyncio.get_running_loop()
        try:
            poll = self._state.poll()
        except Exception:
            _log.exception("the headers of a poll could not be made")
            return self._state.failed()
        first_chunk_at = loop.time() + FIRST_CHUNK_SECONDS if poll.streams else None
        try:
            with translated():
                async with self._answer(client, poll, first_chunk_at) as answer:
                    if answer is None:
                        return Changed()
                    return await self._take(answer, poll, first_chunk_at)
        except MessageBusError as error:
            outcome = self._state.failed()
            _log.warning("poll of %s failed: %s", self._url, error)
            return outcome

    @asynccontextmanager
    async def _answer(
        self, client: httpx2.AsyncClient, poll: Poll[Any], until: float | None
    ) -> AsyncIterator[httpx2.Response | None]:
        """The answer's head, or None if the poll was given up."""
        request = client.build_request(
            "POST", self._url + poll.path, content=poll.body, headers=dict(poll.headers)
        )
        answer = await self._unless_changed(client.send(request, stream=True), until)
        try:
            yield answer
        finally:
            if answer is not None:
                await answer.aclose()

    async def _take(
        self, answer: httpx2.Response, poll: Poll[Any], first_chunk_at: float | None
    ) -> Outcome:
        if answer.status_code != 200:
            retry_after = _schedule.retry_after_seconds(answer.headers.get("retry-after"))
            _log.warning("poll of %s refused: %d", self._url, answer.status_code)
            return self._state.refused(answer.status_code, retry_after)
        splitter = poll.answer(answer.headers.get("content-type", ""))
        body = bytearray()
        until = first_chunk_at if splitter is not None else None
        async with aclosing(answer.aiter_bytes()) as parts:
            while True:
                part = await self._unless_changed(anext(parts, b""), until)
                if part is None:
                    return Changed()
                if not part:
                    break
                if splitter is None:
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise UnexpectedAnswer(f"an answer of more than {_MAX_BYTES} bytes")
                    continue
                for frame in splitter.feed(part):
                    until = None
                    await self._deliver(poll, frame)
        if splitter is None:
            await self._deliver(poll, bytes(body))
        outcome = self._state.succeeded(got_data=poll.got_data and splitter is None)
        return Changed() if poll.is_urgent else outcome

    async def _deliver(self, poll: Poll[Any], array: bytes) -> None:
        deliveries = poll.take(array)
        self._state.heard()
        for each in deliveries:
            try:
                returned = each.callback(each.data, each.message_id, each.global_id)
                if inspect.isawaitable(returned):
                    await returned
            except Exception:
                _log.exception("a callback failed")

    def _change(self) -> None:
        self._has_changed = True
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def _unless_changed(self, waiting: Awaitable[Any], until: float | None) -> Any:
        """Wait for it. None if the poll is to be given up: for a change, or after ``until``."""
        try:
            async with asyncio.timeout_at(until) as self._waiting:
                if self._has_changed:
                    self._change()
                return await waiting
        except TimeoutError:
            if not self._has_changed:
                _log.warning("something holds streams of %s back: long polls instead", self._url)
                self._state.give_streaming_up()
            return None
        finally:
            self._waiting = None

    async def _rest(self, seconds: float | None) -> bool:
        """Wait so long, or for a change; returns whether there was none."""
        if not self._has_changed:
            try:
                async with asyncio.timeout(seconds) as self._waiting:
                    await asyncio.get_running_loop().create_future()
            except TimeoutError:
                pass
            finally:
                self._waiting = None
        has_changed, self._has_changed = self._has_changed, False
        return not has_changed
