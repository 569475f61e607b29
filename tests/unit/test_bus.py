"""Catching up: nothing lost, nothing twice, whatever happens between the steps (SPEC 2.6)."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd import fanout
from messagebusd.backends.base import Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import PAGE_MESSAGES, MessageBus
from messagebusd.connection import CloseReason, Connection, State
from messagebusd.errors import StoreUnavailable
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.metrics import Metrics
from messagebusd.protocol import wire
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.requests import Mode
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

HIDDEN = Audience([99])


class SteppedBackend(MemoryBackend):
    """Waits for a permit before and after each read, as a store on the network would."""

    is_immediate = False

    def __init__(self):
        super().__init__(Retention(max_backlog_size=50), max_bytes=2**24)
        self.permits = asyncio.Semaphore(0)
        self.broken = False

    async def last_ids(self, channels):
        await self.permits.acquire()
        if self.broken:
            raise StoreUnavailable("away")
        found = await super().last_ids(channels)
        await self.permits.acquire()
        self._announce()  # the read barrier, after a slow way back
        return found

    async def backlog(self, channel, after_id, *, max_messages, max_bytes):
        await self.permits.acquire()
        found = await super().backlog(
            channel, after_id, max_messages=min(max_messages, 3), max_bytes=max_bytes
        )
        await self.permits.acquire()
        self._announce()
        return found


class World:
    def __init__(self, max_backlog_bytes=2**20, max_client_buffer=2**20, backend=None):
        self.backend = backend or SteppedBackend()
        self.clock = FakeClock()
        self.hub = Hub(
            self.clock,
            Metrics(),
            interval=25,
            max_active_clients=10,
            max_client_buffer=max_client_buffer,
        )
        self.forgotten = []
        self.bus = MessageBus(
            self.backend,
            self.hub,
            Metrics(),
            max_backlog_bytes=max_backlog_bytes,
            forget=lambda *whom: self.forgotten.append(whom),
            clock=self.clock,
        )

    async def publish(self, channel="/a", *, hidden=False, data=b"1"):
        await self.bus.publish(Publication(channel, data, audience=HIDDEN if hidden else None))

    async def last_ids(self, *channels):
        found = await MemoryBackend.last_ids(self.backend, channels)
        return {channel: last.message_id for channel, last in found.items()}

    def connect(self, *channels, client_id="c"):
        return Connection(
            *(self.hub, Identity(), client_id, 0, Mode.STREAM, channels), wire.poll_headers()
        )

    async def poll(self, positions, client_id="c", *, will_park=False):
        """One whole poll as the door does it; what its client was told."""
        connection = self.connect(*positions, client_id=client_id)
        asked = list(positions.values())
        news = await self.bus.attach(connection, asked, will_park=will_park)
        transport = RecordingTransport()
        connection.park(transport, 0)
        transport.write(wire.frame(news.array()))
        if news.truncated:
            connection.close(CloseReason.ENDED)
        else:
            self.hub.park(connection)
        return connection, transport


def follow(transport, positions):
    """Do as message-bus.js: take every message, let a status move the positions."""
    got = []
    for frame in transport.frames:
        for message in frame:
            if message["channel"] == "/__status":
                positions.update(message["data"])
            else:
                positions[message["channel"]] = message["message_id"]
                got.append((message["channel"], message["message_id"]))
    return got


@pytest.fixture
def slices_of_one(monkeypatch):
    """Have the smallest crowd be served as the largest ones are: slice by slice."""
    monkeypatch.setattr(fanout, "SLICE", 1)


@pytest.mark.usefixtures("slices_of_one")
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("crowd", [0, 3])
@given(
    actions=st.lists(
        st.sampled_from(["visible", "hidden", "other", "permit", "permit", "turn", "slice"]),
        max_size=40,
    ),
    lag=st.integers(0, 5),
)
def test_every_interleaving_delivers_exactly_once(before, crowd, actions, lag):
    async def scenario():
        world = World()
        await world.backend.open()
        visible = []
        # They wait for the same channels, and are served before the poll that is looked at.
        world.backend.permits = asyncio.Semaphore(1000)
        others = [
            await world.poll({"/a": None, "/b": None}, f"other-{number}") for number in range(crowd)
        ]
        world.backend.permits = asyncio.Semaphore(0)

        async def publish(channel, hidden):
            await world.publish(channel, hidden=hidden)
            if not hidden:
                last = (await world.last_ids(channel))[channel]
                if channel == "/b" or last > start:
                    visible.append((channel, last))

        start = 0
        for _ in range(before):
            await publish("/a", False)
        start = max(0, before - lag)
        visible[:] = [(channel, number) for channel, number in visible if number > start]
        positions = {"/a": start, "/b": 0}
        attaching = asyncio.create_task(world.poll(positions.copy()))
        for action in actions:
            match action:
                case "visible":
                    await publish("/a", False)
                case "hidden":
                    await publish("/a", True)
                case "other":
                    await publish("/b", False)
                case "permit":
                    world.backend.permits.release()
                case "slice":
                    world.clock.turn()
            await asyncio.sleep(0)
        for _ in range(200):
            world.backend.permits.release()
        connection, transport = await attaching
        await world.publish("/a", hidden=True)
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        while world.clock.due:
            world.clock.turn()
        connection.close(CloseReason.ENDED)

        told = [[each for each in follow(other, {}) if each in visible] for _, other in others]
        assert all(sorted(each) == sorted(visible) for each in told)
        got = follow(transport, positions)
        for channel in ("/a", "/b"):
            assert [each for each in got if each[0] == channel] == [
                each for each in visible if each[0] == channel
            ]
        # The client is up to date: its next poll has nothing to ask for.
        assert positions == await world.last_ids("/a", "/b")

    asyncio.run(scenario())


async def attach(world, positions):
    world.backend.permits = asyncio.Semaphore(1000)
    connection = world.connect(*positions)
    return connection, await world.bus.attach(connection, list(positions.values()))


async def test_a_long_backlog_comes_in_parts_without_a_hole():
    world = World(max_backlog_bytes=400)
    for number in range(12):
        await world.publish("/a", hidden=number % 4 == 3)
        await world.publish("/b")
    world.backend.permits = asyncio.Semaphore(10_000)
    positions, got = {"/a": 0, "/b": 0}, []
    for _ in range(20):
        connection, transport = await world.poll(positions.copy())
        assert len(transport.writes[0]) < 900
        if connection.state is State.PARKED:
            break
        got += follow(transport, positions)
    else:
        pytest.fail("the backlog never ended")
    got += follow(transport, positions)
    assert [number for channel, number in got if channel == "/a"] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [number for channel, number in got if channel == "/b"] == list(range(1, 13))
    assert positions == {"/a": 12, "/b": 12}


async def test_nothing_is_missed_where_a_long_read_of_an_immediate_store_gives_way():
    """Others have their turn after each page, and by then the poll must be known."""
    world = World(backend=MemoryBackend(Retention(max_backlog_size=5000), max_bytes=2**24))
    await world.backend.open()
    for number in range(2 * PAGE_MESSAGES + 1):
        await world.publish(hidden=number % 4 == 3)
    # The first channel has been read when the second one is read in pages.
    attaching = asyncio.create_task(world.poll({"/b": 0, "/a": 0}))
    turns = 0
    while not attaching.done():
        turns += 1
        await world.publish("/a")
        await world.publish("/b")
        await asyncio.sleep(0)
    assert turns > 2
    connection, transport = await attaching
    connection.close(CloseReason.ENDED)
    positions = {"/a": 0, "/b": 0}
    got = follow(transport, positions)
    hidden = [number + 1 for number in range(2 * PAGE_MESSAGES + 1) if number % 4 == 3]
    assert positions == await world.last_ids("/a", "/b")
    for channel, kept in (("/a", hidden), ("/b", [])):
        wanted = [each for each in range(1, positions[channel] + 1) if each not in kept]
        assert [number for name, number in got if name == channel] == wanted


async def test_who_is_answered_from_an_immediate_store_is_never_registered():
    world = World(backend=MemoryBackend(Retention(), max_bytes=2**24))
    await world.backend.open()
    await world.publish()
    connection = world.connect("/a")
    assert (await world.bus.attach(connection, [0])).messages
    assert world.hub.subscribers("/a") == 0
    world.hub.remove(connection, CloseReason.ANSWERED)
    assert connection.state is State.CLOSED
    _, transport = await world.poll({"/a": 1})
    assert world.hub.subscribers("/a") == 1
    await world.publish()
    await asyncio.sleep(0)
    assert follow(transport, {}) == [("/a", 2)]


async def test_hidden_messages_count_towards_the_bound():
    """Else a poll of many channels full of other people's messages would stop the loop."""
    world = World(max_backlog_bytes=500)
    for number in range(100):
        await world.publish(hidden=number < 99)
    positions, polls = {"/a": 0}, 0
    while True:
        polls += 1
        connection, news = await attach(world, positions)
        if not news.truncated:
            break
        assert news.status["/a"] > positions["/a"]
        positions["/a"] = news.status["/a"]
        world.hub.remove_unanswered(connection)
    assert polls > 5
    assert [each.message_id for each in news.messages] == [100]


