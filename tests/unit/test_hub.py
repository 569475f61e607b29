"""Parked polls: who gets what, who replaces whom, and how each ends."""

from __future__ import annotations

import itertools
import json

import pytest

from messagebusd.connection import CloseReason, Connection, State
from messagebusd.hub import JITTER, LINGER_SECONDS, TICK_SECONDS, Hub
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire
from messagebusd.protocol.channels import qualify, unqualify
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.requests import Mode
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

INTERVAL = 25.0


class Observer:
    def __init__(self):
        self.ended = []
        self.written = 0
        self.withheld = 0

    def poll_ended(self, mode, reason):
        self.ended.append((mode, reason))

    def dispatched(self, delivery):
        self.written += delivery.written
        self.withheld += delivery.withheld


class World:
    """A hub with a clock that stands still and polls that write to memory."""

    def __init__(self, **options):
        self.clock = FakeClock()
        self.observer = Observer()
        self.hub = Hub(
            self.clock,
            self.observer,
            interval=INTERVAL,
            max_active_clients=options.pop("max_active_clients", 1000),
            max_client_buffer=options.pop("max_client_buffer", 1000),
            jitter=options.pop("jitter", lambda: 0.0),
            **options,
        )
        self._ids = {}
        self._global_id = itertools.count(1)

    def connect(self, *channels, client="c", seq=0, mode=Mode.STREAM, viewer=None):
        viewer = viewer or Identity()
        stored = tuple(qualify(each, viewer.site_id) for each in channels)
        connection = Connection(self.hub, viewer, client, seq, mode, stored, wire.poll_headers())
        self.hub.add(connection)
        return connection

    def park(self, *channels, **options):
        connection = self.connect(*channels, **options)
        connection.settle(dict.fromkeys(connection.channels, 0))
        connection.park(RecordingTransport(), self.clock.now)
        self.hub.park(connection)
        return connection

    def message(self, channel, audience=None, site=None, data=b"1"):
        stored = qualify(channel, site)
        self._ids[stored] = self._ids.get(stored, 0) + 1
        return Message(
            next(self._global_id), self._ids[stored], stored, *unqualify(stored), data, audience
        )

    def publish(self, channel, **options):
        message = self.message(channel, **options)
        self.hub.dispatch([message])
        return message

    def assert_empty_after(self, connection):
        connection.connection_lost(None)
        self.assert_empty()

    @property
    def reasons(self):
        return [reason for _, reason in self.observer.ended]

    def assert_empty(self):
        """Nothing is left of anybody (REFERENCE L11)."""
        hub = self.hub
        assert (hub._index, hub._buckets, hub._lingering) == ({}, {}, {})
        assert hub._catching_up == set()
        assert (len(hub._people), hub._people._clients, hub._people._sites) == (0, {}, {})


def messages(connection):
    """(channel, message id) of everything written to a stream."""
    return [
        (each["channel"], each["message_id"])
        for frame in connection.transport.frames
        for each in frame
    ]


@pytest.fixture
def world():
    return World()


# -- delivering


def test_a_stream_gets_each_message_as_one_frame_in_one_write(world):
    poll = world.park("/a", "/b")
    world.publish("/a")
    world.publish("/b")
    world.publish("/c")
    assert messages(poll) == [("/a", 1), ("/b", 1)]
    assert len(poll.transport.writes) == 2
    assert world.observer.written == 2


def test_messages_of_one_turn_share_a_frame_per_channel(world):
    poll = world.park("/a", "/b")
    world.hub.dispatch([world.message(each) for each in ("/a", "/b", "/a")])
    assert [[each["message_id"] for each in frame] for frame in poll.transport.frames] == [
        [1, 2],
        [1],
    ]


def test_a_long_poll_ends_with_its_first_message(world):
    poll = world.park("/a", mode=Mode.LONG_POLL)
    transport = poll.transport
    world.publish("/a")
    world.publish("/a")
    (answer,) = transport.writes
    head, _, body = answer.partition(b"\r\n\r\n")
    assert [each["message_id"] for each in json.loads(body)] == [1]
    assert b"connection: close" in head
    assert transport.closed
    assert world.observer.ended == [(Mode.LONG_POLL, CloseReason.ANSWERED)]


