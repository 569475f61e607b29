"""Who gets what, however it is found and in however many slices, against a model.

The model is the rule itself: walk over all polls, ask each whether it may see the message, note for
each what was kept from it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.connection import CloseReason, Connection, State
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.people import People
from messagebusd.protocol import wire
from messagebusd.protocol.channels import qualify, unqualify
from messagebusd.protocol.message import Audience, Message
from messagebusd.protocol.requests import Mode
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

MAX_BUFFER = 100_000
CHANNELS = ("/a", "/b", "/global/c")
USERS = (None, 1, 2, "1")
GROUPS = (frozenset(), frozenset({1}), frozenset({1, "1"}), frozenset({2}))
SITES = (None, "s")

viewers = st.builds(
    Identity,
    user_id=st.sampled_from(USERS),
    group_ids=st.sampled_from(GROUPS),
    site_id=st.sampled_from(SITES),
)
# Stored messages of other publishers may name anything.
ids = st.lists(st.sampled_from([1, 2, "1", "2", -1, True, 1.0]), max_size=3)
clients = st.lists(st.sampled_from(["c0", "c1", "c2", 1]), max_size=3)
audiences = st.builds(Audience, st.none() | ids, st.none() | ids, st.none() | clients)


class Observer:
    def __init__(self):
        self.written = self.withheld = 0

    def poll_ended(self, mode, reason):
        pass

    def dispatched(self, delivery):
        self.written += delivery.written
        self.withheld += delivery.withheld


class OddOnly:
    """A filter on one channel: messages with an even id are withheld from clients but c1."""

    def concerns(self, channel):
        return channel == "/b"

    def allow(self, message, viewer, client_id):
        return not self.concerns(message.channel) or message.message_id % 2 or client_id == "c1"


def may_see(viewer, client_id, message):
    """The rule, in the simplest words."""

    def named(own, listed):
        return any(type(each) is type(own) and each == own for each in listed)

    audience = message.audience
    if audience is not None:
        if audience.client_ids is not None and not named(client_id, audience.client_ids):
            return False
        if audience.user_ids is not None or audience.group_ids is not None:
            groups = (named(each, audience.group_ids or ()) for each in viewer.group_ids)
            if not named(viewer.user_id, audience.user_ids or ()) and not any(groups):
                return False
    return bool(OddOnly().allow(message, viewer, client_id))


class Poll:
    """A poll, and beside it what the model says that its client is told."""

    def __init__(self, hub, viewer, client_id, mode, channels):
        self.viewer, self.client_id, self.mode = viewer, client_id, mode
        stored = tuple(qualify(each, viewer.site_id) for each in channels)
        self.connection = Connection(hub, viewer, client_id, 0, mode, stored, wire.poll_headers())
        self.transport = RecordingTransport()
        self.state = State.CATCHING_UP
        self.pending = []
        self.withheld = {}
        self.told = []
        self.written = self.kept = 0

    def sees(self, message):
        return may_see(self.viewer, self.client_id, message)

    def settle(self, read_to):
        visible = []
        for message in self.pending:
            if message.global_id <= read_to:
                continue
            if self.sees(message):
                visible.append(message)
                self.withheld.pop(message.stored_channel, None)
            else:
                self.withheld[message.stored_channel] = message.message_id
        self.state = State.PARKED
        return visible

    def deliver(self, channel, news):
        if self.state is State.CATCHING_UP:
            self.pending += news
        if self.state is not State.PARKED:
            return
        seen = [each for each in news if self.sees(each)]
        self.kept += len(news) - len(seen)
        if not seen:
            self.withheld[channel] = news[-1].message_id
            return
        if self.transport.unsent > MAX_BUFFER and self.mode is Mode.STREAM:
            self.close()
            return
        self.told.append([(each.channel, each.message_id) for each in seen])
        self.written += len(seen)
        if self.mode is Mode.LONG_POLL:
            self.state = State.CLOSED
        elif seen[-1] is news[-1]:
            self.withheld.pop(channel, None)
        else:
            self.withheld[channel] = news[-1].message_id

    def restart(self, channels):
        ours = [each for each in channels if each in self.connection.channels]
        if not ours or self.state is State.CLOSED:
            return
        if self.state is State.PARKED:
            if self.transport.unsent > MAX_BUFFER and self.mode is Mode.STREAM:
                self.close()
                return
            self.told.append([dict.fromkeys((unqualify(each)[0] for each in ours), 0)])
            if self.mode is Mode.LONG_POLL:
                self.state = State.CLOSED
        else:
            self.state = State.CLOSED  # the door answers it at once
        self.withheld.update(dict.fromkeys(ours, 0))

    def close(self):
        if self.state is State.PARKED:
            status = {unqualify(name)[0]: at for name, at in self.withheld.items()}
            self.told.append([status] if status else [])
        self.state = State.CLOSED

    def park(self, hub, read_to):
        connection = self.connection
        expected = self.settle(read_to)
        assert connection.settle(dict.fromkeys(connection.channels, read_to)) == expected
        connection.park(self.transport, 0.0)
        hub.park(connection)

    def check(self):
        """The client was told what the model says, neither more nor less."""
        assert said(self.transport) == self.told
        assert (self.connection.state is State.PARKED) == (self.state is State.PARKED)


def said(transport):
    """All that was written, as the model writes it down."""
    bodies = transport.answers if transport.writes[:1] and b"HTTP/" in transport.writes[0] else None
    return [
        [
            each["data"]
            if each["channel"] == "/__status"
            else (each["channel"], each["message_id"])
            for each in frame
        ]
        for frame in (transport.frames if bodies is None else bodies)
    ]


def make_hub(observer=None, filters=None):
    return Hub(
        FakeClock(),
        observer or Observer(),
        interval=1000,
        max_active_clients=1000,
        max_client_buffer=MAX_BUFFER,
        filters=filters,
        jitter=lambda: 0.0,
    )


def step(**arguments):
    return st.fixed_dictionaries(arguments)


numbers = st.integers(0, 5)
news = st.lists(
    st.tuples(st.sampled_from(CHANNELS), st.sampled_from(SITES), st.none() | audiences),
    min_size=1,
    max_size=4,
)
steps = st.lists(
    st.one_of(
        step(
            do=st.just("connect"),
            viewer=viewers,
            mode=st.sampled_from([Mode.STREAM, Mode.STREAM, Mode.LONG_POLL]),
            channels=st.sets(st.sampled_from(CHANNELS), min_size=1).map(sorted),
            at_once=st.booleans(),
        ),
        step(do=st.just("park"), poll=numbers, lag=st.integers(0, 3)),
        step(do=st.just("publish"), news=news),
        step(do=st.just("publish"), news=news),
        step(do=st.just("close"), poll=numbers),
        step(do=st.just("slow"), poll=numbers),
        step(do=st.just("restart"), channel=st.sampled_from(CHANNELS)),
    ),
    min_size=10,
    max_size=40,
)


@given(steps=steps)
def test_everybody_is_told_what_the_rule_says(steps):
    observer = Observer()
    hub = make_hub(observer, OddOnly())
    polls = []
    last_ids = defaultdict(int)
    global_ids = itertools.count(1)
    last = 0
    for each in steps:
        poll = polls[each["poll"] % len(polls)] if "poll" in each and polls else None
        match each["do"]:
            case "connect":
                # One more client each time: who replaces whom is told elsewhere.
                poll = Poll(hub, each["viewer"], f"c{len(polls)}", each["mode"], each["channels"])
                polls.append(poll)
                hub.add(poll.connection)
                if each["at_once"]:
                    poll.park(hub, last)
            case "park" if poll and poll.state is State.CATCHING_UP:
                poll.park(hub, last - each["lag"])
            case "publish":
                batch = []
                for channel, site, audience in each["news"]:
                    stored = qualify(channel, site)
                    last_ids[stored] += 1
                    last = next(global_ids)
                    name, site = unqualify(stored)
                    batch.append(
                        Message(last, last_ids[stored], stored, name, site, b"1", audience)
                    )
                for channel in dict.fromkeys(message.stored_channel for message in batch):
                    part = [message for message in batch if message.stored_channel == channel]
                    for poll in polls:
                        if channel in poll.connection.channels:
                            poll.deliver(channel, part)
                hub.dispatch(batch)
            case "close" if poll:
                if poll.state is State.PARKED:
                    poll.close()
                    poll.connection.close(CloseReason.ENDED)
            case "slow" if poll:
                poll.transport.unsent = MAX_BUFFER + 1
            case "restart":
                channels = [qualify(each["channel"], site) for site in SITES]
                for name in set(channels):
                    last_ids[name] = 0
                for poll in polls:
                    poll.restart(list(dict.fromkeys(channels)))
                hub.restarted(list(dict.fromkeys(channels)))
                for poll in polls:
                    if poll.connection.is_cut_short:
                        hub.remove_unanswered(poll.connection)
        for poll in polls:
            poll.check()
    assert observer.written == sum(poll.written for poll in polls)
    assert observer.withheld == sum(poll.kept for poll in polls)
    for poll in polls:
        if poll.state is State.CATCHING_UP:
            hub.remove_unanswered(poll.connection)
        else:
            poll.close()
            poll.connection.close(CloseReason.ENDED)
            poll.check()
    assert (hub._index, hub._buckets, hub._catching_up, len(hub._people)) == ({}, {}, set(), 0)


# -- whom an audience finds


@given(
    population=st.lists(viewers, max_size=8), audience=audiences, channel=st.sampled_from(CHANNELS)
)
def test_an_audience_finds_exactly_those_that_it_allows(population, audience, channel):
    hub = make_hub()
    people = People()
    message = Message(1, 1, *(lambda s: (s, *unqualify(s)))(qualify(channel, "s")), b"1", audience)
    subscribers = {}
    for number, viewer in enumerate(population):
        stored = qualify(channel, viewer.site_id)
        poll = Connection(hub, viewer, f"c{number % 3}", 0, Mode.STREAM, (stored,), ())
        poll.park(RecordingTransport(), 0.0)
        people.add(poll)
        if stored == message.stored_channel:
            subscribers[poll] = None
    found = people.recipients(message, subscribers)
    expected = [
        each for each in subscribers if may_see(each, each.client_id, message)
    ]  # fmt: skip
    assert sorted(map(id, found)) == sorted(map(id, expected))


class Counting(Audience):
    """Counts whom it is asked about."""

    asked = 0

    def allows(self, user_id, group_ids, client_id):
        Counting.asked += 1
        return super().allows(user_id, group_ids, client_id)


@pytest.mark.parametrize(
    ("audience", "asked"),
    [
        (([3], None, None), 1),
        (([3, "3", 1000], None, None), 1),
        ((None, ["few"], None), 5),
        (([2], ["few"], None), 6),
        ((None, None, ["c7", "c8"]), 2),
        (([3], None, ["c3"]), 1),
        ((range(1000), None, None), 100),
    ],
)
def test_nobody_else_is_visited(audience, asked):
    hub = make_hub()
    for number in range(100):
        groups = frozenset({"all", "few"} if number < 10 and number % 2 else {"all"})
        poll = Connection(
            hub,
            Identity(number, groups),
            f"c{number}",
            0,
            Mode.STREAM,
            ("/a",),
            wire.poll_headers(),
        )
        hub.add(poll)
        poll.settle({"/a": 0})
        poll.park(RecordingTransport(), 0.0)
        hub.park(poll)
    Counting.asked = 0
    hub.dispatch([Message(1, 1, "/a", "/a", None, b"1", Counting(*audience))])
    assert Counting.asked == asked


def test_people_of_a_channel_that_few_wait_for_are_asked_one_by_one():
    """A message for thousands costs no more than the few who listen."""
    hub = make_hub()
    for number in range(3):
        poll = Connection(
            hub, Identity(number), f"c{number}", 0, Mode.STREAM, ("/a",), wire.poll_headers()
        )
        hub.add(poll)
        poll.settle({"/a": 0})
        poll.park(RecordingTransport(), 0.0)
        hub.park(poll)
    Counting.asked = 0
    hub.dispatch([Message(1, 1, "/a", "/a", None, b"1", Counting(range(1, 10_000)))])
    assert Counting.asked == 3
