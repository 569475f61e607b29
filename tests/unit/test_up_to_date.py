"""Polls that park without asking a store on the network: as exact as those that ask it.

The store here is the memory store as one node sees it from afar: reads take their time, what is
published is announced later, one message at a time, or is lost on the way.
"""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from messagebusd import fanout
from messagebusd.backends.base import Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.connection import CloseReason, State
from messagebusd.known_ids import BELIEVED_SECONDS
from messagebusd.protocol.publication import Publication
from tests.unit.test_bus import World, follow

CHANNELS = ("/a", "/b")


class DistantBackend(MemoryBackend):
    """See the module's docstring. Each read waits for a permit on its way there, and on its way
    back."""

    is_immediate = False

    def __init__(self):
        super().__init__(Retention(max_backlog_size=500), max_bytes=2**24)
        self.permits = asyncio.Semaphore(0)
        self.reads = 0
        self.hearing = True
        # Whether announcements get lost, which nobody has noticed yet.
        self.loses = False
        self.on_way = deque()
        self.seen = 0
        # What a break is being healed with.
        self.missing = None

    @property
    def is_hearing(self):
        return self.hearing

    def _announce(self):
        batch, self._unannounced = self._unannounced, []
        if not self.loses:
            self.on_way.extend(batch)

    def arrive(self):
        """The next announcement is here."""
        self._announce()
        if not self.hearing or not self.on_way:
            return
        if self.on_way[0].global_id != self.seen + 1:
            self.hearing = False
            return
        message = self.on_way.popleft()
        self.seen += 1
        self._listener.dispatch([message])

    def lose(self):
        """Nothing more will arrive but what is on its way."""
        self._announce()
        self.loses = True

    def heal(self):
        """Find out what is missing, and who asks for it; and then, a while later, announce it."""
        self._announce()
        self.hearing, self.loses = False, False
        if self.missing is None:
            heard = {each.global_id for each in self.on_way}
            after, self.seen = self.seen, self._global_id
            self.missing = [
                each
                for channel in self._channels.values()
                for each in channel.messages
                if each.global_id > after and each.global_id not in heard
            ]
            asked = self._listener.channels()
            self.found = [each for each in self.missing if each.stored_channel in asked]
            self.found += self.on_way
            self.is_complete = len(self.found) == len(self.missing) + len(self.on_way)
            self.on_way.clear()
            return
        if not self.is_complete:
            self._listener.interrupted()
        for each in sorted(self.found, key=lambda each: each.global_id):
            self._listener.dispatch([each])
        self.missing, self.hearing = None, True

    async def last_ids(self, channels):
        self.reads += 1
        await self.permits.acquire()
        found = await super().last_ids(channels)
        now = self._global_id
        await self.permits.acquire()
        self._barrier(now)
        return found

    async def backlog(self, channel, after_id, *, max_messages, max_bytes):
        self.reads += 1
        await self.permits.acquire()
        found = await super().backlog(
            channel, after_id, max_messages=min(max_messages, 3), max_bytes=max_bytes
        )
        now = self._global_id
        await self.permits.acquire()
        self._barrier(now)
        return found

    def _barrier(self, global_id):
        while self.hearing and self.seen < global_id and self.on_way:
            self.arrive()
        if self.seen < global_id:
            self.hearing = False
        while not self.hearing or self.seen < global_id:
            self.heal()


class Browser:
    """A page that comes back with its positions, and keeps account of what it is told."""

    def __init__(self, world, name, channels):
        self.world = world
        self.name = name
        self.positions = dict.fromkeys(channels, 0)
        self.got = {channel: [] for channel in channels}
        self.skipped = {channel: set() for channel in channels}
        self._asked = {}
        self._acknowledged = {}
        self._polling = None
        self._told = 0

    @property
    def is_away(self):
        return self._polling is None

    def come(self, acknowledged):
        self._asked = self.positions.copy()
        self._acknowledged = acknowledged.copy()
        self._told = 0
        poll = self.world.poll(self.positions.copy(), self.name, will_park=True)
        self._polling = asyncio.create_task(poll)

    def look(self):
        """Read what has come, and go if the poll has ended."""
        if self._polling is None or not self._polling.done():
            return
        connection, transport = self._polling.result()
        frames = transport.frames
        for frame in frames[self._told :]:
            for message in frame:
                channel = message["channel"]
                if channel == "/__status":
                    self.positions |= message["data"]
                    continue
                assert message["message_id"] > self.positions[channel]
                self.got[channel].append(message["message_id"])
                self.positions[channel] = message["message_id"]
            if self._told == 0:
                # What this very node had acknowledged before the poll is in its first frame.
                for channel, last_id in self._acknowledged.items():
                    assert self.positions.get(channel, last_id) >= last_id
            self._told += 1
        if connection.state is State.CLOSED:
            self._polling = None

    def leave(self):
        self.look()
        if self._polling is not None and self._polling.done():
            self._polling.result()[0].close(CloseReason.ENDED)
            self.look()

    def jump(self, channel, last_id):
        """Take a position from whoever published: it has that message from there."""
        if self.is_away and last_id > self.positions.get(channel, last_id):
            self.skipped[channel].update(range(self.positions[channel] + 1, last_id + 1))
            self.positions[channel] = last_id