def test_global_channels_are_live_on_every_site(world):
    polls = [
        world.park("/global/a", client=f"c{number}", viewer=Identity(site_id=site))
        for number, site in enumerate([None, "s", "t"])
    ]
    world.publish("/global/a", site="s")
    assert [messages(each) for each in polls] == [[("/global/a", 1)]] * 3


def test_sites_hear_only_themselves(world):
    here = world.park("/a", viewer=Identity(site_id="s"))
    there = world.park("/a", viewer=Identity(site_id="t"))
    nowhere = world.park("/a")
    world.publish("/a", site="s")
    assert [messages(each) for each in (here, there, nowhere)] == [[("/a", 1)], [], []]


def test_only_the_audience_gets_a_message(world):
    ada = world.park("/a", client="1", viewer=Identity(user_id=1))
    bob = world.park("/a", client="2", viewer=Identity(user_id=2, group_ids=frozenset({"g"})))
    world.publish("/a", audience=Audience([1]))
    world.publish("/a", audience=Audience(None, ["g"]))
    world.publish("/a", audience=Audience(None, None, ["2"]))
    assert (messages(ada), messages(bob)) == ([("/a", 1)], [("/a", 2), ("/a", 3)])
    assert (world.observer.written, world.observer.withheld) == (3, 3)


def test_of_a_mixed_turn_everybody_gets_his_part(world):
    ada = world.park("/a", client="1", viewer=Identity(user_id=1))
    bob = world.park("/a", client="2", viewer=Identity(user_id=2))
    world.hub.dispatch(
        [world.message("/a"), world.message("/a", Audience([1])), world.message("/a")]
    )
    assert messages(ada) == [("/a", 1), ("/a", 2), ("/a", 3)]
    assert messages(bob) == [("/a", 1), ("/a", 3)]


# -- the last frame


def test_withheld_messages_end_in_a_status(world):
    poll = world.park("/a", "/b", viewer=Identity(site_id="s"))
    transport = poll.transport
    for channel in ("/a", "/a", "/b"):
        world.publish(channel, audience=Audience([9]), site="s")
    world.publish("/b", site="s")
    poll.close(CloseReason.ENDED)
    assert transport.frames[-1] == [
        {"global_id": -1, "message_id": -1, "channel": "/__status", "data": {"/a": 2}}
    ]
    assert transport.writes[-1].endswith(b"\r\n|\r\n\r\n0\r\n\r\n")


def test_a_long_poll_ends_in_a_status_too(world):
    poll = world.park("/a", mode=Mode.LONG_POLL)
    transport = poll.transport
    world.publish("/a", audience=Audience([9]))
    world.clock.advance(INTERVAL + 1)
    assert json.loads(transport.writes[0].partition(b"\r\n\r\n")[2])[0]["data"] == {"/a": 1}


def test_a_turn_that_ends_with_a_withheld_message_moves_the_position(world):
    poll = world.park("/a")
    transport = poll.transport
    world.hub.dispatch([world.message("/a"), world.message("/a", Audience([9]))])
    poll.close(CloseReason.ENDED)
    assert transport.frames[-1][0]["data"] == {"/a": 2}


# -- deadlines


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_polls_end_at_their_deadline_and_never_late(jitter):
    world = World(jitter=lambda: jitter)
    poll = world.park("/a")
    transport = poll.transport
    earliest = INTERVAL * (1 - JITTER * jitter)
    world.clock.advance(earliest - 0.001)
    assert not transport.closed
    world.clock.advance(TICK_SECONDS + 0.002)
    assert transport.closed
    assert transport.writes == [wire.EMPTY_FRAME + wire.LAST_CHUNK]
    assert world.reasons == [CloseReason.DEADLINE]


def test_one_timer_serves_all_polls(world):
    for number in range(100):
        world.park("/a", client=str(number))
        world.clock.advance(0.01)
    assert world.clock.scheduled == 1
    world.clock.advance(INTERVAL + 1)
    assert world.hub.parked == 0
    assert world.reasons == [CloseReason.DEADLINE] * 100


