"""Caches that several processes share, as the Ruby gem's DistributedCache does, with which they
interoperate: each process has all values in memory, and changes travel over the bus.

::

    with Client(url, key) as bus, DistributedCaches(bus) as caches:
        titles = caches["titles"]
        titles["forum"] = "Forum"        # published, then set here
        titles.get("forum")              # a look into this process' memory

They begin empty, and lose their values when operations may have been missed, so that whoever misses
one computes it anew. A change is not seen by others in the same moment, nor while their stream is
interrupted. Values are JSON. What Ruby stores as a Hash, Array or Set is marshalled, and never read
here: such a key is forgotten. Ruby reads everything that is set here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from messagebus_client._cache import CHANNEL, NOBODY, CacheState, Key, setting
from messagebus_client.async_client import AsyncClient, AsyncSubscription
from messagebus_client.client import Client, Subscription
from messagebus_client.errors import MessageBusError
from messagebus_client.types import Data, Interrupted, Message, Notice

_MISSING = object()
_DEAF = "caches are empty from here on: nothing can be heard of the others any more"

_log = logging.getLogger("messagebus_client")


class _View:
    """What both kinds of cache have in common: looking into this process' memory."""

    def __init__(self, state: CacheState) -> None:
        self._state = state

    def get(self, key: Key, default: Data = None) -> Data:
        return self._state.get(key, default)

    def __getitem__(self, key: Key) -> Data:
        value = self._state.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key: Key) -> bool:
        return self._state.get(key, _MISSING) is not _MISSING

    def snapshot(self) -> dict[Key, Data]:
        """All that it holds at this moment."""
        return self._state.snapshot()


class DistributedCache(_View):
    """One cache, see `DistributedCaches`. Values must not be changed, but set anew.

    Changes raise MessageBusError when they could not be published: then nothing changes here
    either, or only later, if the daemon took it and its answer got lost.
    """

    def __init__(self, caches: DistributedCaches, state: CacheState) -> None:
        super().__init__(state)
        self._caches = caches

    def __setitem__(self, key: Key, value: Data) -> None:
        self._caches._publish(self._state, setting(key, value))

    def delete(self, key: Key) -> None:
        """Forget a key everywhere, whether it is known here or not."""
        self._caches._publish(self._state, {"op": "delete", "key": key})

    def clear(self) -> None:
        """Forget all keys everywhere."""
        self._caches._publish(self._state, {"op": "clear"})


class DistributedCaches:
    """The caches of this process, by name (Ruby's ``key``), kept current by one subscription.

    ``site_id`` is the site whose caches they are, as of Ruby's processes in a multisite
    installation. Operations of processes with another ``app_version`` are left alone. The client's
    key needs the scopes ``publish`` and ``read``.
    """

    def __init__(
        self, client: Client, *, site_id: str | None = None, app_version: str | None = None
    ) -> None:
        self._client = client
        self._states = _States(site_id, app_version)
        self._subscription: Subscription | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Begin to listen, in a thread. Raises MessageBusError if the daemon cannot be asked."""
        self._states.last_id = self._client.last_id(CHANNEL, site_id=self._states.site_id)
        self._subscription = self._client.subscribe(
            {CHANNEL: self._states.last_id},
            site_id=self._states.site_id,
            on_notice=self._states.notice,
        )
        self._thread = threading.Thread(
            target=self._listen, args=(self._subscription,), name="messagebus-caches", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more: all caches are empty from here on."""
        if self._subscription is not None and self._thread is not None:
            self._subscription.close()
            self._thread.join()
        self._states.close()

    def __getitem__(self, name: str) -> DistributedCache:
        return DistributedCache(self, self._states.state(name))

    def _listen(self, subscription: Subscription) -> None:
        try:
            for message in subscription:
                self._states.take(message)
        except MessageBusError:
            _log.exception(_DEAF)
        finally:
            self._states.close()

    def _publish(self, state: CacheState, operation: Mapping[str, Any]) -> None:
        data = state.begin(operation)
        try:
            published = self._client.publish(
                CHANNEL, data, site_id=self._states.site_id, user_ids=NOBODY
            )
        except BaseException:
            state.failed()
            raise
        state.published(operation, published.message_id)


