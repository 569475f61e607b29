"""A fan-out in slices: whatever comes in between, nothing is lost, doubled or out of order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd import fanout
from messagebusd.connection import CloseReason, Connection, State
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.requests import Mode
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

SLICE = 2
MAX_BUFFER = 100_000
CHANNELS = ("/a", "/b")


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(fanout, "SLICE", SLICE)
    monkeypatch.setattr(fanout, "MAX_WAITING_MESSAGES", 6)


class Observer:
    def __init__(self):
        self.written = self.withheld = self.deliveries = 0

    def poll_ended(self, mode, reason):
        pass

    def dispatched(self, delivery):
        self.deliveries += 1
        self.written += delivery.written
        self.withheld += delivery.withheld


class Store:
    """What was published, and the worker that hears of it."""

    def __init__(self):
        self.clock = FakeClock()
        self.observer = Observer()
        self.hub = Hub(
            self.clock,
            self.observer,
            interval=1000,
            max_active_clients=100,
            max_client_buffer=MAX_BUFFER,
            jitter=lambda: 0.0,
        )
        self.backlogs = {channel: [] for channel in CHANNELS}
        self.published = []
        self.global_ids = itertools.count(1)

    def publish(self, news):
        batch = []
        for channel, audience in news:
            backlog = self.backlogs[channel]
            global_id, message_id = next(self.global_ids), len(backlog) + 1
            message = Message(global_id, message_id, channel, channel, None, b"1", audience)
            backlog.append(message)
            batch.append(message)
        self.published += batch
        self.hub.dispatch(batch)

    def restart(self):
        self.backlogs = {channel: [] for channel in CHANNELS}
        self.published.clear()
        self.hub.restarted(CHANNELS)


class Client:
    """Polls as message-bus.js does, and remembers what it was given by global id."""

    def __init__(self, store, number):
        self.store = store
        self.viewer = Identity(number)
        self.client_id = f"c{number}"
        self.seq = 0
        self.positions = dict.fromkeys(CHANNELS, 0)
        self.got = []
        self.connection = self.transport = self.read = None

    @property
    def is_parked(self):
        return self.transport is not None and self.connection.state is State.PARKED

    def connect(self, mode):
        self.seq += 1
        self.connection = Connection(
            self.store.hub, self.viewer, self.client_id, self.seq, mode, CHANNELS, ()
        )
        self.transport = self.read = None
        self.store.hub.add(self.connection)

    def look(self):
        """Read the backlogs: messages, a status, and the global id up to which all was read."""
        messages, status = [], {}
        for channel, backlog in self.store.backlogs.items():
            newer = backlog[self.positions[channel] :]
            visible = [each for each in newer if self.connection.may_see(each)]
            messages += visible
            if len(visible) < len(newer):
                status[channel] = len(backlog)
        last = max((each.global_id for each in self.store.published), default=0)
        self.read = messages, status, last

    def park(self):
        """Settle what came in meanwhile; a long poll that has news is answered."""
        messages, status, last = self.read
        for message in self.connection.settle(dict.fromkeys(CHANNELS, last)):
            messages.append(message)
            status.pop(message.channel, None)
        self.transport = RecordingTransport()
        encoded = [each.encoded for each in messages]
        if status:
            encoded.append(wire.status_message(status))
        mode = self.connection.mode
        self.connection.park(self.transport, 0.0)
        if mode is Mode.STREAM:
            self.transport.write(wire.frame(wire.array(encoded)))
        elif encoded:
            self.connection.answer(wire.array(encoded))
            return
        self.store.hub.park(self.connection)

    def follow(self):
        """Take in everything that came over a connection that has ended."""
        stream = self.connection.mode is Mode.STREAM
        for frame in self.transport.frames if stream else self.transport.answers:
            for message in frame:
                if message["channel"] == "/__status":
                    self.positions.update(message["data"])
                else:
                    self.positions[message["channel"]] = message["message_id"]
                    self.got.append(message["global_id"])
        self.transport = self.connection = None


def follow(clients):
    """Let those whose polls have ended take that in."""
    for client in clients:
        if client.transport is not None and not client.is_parked:
            client.follow()


audiences = st.none() | st.builds(Audience, st.lists(st.integers(0, 6), max_size=5))
news = st.lists(st.tuples(st.sampled_from(CHANNELS), audiences), min_size=1, max_size=3)
CLIENTS = 6
actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), news),
        st.tuples(st.just("publish"), news),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(
            st.sampled_from(["go on", "go on", "close", "lose", "slow", "again"]),
            st.integers(0, CLIENTS - 1),
        ),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    min_size=20,
    max_size=60,
)
modes = st.sampled_from([Mode.STREAM, Mode.STREAM, Mode.STREAM, Mode.LONG_POLL])


@given(actions=actions, polling=st.lists(modes, min_size=CLIENTS, max_size=CLIENTS))
def test_everybody_gets_everything_once_in_order(actions, polling):
    store = Store()
    clients = [Client(store, number) for number in range(CLIENTS)]
    replaced = []
    for client, mode in zip(clients, polling, strict=True):  # most are there from the start
        client.connect(mode)
        client.look()
        client.park()
    for action, what in actions:
        client = clients[what] if isinstance(what, int) else None
        match action:
            case "publish":
                store.publish(what)
            case "turn":
                store.clock.turn()
            case "go on" if client.connection is None:
                client.connect(polling[what])
            case "go on" if client.transport is None and client.read is None:
                client.look()
            case "go on" if client.transport is None:
                client.park()
            case "close" if client.is_parked:
                client.connection.close(CloseReason.DEADLINE)
            case "lose" if client.is_parked:
                client.connection.connection_lost(None)
            case "slow" if client.is_parked:
                client.transport.unsent = MAX_BUFFER + 1
            case "again" if client.is_parked:  # a new poll while the old one is still there
                replaced.append(client.connection)
                client.follow()
                client.connect(polling[what])
                client.look()
                client.park()
            case "restart":
                store.restart()
                follow(clients)
                for each in clients:
                    if each.connection is not None and each.connection.is_cut_short:
                        store.hub.remove_unanswered(each.connection)
                        each.connection = each.read = None
                    if each.connection is None:  # would be told when it comes
                        each.positions = dict.fromkeys(CHANNELS, 0)
        follow(clients)
    while store.clock.due:
        store.clock.turn()
    follow(clients)
    last_ids = {channel: len(backlog) for channel, backlog in store.backlogs.items()}
    for client in clients:
        if client.is_parked:
            # All caught up, but for a slow reader: its last frame leaves nothing to ask for.
            slow = client.transport.unsent
            client.connection.close(CloseReason.DEADLINE)
            client.follow()
            assert slow or client.positions == last_ids
        elif client.connection is not None:
            store.hub.remove_unanswered(client.connection)
        client.connect(Mode.STREAM)
        client.look()
        client.park()
        client.connection.close(CloseReason.DEADLINE)
        client.follow()
        assert client.positions == last_ids
        for channel in CHANNELS:
            backlog = store.backlogs[channel]
            ours = [each.global_id for each in backlog if may_see(client, each)]
            known = {each.global_id for each in backlog}
            assert [each for each in client.got if each in known] == ours
        assert len(set(client.got)) == len(client.got)
    for connection in replaced:
        connection.close(CloseReason.ENDED)
    hub = store.hub
    assert (hub._index, hub._buckets, hub._catching_up) == ({}, {}, set())


def may_see(client, message):
    return message.audience is None or client.viewer.user_id in message.audience.user_ids


# -- between two slices


def crowd(store, size=5, mode=Mode.STREAM):
    clients = [Client(store, number) for number in range(size)]
    for client in clients:
        client.connect(mode)
        client.look()
        client.park()
    return clients


def close(client):
    """End a poll; what its last frame said."""
    transport = client.transport
    client.connection.close(CloseReason.DEADLINE)
    return transport.frames[-1]


def test_a_status_is_as_new_as_what_was_shown_already():
    store = Store()
    first, *_, last = crowd(store)
    store.publish([("/a", Audience([99]))])
    store.publish([("/a", None)])
    assert close(first) == []
    assert [each["data"] for each in close(last)] == [{"/a": 1}]


def test_a_status_never_skips_what_has_yet_to_come():
    store = Store()
    first, *_, last = crowd(store)
    store.publish([("/a", None), ("/a", Audience([99]))])
    assert [each["data"] for each in close(first)] == [{"/a": 2}]
    assert close(last) == []


def test_a_message_for_nobody_here_fails_nothing(caplog):
    store = Store()
    first, *_ = crowd(store)
    store.publish([("/a", Audience([99]))])
    assert caplog.records == []
    assert [each["data"] for each in close(first)] == [{"/a": 1}]


def test_a_slice_is_all_that_one_turn_takes():
    store = Store()
    clients = crowd(store, 7)
    store.publish([("/a", None)])
    served = []
    while True:
        served.append(sum(len(each.transport.frames) == 2 for each in clients))
        if not store.clock.due:
            break
        store.clock.turn()
    assert served == [2, 4, 6, 7]


def test_what_comes_meanwhile_leaves_in_one_frame():
    store = Store()
    clients = crowd(store)
    for _ in range(4):
        store.publish([("/a", None)])
    while store.clock.due:
        store.clock.turn()
    for client in clients:
        frames = [[each["message_id"] for each in frame] for frame in client.transport.frames[1:]]
        assert frames == [[1], [2, 3, 4]]
    assert store.observer.written == 4 * len(clients)


def test_channels_take_turns():
    store = Store()
    clients = crowd(store, 9)
    store.publish([("/a", None), ("/b", None)])
    store.clock.turn()
    store.clock.turn()
    got = [
        each["channel"] for client in clients for frame in client.transport.frames for each in frame
    ]
    assert (got.count("/a"), got.count("/b")) == (4, 2)


def test_publishers_that_are_faster_than_the_writes_have_to_wait():
    store = Store()
    clients = crowd(store)
    for _ in range(30):
        store.publish([("/a", None)])
    waiting = store.hub._index["/a"].waiting
    assert waiting is None or len(waiting.messages) <= fanout.MAX_WAITING_MESSAGES
    while store.clock.due:
        store.clock.turn()
    for client in clients:
        got = [each["message_id"] for frame in client.transport.frames for each in frame]
        assert got == list(range(1, 31))


def test_nothing_is_served_after_the_end():
    store = Store()
    crowd(store)
    store.publish([("/a", None)])
    store.hub.close_matching(lambda _: True, CloseReason.DRAINED)
    store.hub.abort()
    assert store.clock.scheduled == 0
    assert store.hub.parked == 0


def test_filters_apply_to_what_waits():
    """A filter that was declared while a fan-out is under way holds for what comes next."""

    class Nothing:
        def concerns(self, channel):
            return True

        def allow(self, message, viewer, client_id):
            return False

    store = Store()
    clients = crowd(store)
    store.publish([("/a", None)])
    store.hub.filters = Nothing()
    store.publish([("/a", None)])
    while store.clock.due:
        store.clock.turn()
    for client in clients[:SLICE]:
        assert [each["data"] for each in close(client)] == [{"/a": 2}]


def test_a_delivery_that_fails_does_not_silence_its_channel(caplog):
    """Nobody knows what those of the slice were sent: they come back with their positions."""

    class Broken(RecordingTransport):
        def write(self, data):
            raise OSError("broken")

    store = Store()
    clients = crowd(store)
    clients[0].connection.transport = Broken()
    store.publish([("/a", None)])
    while store.clock.due:
        store.clock.turn()
    store.publish([("/a", None)])
    while store.clock.due:
        store.clock.turn()
    assert [each.connection.transport.is_closing() for each in clients] == [True] * 2 + [False] * 3
    for client in clients[SLICE:]:
        assert [len(frame) for frame in client.transport.frames] == [0, 1, 1]
    assert "its recipients are reset" in caplog.text