@pytest.fixture
def slices_of_one(monkeypatch):
    monkeypatch.setattr(fanout, "SLICE", 1)


# Some steps that go together often stand for the way to what is rare.
ARRIVE = "permit, permit, permit, permit"
MISS_B = "lose, there b, heal, heal"
STEPS = ["here a", "there a", "there b", "arrive", "permit", "lose", "notice", "heal", "slice"]
STEPS += ["come 0", "come 1", "come 2", "leave 0", "leave 1", "jump 0", "late", "heal, heal"]
STEPS += [f"come 0, {ARRIVE}", f"come 1, {ARRIVE}", "here b, arrive", "there a, arrive"]
STEPS += ["lose, there a", MISS_B, f"leave 1, {MISS_B}"]


@pytest.mark.usefixtures("slices_of_one")
@example(steps=[f"come 1, {ARRIVE}", "there b, arrive", "leave 1", MISS_B, f"come 1, {ARRIVE}"])
@example(steps=["here a", MISS_B.replace("b", "a"), "jump 0", f"come 0, {ARRIVE}"])
@example(steps=["come 0, permit", "there a, arrive", MISS_B, "permit, permit", f"come 2, {ARRIVE}"])
@example(
    steps=[f"come 1, {ARRIVE}", "there b, arrive", "leave 1", "lose, there b, heal", "come 1, heal"]
)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=60))
def test_every_interleaving_delivers_exactly_once(steps):
    async def scenario():
        backend = DistantBackend()
        world = World(backend=backend)
        await backend.open()
        browsers = [
            Browser(world, "0", ["/a"]),
            Browser(world, "1", ["/b", "/a"]),
            Browser(world, "2", ["/a"]),
        ]
        acknowledged = {}

        async def here(channel):
            published = await world.bus.publish(Publication(channel, b"1"))
            acknowledged[channel] = published.message_id

        async def step(action):
            match action.split():
                case ["here", name]:
                    await here(f"/{name}")
                case ["there", name]:
                    await backend.publish(Publication(f"/{name}", b"1"))
                case ["arrive"]:
                    backend.arrive()
                case ["permit"]:
                    backend.permits.release()
                case ["lose"]:
                    backend.lose()
                case ["notice"] if backend.loses:
                    backend.hearing = False
                case ["heal"]:
                    backend.heal()
                case ["slice"]:
                    world.clock.turn()
                case ["late"]:
                    world.clock.now += BELIEVED_SECONDS / 2
                case ["come", number] if browsers[int(number)].is_away:
                    browsers[int(number)].come(acknowledged)
                case ["leave", number]:
                    browsers[int(number)].leave()
                case ["jump", number]:
                    browsers[int(number)].jump("/a", acknowledged.get("/a", 0))
            await asyncio.sleep(0)
            for each in browsers:
                each.look()

        for action in ", ".join(steps).split(", "):
            await step(action)
        for _ in range(2000):
            backend.permits.release()
        # Whatever was lost is noticed at the next announcement.
        while backend.loses or not backend.hearing:
            await step("heal")
        for action in ("there a", "arrive", "here b", "arrive", "slice"):
            await step(action)
        for _ in range(3):  # a poll that was under way; one that ends; one that parks
            await settle(world)
            for each in browsers:
                each.leave()
            for each in browsers:
                if each.is_away:
                    each.come(acknowledged)
        await settle(world)
        for each in browsers:
            each.leave()
        last_ids = await world.last_ids(*CHANNELS)
        for each in browsers:
            for channel, got in each.got.items():
                skipped = each.skipped[channel]
                wanted = [n for n in range(1, last_ids[channel] + 1) if n not in skipped]
                assert got == wanted
                assert each.positions[channel] == last_ids[channel]

    asyncio.run(scenario())