async def test_one_message_larger_than_the_bound_is_delivered_all_the_same():
    world = World(max_backlog_bytes=100)
    await world.publish(data=b'"%b"' % (b"x" * 1000))
    await world.publish()
    _, news = await attach(world, {"/a": 0})
    assert [each.message_id for each in news.messages] == [1]
    assert news.truncated


async def test_a_slow_store_is_read_in_parts():
    """If a poll that takes too long were refused, its next one would begin again, for ever."""
    world = World()
    for _ in range(6):  # two pages
        await world.publish("/a")
        await world.publish("/b")
    positions, got = {"/a": 0, "/b": 0}, []
    for part in range(4):
        polling = asyncio.create_task(world.poll(positions.copy()))
        while not polling.done():
            world.clock.advance(0.5)
            world.backend.permits.release()
            for _ in range(3):
                await asyncio.sleep(0)
        connection, transport = polling.result()
        got += follow(transport, positions)
        assert (connection.state is State.CLOSED) is (part < 3)
    assert got == [(channel, number) for channel in ("/a", "/b") for number in range(1, 7)]


async def test_hidden_messages_are_skipped_by_a_status():
    world = World()
    for hidden in (True, False, True):
        await world.publish(hidden=hidden)
    _, news = await attach(world, {"/a": 0})
    assert [each["channel"] for each in json.loads(news.array())] == ["/a", "/__status"]
    assert news.status == {"/a": 3}


