"""What is done to an installation, and which errors each of these excuses."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.world import ready
from tests.soak.windows import Windows
from tests.soak.world import READY_SECONDS, Installation
from tests.support.daemon import Daemon

# While the store is away: polls are told to come back, publishes fail, and those who follow all
# channels are ended, because only the store knows what they missed (docs/guarantees.md). Warnings
# of the daemon's are what an operator would want then.
STORE_AWAY = frozenset(
    {
        "poll 429",
        "publish 503",
        "publish unanswered",
        "call 503",
        "subscription 503",
        "subscription ended: interrupted",
        "subscription ended: store_unavailable",
        "log warning",
    }
)
# While a daemon leaves in order: whoever talks to it directly is told, or finds nobody.
LEAVING = frozenset(
    {
        "publish not connected",
        "publish unanswered",
        "subscription ended: draining",
        "subscription broken",
        "call broken",
    }
)
# A daemon that is killed leaves its streams unfinished, through nginx as well.
KILLED = LEAVING | {"poll broken"}
# Where there is no other daemon, nginx has nobody to ask.
ALONE = LEAVING | {"poll 502"}

Act = Callable[[Installation, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done, and what it excuses. It ends when all daemons are ready again.

    With ``early`` it is done only while a run warms up: the last daemon is watched from then on.
    """

    name: str
    act: Act
    allows: frozenset[str] = frozenset()
    early: bool = False


# -- the store, and the way to it


async def _store_stops(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    await asyncio.to_thread(place.world.server.stop)
    await asyncio.sleep(pick.uniform(1, 5))
    await asyncio.to_thread(place.world.server.start)


async def _store_is_killed(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    await asyncio.to_thread(place.world.server.kill)
    await asyncio.sleep(pick.uniform(0, 3))
    await asyncio.to_thread(place.world.server.start)


async def _links_reset(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    for _ in range(pick.randrange(1, 4)):
        place.world.proxy.reset()
        await asyncio.sleep(pick.uniform(0.1, 1))


async def _links_refused(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    place.world.proxy.refuse()
    place.world.proxy.reset()
    await asyncio.sleep(pick.uniform(1, 4))
    await place.world.proxy.accept()


async def _cable_cut(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    place.world.proxy.blackhole()
    await asyncio.sleep(pick.uniform(3, 6))
    place.world.proxy.restore()


async def _store_is_slow(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    place.world.proxy.delay = pick.choice((0.05, 0.2, 0.8))
    await asyncio.sleep(pick.uniform(2, 4))
    place.world.proxy.restore()


async def _answers_lost(place: Installation, pick: random.Random) -> None:
    assert place.world is not None
    for _ in range(pick.randrange(1, 4)):
        place.world.proxy.cut_after(b'"token":"')  # a publish, and no read of a channel
        await asyncio.sleep(pick.uniform(0.5, 1))


# -- the daemons, and what is before them


async def _stop(place: Installation, daemon: Daemon) -> None:
    """End a daemon as a deploy does; it must go of its own accord, and say that all is well."""
    place.announce(daemon, serves=False)
    if (code := await daemon.stop()) != 0:
        raise RuntimeError(f"a daemon ended with {code}:\n{daemon.output()[-4000:]}")


async def _start(place: Installation, daemon: Daemon) -> None:
    await daemon.restart()
    await ready(daemon, within=READY_SECONDS)
    place.announce(daemon, serves=True)


async def _daemon_restarts(place: Installation, pick: random.Random) -> None:
    await _stop(place, place.daemons[0])
    await _start(place, place.daemons[0])


async def _rolling_restart(place: Installation, pick: random.Random) -> None:
    for daemon in place.daemons:
        await _stop(place, daemon)
        await _start(place, daemon)


async def _daemon_is_killed(place: Installation, pick: random.Random) -> None:
    place.announce(place.daemons[0], serves=False)
    await place.daemons[0].kill()
    await asyncio.sleep(pick.uniform(0, 1))
    await _start(place, place.daemons[0])


async def _nginx_reloads(place: Installation, pick: random.Random) -> None:
    await place.nginx.reload()


def reloads(daemon: Daemon) -> bool:
    """Whether it does something at SIGHUP, by the mask of what the process has handlers for."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    caught = int(status.split("SigCgt:", 1)[1].split()[0], 16)
    return bool(caught >> (signal.SIGHUP - 1) & 1)


async def _settings_reload(place: Installation, pick: random.Random) -> None:
    for daemon in place.daemons:
        if reloads(daemon):
            daemon.signal(signal.SIGHUP)


async def _everybody_is_sent_away(place: Installation, pick: random.Random) -> None:
    await pick.choice(place.daemons).api("POST", "lookups/invalidate", {"all": True})


# What any installation suffers: nobody may notice.
OF_ANY = (
    Fault("nginx reloads", _nginx_reloads),
    Fault("settings reload", _settings_reload),
    Fault("everybody invalidated", _everybody_is_sent_away),
)
OF_STORE = (
    Fault("store stops", _store_stops, STORE_AWAY),
    Fault("store is killed", _store_is_killed, STORE_AWAY),
    Fault("links reset", _links_reset, STORE_AWAY),
    Fault("links refused", _links_refused, STORE_AWAY),
    Fault("cable cut", _cable_cut, STORE_AWAY),
    Fault("store is slow", _store_is_slow, STORE_AWAY),
    Fault("answers lost", _answers_lost, STORE_AWAY),
    Fault("daemon restarts", _daemon_restarts, LEAVING),
    Fault("daemon is killed", _daemon_is_killed, KILLED),
    Fault("rolling restart", _rolling_restart, LEAVING, early=True),
)
OF_MEMORY = (Fault("restart", _daemon_restarts, ALONE, early=True),)


def faults_of(place: Installation) -> tuple[Fault, ...]:
    """All that this installation can suffer."""
    return OF_ANY + (OF_MEMORY if place.world is None else OF_STORE)


class Trouble:
    """Does one thing after another to an installation, until told to stop.

    Each once, in a random order; those that are early first. Then again, but for the early ones.
    ``pause`` is how long it waits between two, in seconds, at least and at most.
    """

    def __init__(
        self,
        place: Installation,
        windows: Windows,
        faults: Sequence[Fault],
        pause: tuple[float, float],
        randomness: random.Random,
    ) -> None:
        self.rounds = 0
        """How often everything has been done."""
        self.saw_all_at: float | None = None
        """When it had been for the first time, by the clock of ``time.monotonic``."""
        self._faults = faults
        self._place = place
        self._windows = windows
        self._pause = pause
        self._random = randomness
        self._is_stopping = asyncio.Event()

    def stop(self) -> None:
        """End after what is being done."""
        self._is_stopping.set()

    async def run(self) -> None:
        left = list(self._faults)
        self._random.shuffle(left)
        left.sort(key=lambda each: each.early)  # the last ones are taken first
        while not self._is_stopping.is_set():
            if not left:
                if all(each.early for each in self._faults):
                    break
                left = [each for each in self._faults if not each.early]
                self._random.shuffle(left)
            fault = left.pop()
            try:
                async with asyncio.timeout(self._random.uniform(*self._pause)):
                    await self._is_stopping.wait()
                break
            except TimeoutError:
                pass
            with self._windows.open(fault.name, fault.allows):
                await fault.act(self._place, self._random)
                for daemon in self._place.daemons:
                    await ready(daemon, within=READY_SECONDS)
            if not left:
                self.rounds += 1
                self.saw_all_at = self.saw_all_at or time.monotonic()
