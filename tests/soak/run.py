"""One run: build, load, break, watch, and judge."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.soak.browsers import STREAM, Browser
from tests.soak.crowd import CHANNELS, Crowd
from tests.soak.faults import Fault, Trouble
from tests.soak.ledger import EVERYBODY, Ledger, Who
from tests.soak.publishers import accepted_by, unknown_at
from tests.soak.samples import Sampler, as_json, files_of, scrape
from tests.soak.verdict import Outcome, growths
from tests.soak.windows import Windows
from tests.soak.world import Installation, installation

# Descriptors that a daemon may have more of at the end than at its start, with nobody there: its
# connections to the store are made when they are needed.
MAX_MORE_FILES = 8
SETTLE_SECONDS = 45.0
ROLL_BROWSERS, ROLL_MESSAGES = 10, 24


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to be. ``seconds`` is how long the load lasts, at least until each fault has
    been; ``interval`` is that of the polls, ``pause`` is between two faults, at least and at most.
    ``faults`` says which an installation suffers.
    """

    stores: Sequence[str]
    seconds: float
    seed: int
    browsers: int
    interval: float
    pause: tuple[float, float]
    sample_every: float
    report_every: float
    faults: Callable[[Installation], Sequence[Fault]]


class Part:
    """One installation's part of a run."""

    def __init__(self, place: Installation, plan: Plan, randomness: random.Random) -> None:
        self.place = place
        self.windows = Windows(time.monotonic)
        self.crowd = Crowd(place, self.windows, plan.browsers, randomness)
        self.trouble = Trouble(
            place, self.windows, plan.faults(place), plan.pause, random.Random(randomness.random())
        )
        self.sampler = Sampler(place.kind, place.daemons, self.windows)
        self.findings: list[str] = []
        self.began = time.monotonic()
        self._told = (0, 0)
        self.nginx_errors: list[str] = []
        """What nginx said that went wrong, the latest of it."""
        # With nobody there, at the start.
        self._idle = max(files_of(each.pid) for each in place.daemons)

    def progress(self) -> str:
        """How it stands, in a line."""
        ledger, samples = self.crowd.ledger, self.sampler.samples
        latest = {each.daemon: each for each in samples[-len(self.place.daemons) :]}.values()
        return (
            f"{self.place.kind}: {ledger.stored} stored, {ledger.checked} deliveries checked, "
            f"{self.crowd.parked} parked; "
            f"rss {'/'.join(f'{each.rss / 1e6:.1f}' for each in latest)} MB, "
            f"files {'/'.join(str(each.files) for each in latest)}; "
            f"{sum(self.windows.done.values())} faults, now {', '.join(self.windows.now) or '-'}; "
            f"{sum(ledger.wrongs.values())} wrong, "
            f"{sum(self.windows.unexcused.values())} unexcused"
        )

    def news(self) -> list[str]:
        """What was wrong since this was last asked, as far as examples are kept."""
        found = [
            *self.crowd.ledger.examples[self._told[0] :],
            *self.windows.examples[self._told[1] :],
        ]
        self._told = len(self.crowd.ledger.examples), len(self.windows.examples)
        return found

    async def finish(self, session: aiohttp.ClientSession) -> None:
        """Everybody gets what is due, and goes home; then what the daemons say is compared."""
        await self.crowd.settle(SETTLE_SECONDS)
        self.crowd.ledger.close()
        await self.crowd.stop()
        await self._compare_publishes(session)
        await self._call_the_roll(session)
        await self.place.nginx.stop()
        lines = self.place.nginx.error_log.splitlines()
        self.nginx_errors = [each for each in lines if "[notice]" not in each][-200:]
        await self._nobody_left(session)
        self.sampler.read_logs()

    async def _compare_publishes(self, session: aiohttp.ClientSession) -> None:
        """Each daemon has counted what its publishers have, as far as they know."""
        for index, daemon in enumerate(self.place.daemons):
            counted = (await scrape(session, daemon)).sum("messagebusd_publishes_total")
            accepted = self.crowd.counts[accepted_by(daemon.pid)]
            unknown = self.crowd.counts[unknown_at(daemon.pid)]
            if not accepted <= counted <= accepted + unknown:
                self.findings.append(
                    f"{self.sampler.name(index)} said that {accepted} messages were published, and "
                    f"of {unknown} more it is not known; it counts {counted:.0f}"
                )

    async def _call_the_roll(self, session: aiohttp.ClientSession) -> None:
        """With nothing broken, and nobody who goes away: metrics say exactly what happened."""
        await self._parked(session, 0)
        before = [await scrape(session, each) for each in self.place.daemons]
        ledger, counts = Ledger(), Counter[str]()
        browsers = [
            Browser(
                ledger,
                self.windows,
                counts,
                STREAM,
                Who(f"roll-{number}", number),
                CHANNELS,
                lambda: self.place.public,
                self.place.secret,
                random.Random(number),
                error="poll broken",
                start=None,
            )
            for number in range(ROLL_BROWSERS)
        ]
        listening = [asyncio.create_task(each.run()) for each in browsers]
        try:
            await self._parked(session, len(browsers))
            for number in range(ROLL_MESSAGES):
                channel, token = CHANNELS[number % len(CHANNELS)], f"roll-{number}"
                ledger.begin(channel, token, EVERYBODY)
                answer = await self.place.daemons[-1].publish(channel, {"token": token})
                ledger.store(channel, token, answer["message_id"])
                await asyncio.sleep(0.02)
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    while ledger.behind():
                        await asyncio.sleep(0.1)
        finally:
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
        ledger.close()
        self.findings += [f"at the end: {each}" for each in ledger.examples]
        await self._parked(session, 0)
        after = [await scrape(session, each) for each in self.place.daemons]
        for metric, known in (
            ("messagebusd_publishes_total", ROLL_MESSAGES),
            ("messagebusd_deliveries_total", counts["received live"]),
        ):
            counted = sum(each.sum(metric) for each in after)
            counted -= sum(each.sum(metric) for each in before)
            if counted != known:
                self.findings.append(f"{metric} grew by {counted:.0f} where {known} happened")

    async def _parked(self, session: aiohttp.ClientSession, count: int) -> None:
        """Wait until so many polls are parked, by the metric of all daemons."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while True:
                    metrics = [await scrape(session, each) for each in self.place.daemons]
                    parked = sum(each.sum("messagebusd_parked_polls") for each in metrics)
                    if parked == count:
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            self.findings.append(f"parked polls stay at {parked:.0f} where {count} are there")

    async def _nobody_left(self, session: aiohttp.ClientSession) -> None:
        """What was opened for somebody is closed again."""
        await self._parked(session, 0)
        for index, daemon in enumerate(self.place.daemons):
            most = self._idle + MAX_MORE_FILES
            try:
                async with asyncio.timeout(SETTLE_SECONDS):
                    while (files := files_of(daemon.pid)) > most:
                        await asyncio.sleep(0.2)
            except TimeoutError:
                self.findings.append(
                    f"{self.sampler.name(index)} has {files} descriptors open with nobody there, "
                    f"{self._idle} at its start"
                )

    def outcome(self) -> Outcome:
        """All that is known."""
        counts, daemon = self.crowd.counts, self.place.daemons[-1]
        return Outcome(
            kind=self.place.kind,
            wrongs=self.crowd.ledger.wrongs,
            wrong_examples=self.crowd.ledger.examples,
            unexcused=self.windows.unexcused,
            unexcused_examples=self.windows.examples,
            growths=growths(self.sampler.samples, (self.trouble.saw_all_at or 0) - self.began),
            kept_keys=counts[accepted_by(daemon.pid)] if self.place.world is None else 0,
            findings=self.findings,
        )

    def done(self) -> Mapping[str, int]:
        """What was done, how many times."""
        return {
            "checked deliveries": self.crowd.ledger.checked,
            "stored messages": self.crowd.ledger.stored,
            "ended as slow": int(sum(self.sampler.slow.values())),
            **{f"fault: {name}": count for name, count in self.windows.done.items()},
            **{
                name: count
                for name, count in self.crowd.counts.items()
                if not name.startswith(("accepted by", "unknown at"))
            },
            **{f"excused: {name}": count for name, count in self.windows.excused.items()},
            **{f"warning: {name}": count for name, count in self.sampler.warnings.items()},
        }


async def soak(plan: Plan, folder: Path, say: Callable[[str], None]) -> list[Part]:
    """Do it. ``folder`` is where the servers live; ``say`` is told how it stands."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        )
        # One after the other: half of the machine is somebody else's.
        places = [
            await stack.enter_async_context(installation(kind, folder, plan.interval))
            for kind in plan.stores
        ]
        randomness = random.Random(plan.seed)
        parts = [Part(place, plan, random.Random(randomness.random())) for place in places]
        troubles: list[asyncio.Task[None]] = []
        began = time.monotonic()
        try:
            for part in parts:
                part.crowd.start()
            troubles += [asyncio.create_task(part.trouble.run()) for part in parts]
            await _watch(plan, parts, troubles, session, began, say)
            for part in parts:
                part.trouble.stop()
            say("settling")
            for trouble in troubles:
                while not trouble.done():
                    await asyncio.wait([trouble], timeout=0.5)
                    for part in parts:
                        part.sampler.read_logs()
                trouble.result()
            await asyncio.gather(*(part.finish(session) for part in parts))
        finally:
            for task in troubles:
                task.cancel()
            await asyncio.gather(*troubles, return_exceptions=True)
            for part in parts:
                await part.crowd.stop()
        return parts


