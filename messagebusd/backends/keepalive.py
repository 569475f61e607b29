"""A message to ourselves, now and then, which proves that announcements come back.

A subscription can die without a word: the connection stands, and nothing comes any more. Ruby
processes send such messages too, on the same channel; everybody ignores the others'.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec

from messagebusd.errors import StoreUnavailable
from messagebusd.protocol.channels import KEEPALIVE_CHANNEL
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.publication import Publication

# An echo that is not older proves as much as a new one, in seconds.
FRESH_SECONDS = 10.0
# Nobody reads them: a few are kept, for whoever looks into the store.
KEEP_MESSAGES = 10
KEEP_SECONDS = 3600

_log = logging.getLogger(__name__)


class Keepalive:
    """See the module's docstring.

    ``publish`` is the store's. A message goes out every ``interval`` seconds (0: only to prove
    something); its echo must come within ``timeout``. ``clock`` is monotonic.
    """

    def __init__(
        self,
        publish: Callable[[Publication], Awaitable[object]],
        *,
        interval: float,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publish = publish
        self._interval = interval
        self._timeout = timeout
        self._clock = clock
        self._data = msgspec.json.encode(f"messagebusd-{secrets.token_hex(8)}")
        self._publication = Publication(
            KEEPALIVE_CHANNEL,
            self._data,
            audience=Audience(user_ids=[-1]),
            max_backlog_size=KEEP_MESSAGES,
            max_backlog_age=KEEP_SECONDS,
        )
        self._heard_at: float | None = None
        self._heard = asyncio.Event()
        self._proof: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._on_silence: Callable[[], None] = lambda: None

    def start(self, on_silence: Callable[[], None]) -> None:
        """Begin; ``on_silence`` is called when an echo stays away: subscribe anew."""
        self._on_silence = on_silence
        if self._interval:
            self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Send nothing more."""
        tasks = [each for each in (self._beating, self._proof) if each is not None]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def saw(self, message: Message) -> None:
        """To be told of every message that is announced on the keepalive channel."""
        if message.data == self._data:
            self._heard_at = self._clock()
            self._heard.set()

    async def prove(self) -> None:
        """Return if announcements come back, or did just now. Raises StoreUnavailable."""
        if self._heard_at is not None and self._clock() - self._heard_at < FRESH_SECONDS:
            return
        if self._proof is None:
            self._proof = asyncio.create_task(self._call())
            self._proof.add_done_callback(self._on_proof)
        # One message serves all who ask meanwhile, and does not depend on any of them.
        await asyncio.shield(self._proof)

    def _on_proof(self, proof: asyncio.Task[None]) -> None:
        self._proof = None
        if not proof.cancelled():
            proof.exception()  # whoever asked has it; perhaps nobody waits any more

    async def _call(self) -> None:
        """Publish one, and wait for its echo."""
        self._heard.clear()
        await self._publish(self._publication)
        try:
            async with asyncio.timeout(self._timeout):
                await self._heard.wait()
        except TimeoutError:
            self._on_silence()
            raise StoreUnavailable("announcements do not come back") from None

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval * random.uniform(0.9, 1.0))
            try:
                await self._call()
            except StoreUnavailable:
                continue  # the store says so wherever it matters; here it is only the pulse
            except Exception:
                _log.exception("a keepalive failed")