def test_nothing_is_scheduled_for_nobody(world):
    poll = world.park("/a")
    poll.connection_lost(None)
    world.clock.advance(INTERVAL + 1)
    assert world.clock.scheduled == 0
    world.assert_empty()


# -- superseding (SPEC 2.7)


@pytest.mark.parametrize(
    ("first", "second", "newer_stays"), [(1, 2, True), (1, 1, True), (2, 1, False), (0, 0, True)]
)
def test_the_higher_or_equal_seq_stays(world, first, second, newer_stays):
    old = world.park("/a", seq=first)
    old_transport = old.transport
    new = world.connect("/a", seq=second)
    new.settle({"/a": 0})
    new_transport = RecordingTransport()
    new.park(new_transport, 0)
    world.hub.park(new)
    assert (old.state, new.state) == (
        (State.CLOSED, State.PARKED) if newer_stays else (State.PARKED, State.CLOSED)
    )
    ended = old_transport if newer_stays else new_transport
    assert ended.writes == [wire.EMPTY_FRAME + wire.LAST_CHUNK]
    assert world.reasons == [CloseReason.SUPERSEDED]
    assert world.hub.parked == 1


def test_cleanup_of_a_replaced_poll_leaves_the_newer_one_alone(world):
    """By object, never by id: a late goodbye made the newer poll deaf (REFERENCE H19)."""
    old = world.park("/a", seq=1)
    new = world.park("/a", seq=2)
    old.connection_lost(None)
    old.close(CloseReason.DEADLINE)
    world.clock.advance(INTERVAL / 2)
    world.publish("/a")
    assert messages(new) == [("/a", 1)]


@pytest.mark.parametrize(
    "other", [Identity(user_id=2), Identity(), Identity(user_id=1, site_id="s"), Identity("1")]
)
def test_nobody_takes_over_a_client_id(world, other):
    mine = world.park("/a", viewer=Identity(user_id=1), seq=1)
    theirs = world.park("/a", viewer=other, seq=99)
    assert (mine.state, theirs.state) == (State.PARKED, State.PARKED)


# -- slow and lost readers


def test_a_slow_reader_is_ended_before_more_is_written(world):
    slow, quick = world.park("/a", client="slow"), world.park("/a", client="quick")
    transport = slow.transport
    transport.unsent = 1001
    world.publish("/a")
    assert transport.writes == [wire.EMPTY_FRAME + wire.LAST_CHUNK]
    assert transport.closed
    assert world.reasons == [CloseReason.SLOW]
    assert messages(quick) == [("/a", 1)]


def test_readers_are_watched_at_every_message(world):
    slow, dead, quick = (world.park("/a", client=each) for each in ("slow", "dead", "quick"))
    world.publish("/a")
    slow.transport.unsent, dead.transport.closed = 1001, True
    world.publish("/a")
    assert world.reasons == [CloseReason.SLOW]
    assert messages(quick) == [("/a", 1), ("/a", 2)]
    assert [len(each.transport.frames) for each in (slow, dead)] == [2, 1]
    assert world.observer.written == 3 + 1


def test_a_slow_reader_is_not_told_to_skip_what_it_was_not_sent(world):
    slow = world.park("/a")
    transport = slow.transport
    world.publish("/a", audience=Audience([9]))
    transport.unsent = 1001
    world.hub.dispatch([world.message("/a"), world.message("/a", Audience([9]))])
    assert transport.frames == [
        [{"global_id": -1, "message_id": -1, "channel": "/__status", "data": {"/a": 1}}]
    ]


def test_a_large_first_frame_is_not_slowness(world):
    poll = world.park("/a")
    poll.allowance = 5000
    poll.transport.unsent = 5500
    world.publish("/a")
    assert messages(poll) == [("/a", 1)]


def test_whoever_never_reads_the_end_is_reset(world):
    poll = world.park("/a")
    transport = poll.transport
    poll.close(CloseReason.ENDED)
    world.clock.advance(LINGER_SECONDS - 0.1)
    assert not transport.aborted
    world.clock.advance(0.2)
    assert transport.aborted
    poll.connection_lost(None)
    world.assert_empty()