class AsyncDistributedCache(_View):
    """`DistributedCache` for asyncio: looking is immediate, changes are awaited."""

    def __init__(self, caches: AsyncDistributedCaches, state: CacheState) -> None:
        super().__init__(state)
        self._caches = caches

    async def set(self, key: Key, value: Data) -> None:
        """Set a value everywhere."""
        await self._caches._publish(self._state, setting(key, value))

    async def delete(self, key: Key) -> None:
        """Forget a key everywhere, whether it is known here or not."""
        await self._caches._publish(self._state, {"op": "delete", "key": key})

    async def clear(self) -> None:
        """Forget all keys everywhere."""
        await self._caches._publish(self._state, {"op": "clear"})


class AsyncDistributedCaches:
    """`DistributedCaches` for asyncio."""

    def __init__(
        self, client: AsyncClient, *, site_id: str | None = None, app_version: str | None = None
    ) -> None:
        self._client = client
        self._states = _States(site_id, app_version)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Begin to listen, in a task. Raises MessageBusError if the daemon cannot be asked."""
        self._states.last_id = await self._client.last_id(CHANNEL, site_id=self._states.site_id)
        subscription = self._client.subscribe(
            {CHANNEL: self._states.last_id},
            site_id=self._states.site_id,
            on_notice=self._states.notice,
        )
        self._task = asyncio.get_running_loop().create_task(self._listen(subscription))

    async def close(self) -> None:
        """Listen no more: all caches are empty from here on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._states.close()

    def __getitem__(self, name: str) -> AsyncDistributedCache:
        return AsyncDistributedCache(self, self._states.state(name))

    async def _listen(self, subscription: AsyncSubscription) -> None:
        try:
            async with subscription:
                async for message in subscription:
                    self._states.take(message)
        except MessageBusError:
            _log.exception(_DEAF)
        finally:
            self._states.close()

    async def _publish(self, state: CacheState, operation: Mapping[str, Any]) -> None:
        data = state.begin(operation)
        try:
            published = await self._client.publish(
                CHANNEL, data, site_id=self._states.site_id, user_ids=NOBODY
            )
        except BaseException:
            state.failed()
            raise
        state.published(operation, published.message_id)


class _States:
    """All caches of a process, as one subscription feeds them."""

    def __init__(self, site_id: str | None, app_version: str | None) -> None:
        self.site_id = site_id
        self._app_version = app_version
        self._lock = threading.Lock()
        self._by_name: dict[str, CacheState] = {}
        self._is_open = True
        # The last operation, and whether the stream has been interrupted since.
        self.last_id = 0
        self._is_in_doubt = False

    def state(self, name: str) -> CacheState:
        with self._lock:
            if name not in self._by_name:
                self._by_name[name] = state = CacheState(name, self._app_version)
                if not self._is_open:
                    state.close()
            return self._by_name[name]

    def take(self, message: Message) -> None:
        # With PostgreSQL all channels share their ids, and no gap can be seen: there might be one.
        shares_ids = message.message_id == message.global_id
        if self._is_in_doubt and shares_ids and message.message_id != self.last_id + 1:
            self._forget()
        self._is_in_doubt = False
        self.last_id = message.message_id
        for each in self._all():
            each.take(message)

    def notice(self, notice: Notice) -> None:
        if isinstance(notice, Interrupted):
            self._is_in_doubt = True
        else:
            self._forget()

    def _forget(self) -> None:
        for each in self._all():
            each.forget()

    def close(self) -> None:
        self._is_open = False
        for each in self._all():
            each.close()

    def _all(self) -> list[CacheState]:
        with self._lock:
            return list(self._by_name.values())
