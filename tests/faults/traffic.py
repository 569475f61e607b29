"""Publishers and subscribers under faults, and who should have got what.

A `Publisher` publishes 1, 2, 3, … on its channel and sends each number with its idempotency key
until the daemon has accepted it. A `Subscriber` polls as message-bus.js does: it keeps the position
of each channel, takes what comes, and comes back when a poll ends, breaks or is refused.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

CHUNK_END = b"\r\n"
SEPARATOR = b"\r\n|\r\n"


class Publisher:
    """Publishes numbers in order; ``numbers`` are those that were accepted.

    Every fourth is for user 1 only, every fifth for group 7: the others must not get them.
    """

    def __init__(self, urls: Sequence[str], key: str, channel: str, pause: float) -> None:
        self.channel = channel
        self.numbers: list[int] = []
        self.refusals: list[int] = []
        self.problem = ""
        self._urls = urls
        self._key = key
        self._pause = pause
        self._is_stopping = False
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self._is_idle = asyncio.Event()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            number = 0
            while not self._is_stopping:
                self._is_idle.set()
                await self._may_go_on.wait()
                self._is_idle.clear()
                number += 1
                await self._publish(session, number)
                self.numbers.append(number)
                await asyncio.sleep(self._pause * random.uniform(0.5, 1.5))
            self._is_idle.set()

    async def _publish(self, session: aiohttp.ClientSession, number: int) -> None:
        body = {"channel": self.channel, "data": {"n": number}, **audience_of(number)}
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Idempotency-Key": f"{self.channel}-{number}",
        }
        while True:
            url = random.choice(self._urls)
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.post(
                    f"{url}/api/v1/publish", json=body, headers=headers
                ) as answer:
                    if answer.status == 200:
                        return
                    if answer.status != 503:
                        self.problem = f"{answer.status}: {await answer.text()}"
                    self.refusals.append(number)
            await asyncio.sleep(random.uniform(0.05, 0.15))

    async def pause(self) -> None:
        """Hold on, with nothing on its way."""
        self._may_go_on.clear()
        await self._is_idle.wait()

    def resume(self) -> None:
        self._may_go_on.set()

    def stop(self) -> None:
        self._is_stopping = True
        self.resume()


def audience_of(number: int) -> dict[str, list[int]]:
    """Whom a number is for."""
    if number % 4 == 0:
        return {"user_ids": [1]}
    if number % 5 == 0:
        return {"group_ids": [7]}
    return {}


class Subscriber:
    """One client: ``got`` are the numbers of each channel as they came."""

    def __init__(
        self, urls: Sequence[str], client_id: str, channels: Sequence[str], user: int, group: int
    ) -> None:
        self.client_id = client_id
        self.user = user
        self.group = group
        self.positions = dict.fromkeys(channels, 0)
        self.got: dict[str, list[int]] = {channel: [] for channel in channels}
        self.problems: list[str] = []
        self.polls = 0
        self.is_parked = False
        self._urls = urls
        self._seq = 0

    async def run(self) -> None:
        while True:
            try:
                await self._poll()
            except (OSError, EOFError, asyncio.IncompleteReadError):
                await asyncio.sleep(random.uniform(0.05, 0.2))  # broken: come back
            finally:
                self.is_parked = False

    def entitled(self, number: int) -> bool:
        audience = audience_of(number)
        return (
            not audience
            or self.user in audience.get("user_ids", ())
            or (self.group in audience.get("group_ids", ()))
        )

    async def _poll(self) -> None:
        address = urlsplit(random.choice(self._urls))
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            self._seq += 1
            self.polls += 1
            writer.write(self._request())
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status == 429:
                # Retry-After is taken as read: tests have no time for it.
                await asyncio.sleep(random.uniform(0.1, 0.3))
                return
            if status != 200:
                self.problems.append(head.decode().splitlines()[0])
                await asyncio.sleep(0.2)
                return
            self.is_parked = True
            while size := int(await reader.readuntil(CHUNK_END), 16):
                chunk = await reader.readexactly(size + 2)
                for frame in chunk[:-2].split(SEPARATOR):
                    if frame:
                        self._take(json.loads(frame))
        finally:
            writer.close()

    def _request(self) -> bytes:
        pairs = {**self.positions, "__seq": self._seq}
        body = "&".join(f"{quote(name, safe='')}={at}" for name, at in pairs.items()).encode()
        return (
            f"POST /message-bus/{self.client_id}/poll HTTP/1.1\r\nHost: bus\r\n"
            f"X-MessageBus-User: {self.user}\r\nX-MessageBus-Groups: [{self.group}]\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def _take(self, messages: Sequence[Mapping[str, Any]]) -> None:
        for message in messages:
            if message["channel"] == "/__status":
                self.positions.update(message["data"])
            else:
                self.positions[message["channel"]] = message["message_id"]
                self.got[message["channel"]].append(message["data"]["n"])


class Traffic:
    """Publishers, one a channel, and subscribers, each of a few channels."""

    def __init__(self, publishers: Sequence[Publisher], subscribers: Sequence[Subscriber]) -> None:
        self.publishers = publishers
        self.subscribers = subscribers

    @property
    def published(self) -> int:
        return sum(len(each.numbers) for each in self.publishers)

    async def published_more(self, count: int, within: float = 30) -> None:
        """Wait until so many more messages were accepted."""
        target = self.published + count

        def is_done() -> bool:
            refused = [each.problem for each in self.publishers if each.problem]
            assert not refused, refused[0]
            return self.published >= target

        await until(is_done, within, f"{count} more publishes")

    async def settled(self, within: float = 20) -> None:
        """Wait until everybody has the last message they are to get."""
        last = {each.channel: each.numbers for each in self.publishers}

        def is_complete() -> bool:
            return all(
                sum(map(each.entitled, last[channel])) <= len(got)
                for each in self.subscribers
                for channel, got in each.got.items()
            )

        with suppress(TimeoutError):  # `check` says who lacks what
            await until(is_complete, within, "everybody to have everything")

    async def parked(self, within: float = 30) -> None:
        """Wait until every subscriber holds a poll."""
        await until(
            lambda: all(each.is_parked for each in self.subscribers), within, "all to be parked"
        )

    async def quiet(self) -> None:
        """Stop publishing for now, with everything delivered."""
        for publisher in self.publishers:
            await publisher.pause()
        await self.settled()

    def resume(self) -> None:
        for publisher in self.publishers:
            publisher.resume()

    def check(self) -> None:
        """Every accepted message reached every entitled poll exactly once, in order."""
        wrong = []
        accepted = {each.channel: each.numbers for each in self.publishers}
        for each in self.subscribers:
            wrong += [f"{each.client_id}: {problem}" for problem in each.problems]
            for channel, got in each.got.items():
                expected = [number for number in accepted[channel] if each.entitled(number)]
                if got != expected:
                    lost = sorted(set(expected) - set(got))
                    more = sorted({number for number in got if got.count(number) > 1})
                    wrong.append(
                        f"{each.client_id} on {channel}: lost {lost[:10]}, twice {more[:10]}, "
                        f"{'in order' if got == sorted(got) else 'out of order'}"
                    )
        assert not wrong, f"{len(wrong)} wrong of {self.published} published:\n" + "\n".join(
            wrong[:20]
        )


@asynccontextmanager
async def traffic(
    urls: Sequence[str],
    key: str,
    *,
    api_urls: Sequence[str] | None = None,
    channels: int = 10,
    subscribers: int = 1000,
    pause: float = 0.1,
) -> AsyncIterator[Traffic]:
    """Traffic that is on its way, with everybody parked.

    On leaving the block publishing stops, everything is delivered, and the account is checked.
    ``urls`` are those of the daemons, ``api_urls`` of the APIs where those are others'; ``key`` is
    for these.
    """
    names = [f"/faults/{number}" for number in range(channels)]
    running = Traffic(
        [Publisher(api_urls or urls, key, name, pause) for name in names],
        [
            Subscriber(
                urls,
                f"client-{number}",
                [names[number % channels], names[(number + 1) % channels]],
                number % 3,
                7 if number % 2 else 8,
            )
            for number in range(subscribers)
        ],
    )
    listening = [asyncio.create_task(each.run()) for each in running.subscribers]
    publishing: list[asyncio.Task[None]] = []
    try:
        await running.parked()
        publishing += [asyncio.create_task(each.run()) for each in running.publishers]
        await running.published_more(channels)
        yield running
        for publisher in running.publishers:
            publisher.stop()
        await asyncio.wait_for(asyncio.gather(*publishing), 30)
        await running.settled()
        running.check()
    finally:
        for task in (*publishing, *listening):
            task.cancel()
        await asyncio.gather(*publishing, *listening, return_exceptions=True)


async def until(condition: Callable[[], bool], within: float, what: str) -> None:
    """Wait for a condition. Raises TimeoutError, naming it."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"waited {within} s in vain for {what}") from None