def test_whoever_reads_the_end_slowly_is_given_time(world):
    poll = world.park("/a")
    transport = poll.transport
    transport.unsent = 5000
    poll.close(CloseReason.ENDED)
    for _ in range(5):
        transport.unsent -= 1000
        world.clock.advance(LINGER_SECONDS)
        assert not transport.aborted
    world.clock.advance(LINGER_SECONDS)
    assert transport.aborted


def test_a_write_to_a_dead_connection_stops_nobody_else(world):
    dead, alive = world.park("/a", client="dead"), world.park("/a", client="alive")
    dead.transport.closed = True
    world.publish("/a")
    assert messages(alive) == [("/a", 1)]
    dead.close(CloseReason.DEADLINE)
    assert dead.state is State.CLOSED


def test_a_dead_long_poll_is_forgotten(world):
    dead = world.park("/a", mode=Mode.LONG_POLL)
    dead.transport.closed = True
    world.publish("/a")
    assert dead.state is State.CLOSED
    assert world.observer.written == 0


def test_closing_twice_is_harmless(world):
    poll = world.park("/a")
    transport = poll.transport
    poll.close(CloseReason.ENDED)
    poll.close(CloseReason.DEADLINE)
    poll.connection_lost(None)
    poll.connection_lost(None)
    assert len(transport.writes) == 1
    assert world.reasons == [CloseReason.ENDED]
    world.assert_empty()


# -- catching up


def test_live_messages_wait_while_a_poll_catches_up(world):
    poll = world.connect("/a")
    read = world.publish("/a")
    unread = world.publish("/a")
    hidden = world.publish("/a", audience=Audience([9]))
    assert poll.settle({"/a": read.message_id}) == [unread]
    transport = RecordingTransport()
    poll.park(transport, 0)
    world.hub.park(poll)
    poll.close(CloseReason.ENDED)
    assert transport.frames[-1][0]["data"] == {"/a": hidden.message_id}


def test_what_waits_is_bounded(world):
    poll = world.connect("/a")
    for _ in range(3):
        world.publish("/a", data=b'"%b"' % (b"x" * 400))
    assert poll.overflowed
    assert poll.settle({"/a": 0}) == []


def test_an_unanswered_poll_leaves_nothing_behind(world):
    poll = world.connect("/a")
    world.hub.remove_unanswered(poll)
    world.hub.remove_unanswered(poll)
    world.publish("/a")
    world.assert_empty()
    assert world.observer.ended == []


# -- breaks in what the store announces


def test_channels_are_those_of_polls_and_feeds(world):
    world.park("/a", "/b")
    world.connect("/c")
    world.hub.add_feed(object(), frozenset({"/d", "/a"}))
    world.hub.add_feed(object(), None)
    assert world.hub.channels() == {"/a", "/b", "/c", "/d"}


def test_streams_are_told_that_ids_began_anew(world):
    poll, other = world.park("/a", "/b", client="1"), world.park("/c", client="2")
    world.hub.restarted(["/a", "/b", "/x"])
    assert poll.transport.frames[-1][0]["data"] == {"/a": 0, "/b": 0}
    assert poll.state is State.PARKED
    assert other.transport.frames == []
    world.publish("/a")
    poll.close(CloseReason.DEADLINE)
    # The message is newer than what was told of /a.
    assert [each["data"] for each in poll.transport.frames[-1]] == [{"/b": 0}]


def test_a_long_poll_is_answered_when_ids_began_anew(world):
    poll = world.park("/a", mode=Mode.LONG_POLL)
    world.hub.restarted(["/a"])
    assert b'"channel":"/__status","data":{"/a":0}' in poll.transport.writes[-1]
    world.assert_empty_after(poll)


def test_a_poll_that_catches_up_is_cut_short(world):
    poll = world.connect("/a")
    world.hub.restarted(["/a"])
    assert poll.is_cut_short
    assert poll.withheld_status() == {"/a": 0}


def test_feeds_are_told_of_breaks_as_far_as_they_are_concerned(world):
    told = []

    class Feed:
        def __init__(self, name):
            self.name = name

        def interrupt(self):
            told.append((self.name, "interrupt"))

        def restart(self):
            told.append((self.name, "restart"))

    for name, channels in (("a", frozenset({"/a"})), ("b", frozenset({"/b"})), ("all", None)):
        world.hub.add_feed(Feed(name), channels)
    world.hub.restarted(["/a", "/c"])
    world.hub.interrupted()
    assert told == [("a", "restart"), ("all", "interrupt")]


