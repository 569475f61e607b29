"""The load on one installation: who publishes, who listens, who bothers the daemon."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import aiohttp

from tests.soak.browsers import HABITS, STREAM, Browser
from tests.soak.followers import Follower
from tests.soak.ledger import Ledger, Who
from tests.soak.publishers import Publisher
from tests.soak.windows import Windows
from tests.soak.world import Installation

LARGE = "/soak/large"
CHANNELS = (*(f"/soak/{number}" for number in range(12)), LARGE)
USERS, GROUPS = 20, 5
# What each publisher does: most publish one message at a time, one has its messages wait.
PUBLISHERS = (*[("single",) * 5 + ("batch",)] * 3, ("queued",))
# Each publisher's average pause, in seconds.
PAUSE = 0.5


class Crowd:
    """See the module's docstring. ``size`` is how many browsers there are."""

    def __init__(
        self, place: Installation, windows: Windows, size: int, randomness: random.Random
    ) -> None:
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter()
        self._place = place
        self._windows = windows
        self._random = randomness
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []
        pick = randomness
        self.browsers = [self._browser(number) for number in range(size)]
        followed = pick.sample(CHANNELS, 4)
        self.followers = [
            Follower(
                self.ledger,
                windows,
                self.counts,
                name,
                channels,
                lambda index=index: self._api(index),  # type: ignore[misc]
                place.headers,
                follows_all=follows_all,
                randomness=random.Random(pick.random()),
            )
            for index, (name, channels, follows_all) in enumerate(
                (
                    ("a server of all", CHANNELS, True),
                    ("a server of some", followed, False),
                    ("a server of each", CHANNELS, False),
                )
            )
        ]
        clients = [f"client-{number}" for number in range(size)]
        self.publishers = [
            Publisher(
                self.ledger,
                windows,
                self.counts,
                str(number),
                CHANNELS,
                LARGE,
                place.serving,
                place.headers,
                kinds=kinds,
                pause=PAUSE,
                users=USERS,
                groups=GROUPS,
                clients=clients,
                randomness=random.Random(pick.random()),
            )
            for number, kinds in enumerate(PUBLISHERS)
        ]

    def _browser(self, number: int) -> Browser:
        pick = self._random
        # Half of them behave well; every other habit is somebody's.
        habit = STREAM if number % 2 else HABITS[number // 2 % len(HABITS)]
        # nginx would take what a slow reader does not.
        address = (lambda: self._place.direct(number)) if habit.naps else lambda: self._place.public
        return Browser(
            self.ledger,
            self._windows,
            self.counts,
            habit,
            Who(
                f"client-{number}",
                pick.randrange(USERS),
                frozenset(pick.sample(range(GROUPS), pick.randrange(3))),
            ),
            CHANNELS if habit.naps else pick.sample(CHANNELS, pick.randrange(1, 4)),
            address,
            self._place.secret,
            random.Random(pick.random()),
            error="slow poll broken" if habit.naps else "poll broken",
        )

    def _api(self, index: int) -> str:
        daemons = self._place.serving()
        return daemons[index % len(daemons)].internal_url

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let everybody begin."""
        self._begin(*(each.run() for each in self.browsers))
        self._begin(*(each.run() for each in self.followers))
        self._begin(self._bother(), self._audit())
        self._publishing = [asyncio.create_task(each.run()) for each in self.publishers]

    def _begin(self, *runs: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(each) for each in runs]

    def check(self) -> None:
        """Raise what somebody died of: that is a fault of the soak's own."""
        for task in (*self._tasks, *self._publishing):
            if task.done() and not task.cancelled() and task.exception() is not None:
                task.result()

    async def settle(self, within: float) -> None:
        """Stop publishing, and wait until everybody has everything."""
        for publisher in self.publishers:
            publisher.stop()
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*self._publishing)
                while self.ledger.unsettled or self.ledger.behind():
                    self.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass  # the ledger says who lacks what

    async def stop(self) -> None:
        """Send everybody home."""
        for task in (*self._tasks, *self._publishing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._publishing, return_exceptions=True)

    @property
    def parked(self) -> int:
        """How many browsers wait right now."""
        return sum(each.is_parked for each in self.browsers)

    # -- what goes on beside -----------------------------------------------------------------------

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(2)
            self.ledger.audit()

    async def _bother(self) -> None:
        """End polls by client and by user, and have it asked anew who somebody is."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._place.headers) as session:
            while True:
                await asyncio.sleep(self._random.uniform(0.5, 3))
                user = self._random.randrange(USERS)
                client = f"client-{self._random.randrange(len(self.browsers))}"
                call, body = self._random.choice(
                    (
                        ("clients/disconnect", {"user_id": user}),
                        ("clients/disconnect", {"client_id": client}),
                        ("lookups/invalidate", {"user_id": user}),
                    )
                )
                daemon = self._random.choice(self._place.serving())
                url = f"{daemon.internal_url}/api/v1/{call}"
                try:
                    async with session.post(url, json=body) as answer:
                        if answer.status != 200 and answer.status != 204:
                            self._windows.met(f"call {answer.status}", call)
                        self.counts[call] += 1
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    self._windows.met("call broken", f"{call}: {error!r}")