async def settle(world):
    """Let everything happen that needs nobody."""
    for _ in range(30):
        world.clock.turn()
        await asyncio.sleep(0)


@pytest.fixture
async def world():
    """Two channels, one with three messages, the other with none: who polls there parks."""
    world = World(backend=DistantBackend())
    await world.backend.open()
    world.backend.permits = asyncio.Semaphore(10_000)
    for _ in range(3):
        await world.publish("/a")
        world.backend.arrive()
    connection, _ = await world.poll({"/a": 3, "/b": 0}, will_park=True)
    assert connection.is_parked
    connection.close(CloseReason.ENDED)
    world.backend.reads = 0
    return world


async def test_who_is_up_to_date_parks_without_asking_and_misses_nothing(world):
    connection, transport = await world.poll({"/b": 0, "/a": 3}, will_park=True)
    assert connection.is_parked
    assert world.backend.reads == 0
    await world.backend.publish(Publication("/a", b"1"))
    world.backend.arrive()
    assert follow(transport, {}) == [("/a", 4)]


async def test_what_is_on_its_way_finds_the_poll_parked(world):
    await world.backend.publish(Publication("/a", b"1"))
    _, transport = await world.poll({"/a": 3}, will_park=True)
    assert world.backend.reads == 0
    assert transport.frames == [[]]
    world.backend.arrive()
    assert follow(transport, {}) == [("/a", 4)]


@pytest.mark.parametrize(
    "positions",
    [{"/a": 2}, {"/a": 4}, {"/a": -1}, {"/a": -2}, {"/a": None}, {"/a": 3, "/c": 0}],
    ids=str,
)
async def test_any_other_position_asks_the_store(world, positions):
    await world.poll(positions, will_park=True)
    assert world.backend.reads > 0


async def test_who_is_answered_at_once_is_told_of_what_was_published_before(world):
    await world.backend.publish(Publication("/a", b"1"))
    _, transport = await world.poll({"/a": 3}, will_park=False)
    assert follow(transport, {}) == [("/a", 4)]


async def test_what_this_node_has_published_is_in_the_first_frame(world):
    await world.publish("/a")
    _, transport = await world.poll({"/a": 3}, will_park=True)
    assert [each["message_id"] for each in transport.frames[0]] == [4]


async def test_who_knows_what_this_node_has_published_does_not_get_it_again(world):
    await world.publish("/a")
    _, transport = await world.poll({"/a": 4}, will_park=True)
    while world.backend.on_way:
        world.backend.arrive()
    assert follow(transport, {}) == []


@pytest.mark.parametrize("end", ["age", "deafness", "interrupted", "restarted"])
async def test_what_is_known_is_given_up(world, end):
    match end:
        case "age":
            world.clock.now += BELIEVED_SECONDS + 0.1
        case "deafness":
            world.backend.hearing = False
        case "interrupted":
            world.bus.interrupted()
        case "restarted":
            world.bus.restarted(["/z"])
    await world.poll({"/a": 3}, will_park=True)
    assert world.backend.reads == 1
    # And is known again, by what that poll has read.
    await world.poll({"/a": 3}, will_park=True)
    assert world.backend.reads == 1


async def test_a_healed_break_leaves_nothing_that_was_known_of_its_channels(world):
    """After it, of those whose messages were heard others may be missing that nobody asked for."""
    await world.backend.publish(Publication("/b", b"1"))  # on its way
    world.backend._announce()
    world.backend.loses = True
    await world.backend.publish(Publication("/b", b"1"))
    world.backend.heal()
    world.backend.heal()
    _, transport = await world.poll({"/b": 1}, will_park=True)
    assert follow(transport, {}) == [("/b", 2)]


async def test_a_poll_that_parks_unasked_can_be_ended_like_any_other(world):
    connection, _ = await world.poll({"/a": 3}, will_park=True)
    assert await world.bus.end_polls("disconnect", client_id="c") == 1
    assert connection.state is State.CLOSED
    assert world.hub.subscribers("/a") == 0