# -- the whole


def test_room(world):
    world.hub.max_active_clients = 1
    assert world.hub.has_room
    poll = world.park("/a")
    assert not world.hub.has_room
    poll.connection_lost(None)
    assert world.hub.has_room


def test_draining_tells_when_everybody_has_gone(world):
    told = []
    poll = world.park("/a")
    world.hub.when_empty(lambda: told.append(True))
    assert world.hub.close_matching(lambda each: each.client_id == "c") == 1
    assert told == []
    poll.connection_lost(None)
    assert told == [True]
    World().hub.when_empty(lambda: told.append(True))
    assert told == [True, True]


@pytest.mark.parametrize("number", [10, 1000])
def test_ending_somebodys_polls_looks_at_nobody_elses(number):
    world = World()
    polls = [
        world.park("/a", client=f"c{n}", viewer=Identity(n, site_id=f"s{n % 2}"))
        for n in range(number)
    ]
    looked_at = []

    def matches(each):
        looked_at.append(each)
        return True

    assert world.hub.close_matching(matches, client_id="c1") == 1
    assert world.hub.close_matching(matches, user_id=2) == 1
    assert world.hub.close_matching(matches, user_id="3") == 0
    assert world.hub.close_matching(matches, client_id="c1") == 0
    assert looked_at == polls[1:3]


def test_feeds_get_everything_they_asked_for(world):
    class Feed:
        def __init__(self):
            self.got = []
            self.ended = False

        def offer(self, news):
            self.got += [(each.stored_channel, each.message_id) for each in news]

        def end(self):
            self.ended = True

    everything, some = Feed(), Feed()
    world.hub.add_feed(everything, None)
    world.hub.add_feed(some, frozenset({"/a"}))
    world.publish("/a", audience=Audience([9]))
    world.publish("/b")
    world.hub.end_feeds()
    world.hub.remove_feed(everything)
    world.publish("/a")
    assert everything.got == [("/a", 1), ("/b", 1)]
    assert some.got == [("/a", 1), ("/a", 2)]
    assert (everything.ended, some.ended) == (True, True)


# -- identities that end


@pytest.mark.parametrize("seconds", [0.0, 0.04, 1.0, 1.234, INTERVAL - 0.01])
def test_a_poll_ends_with_its_identity(world, seconds):
    poll = world.connect("/a")
    poll.settle({"/a": 0})
    poll.park(RecordingTransport(), world.clock.now)
    until = world.clock.now + seconds
    world.hub.park(poll, until)
    world.clock.advance(max(0.0, seconds - 1.5 * TICK_SECONDS))
    if seconds > 1.5 * TICK_SECONDS:
        world.publish("/a")
        assert messages(poll) == [("/a", 1)]
    world.clock.advance(until - world.clock.now)  # not a tick later
    assert world.reasons == [CloseReason.DEADLINE]
    count = len(poll.transport.writes)
    world.publish("/a")
    assert len(poll.transport.writes) == count
    world.assert_empty_after(poll)


def test_an_identity_that_has_ended_sees_nothing_more(world):
    poll = world.connect("/a")
    poll.settle({"/a": 0})
    poll.park(RecordingTransport(), world.clock.now)
    world.hub.park(poll, world.clock.now - 60)
    world.clock.advance(0)
    assert world.reasons == [CloseReason.DEADLINE]
    world.assert_empty_after(poll)


def test_an_identity_that_stays_changes_no_deadline(world):
    for until in (world.clock.now + INTERVAL, world.clock.now + 1e9):
        poll = world.connect("/a", client=str(until))
        poll.settle({"/a": 0})
        poll.park(RecordingTransport(), world.clock.now)
        world.hub.park(poll, until)
    world.clock.advance(INTERVAL - TICK_SECONDS)
    assert world.reasons == []
    world.clock.advance(TICK_SECONDS)
    assert world.reasons == [CloseReason.DEADLINE] * 2