async def _watch(
    plan: Plan,
    parts: Sequence[Part],
    troubles: Sequence[asyncio.Task[None]],
    session: aiohttp.ClientSession,
    began: float,
    say: Callable[[str], None],
) -> None:
    """Until the time is over, and each fault has been at least once."""
    sampled = reported = began
    while (now := time.monotonic()) < began + plan.seconds or not all(
        part.trouble.rounds for part in parts
    ):
        for part in parts:
            part.crowd.check()
            part.sampler.read_logs()
        for trouble in troubles:
            if trouble.done():
                trouble.result()
        if now >= sampled + plan.sample_every:
            sampled = now
            for part in parts:
                await part.sampler.sample(session, now - began)
        if now >= reported + plan.report_every:
            reported = now
            for part in parts:
                say(f"{now - began:6.0f} s  {part.progress()}")
                for each in part.news():
                    say(f"          {each}")
        await asyncio.sleep(0.5)


def record(plan: Plan, parts: Sequence[Part]) -> dict[str, object]:
    """All of it, to be examined afterwards; JSON."""
    return {
        "plan": {"seconds": plan.seconds, "seed": plan.seed, "browsers": plan.browsers},
        "installations": {
            part.place.kind: {
                "findings": part.outcome().all_findings(),
                "wrong": list(part.crowd.ledger.examples),
                "unexcused": list(part.windows.examples),
                "faults": part.windows.history,
                "nginx": part.nginx_errors,
                "logs": list(part.sampler.lines),
                "done": dict(part.done()),
                "samples": as_json(part.sampler.samples),
            }
            for part in parts
        },
    }