async def test_a_status_never_steps_back():
    """A live message that came during the read ends the news, not a status below it."""
    world = World()
    await world.publish(hidden=True)
    attaching = asyncio.create_task(world.poll({"/a": 0}))
    await asyncio.sleep(0)
    for _ in range(3):
        world.backend.permits.release()
        await asyncio.sleep(0)
    await world.publish()
    for _ in range(20):
        world.backend.permits.release()
    _, transport = await attaching
    positions = {"/a": 0}
    follow(transport, positions)
    assert positions == {"/a": 2}


async def test_too_much_live_traffic_while_reading_ends_the_poll_after_its_backlog():
    world = World(max_client_buffer=300)
    await world.publish()
    attaching = asyncio.create_task(world.poll({"/a": 0}))
    await asyncio.sleep(0)
    for _ in range(3):
        world.backend.permits.release()
        await asyncio.sleep(0)
    for _ in range(10):
        await world.publish()
    await asyncio.sleep(0)
    for _ in range(50):
        world.backend.permits.release()
    connection, transport = await attaching
    assert connection.state is State.CLOSED
    positions = {"/a": 0}
    seen = follow(transport, positions)
    assert [number for _, number in seen] == list(range(1, len(seen) + 1))
    _, news = await attach(world, positions)
    assert positions["/a"] + len(news.messages) == 11


async def test_a_store_that_is_away_leaves_nothing_behind():
    world = World()
    world.backend.broken = True
    world.backend.permits.release()
    connection = world.connect("/a")
    with pytest.raises(StoreUnavailable):
        await world.bus.attach(connection, [0])
    assert connection.state is State.CLOSED
    assert world.hub.subscribers("/a") == 0


async def test_a_poll_given_up_while_reading_leaves_nothing_behind():
    world = World()
    connection = world.connect("/a")
    attaching = asyncio.create_task(world.bus.attach(connection, [0]))
    await asyncio.sleep(0)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert world.hub.subscribers("/a") == 0


async def test_ids_that_begin_anew_while_a_poll_catches_up_cost_nothing():
    """The channel expires after its last id was read, and its first message has the id 1 again."""
    world = World()
    for _ in range(5):
        await world.publish()
    attaching = asyncio.create_task(world.poll({"/a": 5}))
    await asyncio.sleep(0)
    world.backend.permits.release()
    await asyncio.sleep(0)
    await world.backend.publish(Publication("/a", b"1", max_backlog_age=0))
    await world.publish()
    for _ in range(5):
        world.backend.permits.release()
    _, transport = await attaching
    positions = {"/a": 5}
    assert follow(transport, positions) == [("/a", 6), ("/a", 1)]


async def test_a_poll_that_is_catching_up_can_be_disconnected():
    world = World()
    await world.publish()
    attaching = asyncio.create_task(world.poll({"/a": 0}))
    await asyncio.sleep(0)
    assert await world.bus.end_polls("disconnect", client_id="c") == 1
    for _ in range(10):
        world.backend.permits.release()
    connection, transport = await attaching
    assert connection.state is State.CLOSED
    assert transport.frames[0] == []


