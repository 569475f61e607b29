"""Publishers: one message, a batch, one that waits for the store, and everything sent twice.

Each message is published under an idempotency key until it is accepted, by whichever daemon.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from tests.soak.ledger import EVERYBODY, Audience, Ledger
from tests.soak.windows import Windows
from tests.support.daemon import Daemon

PADDING = (0, 0, 0, 0, 50, 200, 1000, 4000)
# So large are all messages of the channel of large ones, so that slow readers fall behind; and so
# many of them are kept: all of a minute, and not so much that a read of them takes the store long.
LARGE = 80_000
KEPT_LARGE = 40


def accepted_by(pid: int) -> str:
    """Under which name the messages are counted that a process said it had published."""
    return f"accepted by {pid}"


def unknown_at(pid: int) -> str:
    """And those of which it is not known whether it did."""
    return f"unknown at {pid}"


class Publisher:
    """Publishes to its channels, one request after the other, until told to stop.

    ``large`` is the one of large messages. ``kinds`` are those of its requests, as often as they
    stand there; ``pause`` is how long it waits between two of them on average; ``users``,
    ``groups`` and ``clients`` are whom it may pick for an audience. Requests go to any of
    ``daemons()``.
    """

    def __init__(
        self,
        ledger: Ledger,
        windows: Windows,
        counts: Counter[str],
        name: str,
        channels: Sequence[str],
        large: str,
        daemons: Callable[[], Sequence[Daemon]],
        headers: dict[str, str],
        *,
        kinds: Sequence[str],
        pause: float,
        users: int,
        groups: int,
        clients: Sequence[str],
        randomness: random.Random,
    ) -> None:
        self._ledger = ledger
        self._windows = windows
        self._counts = counts
        self._name = name
        self._channels = channels
        self._large = large
        self._daemons = daemons
        self._headers = headers
        self._kinds = kinds
        self._pause = pause
        self._users = users
        self._groups = groups
        self._clients = clients
        self._random = randomness
        self._numbers = itertools.count(1)
        self._is_stopping = asyncio.Event()

    def stop(self) -> None:
        """End after what is under way."""
        self._is_stopping.set()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=6)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            while not self._is_stopping.is_set():
                match self._random.choice(self._kinds):
                    case "batch":
                        await self._batch(session)
                    case kind:
                        await self._single(session, is_queued=kind == "queued")
                try:
                    async with asyncio.timeout(self._pause * self._random.uniform(0.5, 1.5)):
                        await self._is_stopping.wait()
                except TimeoutError:
                    pass

    def _message(self, kind: str) -> tuple[str, str, Audience, dict[str, Any]]:
        """Channel, token, audience, and the body to send."""
        channel = self._random.choice(self._channels)
        token = f"{kind}-{self._name}-{next(self._numbers)}"
        audience = self._audience()
        padding = LARGE if channel == self._large else self._random.choice(PADDING)
        data = {"token": token, "padding": "x" * padding}
        self._ledger.begin(channel, token, audience)
        body: dict[str, Any] = {"channel": channel, "data": data, **audience.fields()}
        if channel == self._large:
            body["max_backlog_size"] = KEPT_LARGE
        return channel, token, audience, body

    def _audience(self) -> Audience:
        pick = self._random
        match pick.randrange(8):
            case 0:
                return Audience(user_ids=(pick.randrange(self._users),))
            case 1:
                return Audience(group_ids=(pick.randrange(self._groups),))
            case 2:
                return Audience(
                    user_ids=(pick.randrange(self._users),),
                    group_ids=(pick.randrange(self._groups),),
                )
            case 3:
                return Audience(client_ids=(pick.choice(self._clients),))
            case _:
                return EVERYBODY

    async def _single(self, session: aiohttp.ClientSession, *, is_queued: bool) -> None:
        channel, token, _, body = self._message("queued" if is_queued else "single")
        if is_queued:
            body["queue_in_memory"] = True
        status, answer = await self._insist(session, "publish", token, body)
        self._counts["messages queued" if status == 202 else "messages published"] += 1
        if status == 202:
            return  # it has no id yet: a follower will see it
        # A follower may have seen it before its publisher was answered.
        if self._ledger.is_open(channel, token):
            self._ledger.store(channel, token, answer["message_id"])
        # While the store is away, the answer to one that may wait would be another one.
        if not is_queued and self._random.random() < 0.15:
            again, repeated = await self._insist(session, "publish", token, body)
            self._counts["publishes repeated"] += 1
            if again != 200 or repeated != answer:
                self._ledger.wrong("repeated", f"{token}: {answer}, then {again} {repeated}")

    async def _batch(self, session: aiohttp.ClientSession) -> None:
        made = [self._message("batch") for _ in range(self._random.randrange(2, 8))]
        body = {"messages": [each[3] for each in made]}
        _, answer = await self._insist(session, "publish/batch", made[0][1], body)
        self._counts["batches"] += 1
        for (channel, token, _, _), result in zip(made, answer["results"], strict=True):
            self._counts["messages published"] += 1
            self._ledger.store(channel, token, result["message_id"])

    async def _insist(
        self, session: aiohttp.ClientSession, call: str, token: str, body: dict[str, Any]
    ) -> tuple[int, Any]:
        """Send it until it is accepted as a whole; status and answer."""
        messages = len(body.get("messages", (0,)))
        is_in_part = False
        while True:
            daemon = self._random.choice(self._daemons())
            pid = daemon.pid
            try:
                async with session.post(
                    f"{daemon.internal_url}/api/v1/{call}",
                    json=body,
                    headers={"Idempotency-Key": token},
                ) as response:
                    answer = await response.json()
                    status = response.status
                    if status in (200, 202) and not _is_partial(answer):
                        if is_in_part:
                            self._counts[unknown_at(pid)] += messages
                        elif "Idempotent-Replayed" not in response.headers:
                            self._counts[accepted_by(pid)] += messages
                        return status, answer
                    if status == 200:
                        is_in_part = True
                        self._counts[unknown_at(pid)] += messages
                    self._windows.met(f"publish {503 if status == 200 else status}", token)
            except aiohttp.ClientConnectorError:
                self._windows.met("publish not connected", token)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._counts[unknown_at(pid)] += messages
                self._windows.met("publish unanswered", f"{token}: {error!r}")
            await asyncio.sleep(self._random.uniform(0.1, 0.3))


def _is_partial(answer: Any) -> bool:
    """Whether a batch was interrupted: what failed may be sent again."""
    return "results" in answer and any(
        result.get("error", {}).get("code") == "store_unavailable" for result in answer["results"]
    )
