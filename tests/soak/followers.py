"""Server-side subscribers: of some channels by their positions, or of all by the global id."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence

import aiohttp

from tests.soak.ledger import Ledger, Who
from tests.soak.windows import Windows


class Follower:
    """One server that follows channels, until cancelled. It sees everything, whoever it is for.

    ``url`` says whom to ask, ``headers`` carry the key. With ``follows_all`` it follows all there
    is from the global id at which it is, else these channels from its positions.
    """

    def __init__(
        self,
        ledger: Ledger,
        windows: Windows,
        counts: Counter[str],
        name: str,
        channels: Sequence[str],
        url: Callable[[], str],
        headers: dict[str, str],
        *,
        follows_all: bool,
        randomness: random.Random,
    ) -> None:
        self.reader = ledger.reader(name, Who(), dict.fromkeys(channels, 0))
        self.is_open = False
        self._ledger = ledger
        self._windows = windows
        self._counts = counts
        self._url = url
        self._headers = headers
        self._global_id: int | None = 0 if follows_all else None
        self._random = randomness

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=40)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while True:
                self._counts["subscriptions"] += 1
                try:
                    await self._follow(session)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self._windows.met("subscription broken", f"{self.reader.name}: {error!r}")
                self.is_open = False
                await asyncio.sleep(self._random.uniform(0.2, 0.6))

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        url = f"{self._url()}/api/v1/subscribe"
        if self._global_id is not None:
            asked = session.get(url, params={"last_id": self._global_id})
        else:
            asked = session.post(url, json={"channels": self.reader.positions()})
        async with asked as answer:
            if answer.status != 200:
                self._windows.met(f"subscription {answer.status}", self.reader.name)
                return
            self.is_open = True
            rest = b""
            async for piece in answer.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(None, lines):
                    document = json.loads(line)
                    if "end" in document:
                        code = document["end"]["code"]
                        self._windows.met(f"subscription ended: {code}", self.reader.name)
                        return
                    self._take(document)
            raise aiohttp.ClientPayloadError("it ended without saying so")

    def _take(self, message: dict[str, object]) -> None:
        channel, data, message_id = message["channel"], message["data"], message["message_id"]
        if channel == "/__status":
            return
        assert isinstance(channel, str)
        assert isinstance(data, dict)
        assert isinstance(message_id, int)
        if self._global_id is not None:
            global_id = message["global_id"]
            assert isinstance(global_id, int)
            self._global_id = global_id
        self._ledger.seen(channel, data["token"], message_id)
        self.reader.take(channel, message_id, data["token"])
        self._counts["received by servers"] += 1