async def test_a_command_of_another_process_ends_polls():
    here, there = World(), World()
    here.backend.permits = there.backend.permits = asyncio.Semaphore(100)
    await here.backend.open()
    there.bus.backend = here.backend  # one store for both
    connection, transport = await here.poll({"/a": -1})
    transport.frames.clear()
    assert await there.bus.end_polls("disconnect", client_id="c") == 0
    await asyncio.sleep(0)
    assert connection.state is State.CLOSED


async def test_its_own_command_ends_only_the_polls_of_its_time():
    world = World()
    world.backend.permits = asyncio.Semaphore(100)
    await world.backend.open()
    assert await world.bus.end_polls("disconnect", client_id="c") == 0
    connection, _ = await world.poll({"/a": -1})
    await asyncio.sleep(0)
    assert connection.state is State.PARKED


async def test_nonsense_on_the_control_channel_does_nothing():
    world = World()
    world.backend.permits = asyncio.Semaphore(100)
    await world.backend.open()
    connection, _ = await world.poll({"/a": -1})
    for data in (b"1", b"{}", b'{"op":"explode","origin":"x"}', b"[[]]"):
        await world.backend.publish(Publication("/__messagebusd_control", data))
    await asyncio.sleep(0)
    assert connection.state is State.PARKED


async def test_ids_that_begin_anew_everywhere_end_a_poll_that_catches_up():
    """What it has read may be of the ids before or of those after: its next poll reads all."""
    world = World()
    for _ in range(3):
        await world.publish()
    attaching = asyncio.create_task(world.poll({"/a": 0}))
    await asyncio.sleep(0)
    world.bus.restarted(["/a", "/b"])
    for _ in range(10):
        world.backend.permits.release()
    connection, transport = await attaching
    assert connection.state is State.CLOSED
    positions = {"/a": 2}
    assert follow(transport, positions) == []
    assert positions == {"/a": 0}


async def test_invalidating_forgets_before_it_ends_polls_here_and_elsewhere():
    here, there = World(), World()
    here.backend.permits = there.backend.permits = asyncio.Semaphore(100)
    await here.backend.open()
    there.bus.backend = here.backend  # one store for both
    connection, _ = await here.poll({"/a": -1})
    here.bus._forget = lambda *whom: here.forgotten.append((*whom, connection.state))
    await there.bus.end_polls("invalidate", site_id="s", user_id=7)
    await there.bus.end_polls("invalidate")
    await asyncio.sleep(0)
    assert there.forgotten == [(7, "s"), (None, None)]
    assert here.forgotten == [(7, "s", State.PARKED), (None, None, State.PARKED)]
    assert connection.state is State.CLOSED


async def test_disconnecting_forgets_nobody_and_missing_commands_everybody():
    world = World()
    world.backend.permits = asyncio.Semaphore(100)
    await world.backend.open()
    await world.bus.end_polls("disconnect", user_id=7)
    assert world.forgotten == []
    world.bus.interrupted()
    world.bus.restarted(["/a"])
    assert world.forgotten == [(None, None)] * 2


@pytest.mark.parametrize("is_immediate", [True, False])
async def test_of_messages_published_together_one_that_fails_stops_nobody(
    is_immediate, monkeypatch
):
    world = World()
    store, metrics = world.backend.publish, world.bus._metrics

    async def publish(publication, once=None):
        if publication.channel == "/away":
            raise StoreUnavailable("away")
        return await store(publication, once)

    monkeypatch.setattr(world.backend, "publish", publish)
    monkeypatch.setattr(world.backend, "is_immediate", is_immediate)
    channels = ("/a", "/away", "/a", "/b")
    outcomes = await world.bus.publish_all([(Publication(each, b"1"), None) for each in channels])
    assert [outcomes[at] for at in (0, 2, 3)] == [(1, 1, False), (2, 2, False), (1, 3, False)]
    assert isinstance(outcomes[1], StoreUnavailable)
    metrics.refresh()
    of_publishes = {"operation": "publish"}
    for name, value in (("store_seconds_count", 4), ("store_errors_total", 1)):
        found = metrics.registry.get_sample_value(f"messagebusd_{name}", of_publishes)
        assert found == value, name


async def test_of_messages_published_together_some_may_wait(monkeypatch):
    world = World(backend=MemoryBackend(Retention(), max_bytes=2**20))

    async def fail(publication, once=None):
        raise StoreUnavailable("away")

    waiting = Publication("/a", b"1", queue_in_memory=True)
    with monkeypatch.context() as patch:
        patch.setattr(world.backend, "publish", fail)
        outcomes = await world.bus.publish_all([(Publication("/a", b"0"), None), (waiting, None)])
    assert isinstance(outcomes[0], StoreUnavailable)
    assert outcomes[1] is None
    await world.bus.close(5)
    assert await world.backend.last_global_id() == 1
