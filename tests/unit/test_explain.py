"""Why somebody got a message or not: what is found out from a worker's records."""

from __future__ import annotations

import pytest

from messagebusd import fanout, recent
from messagebusd.backends.base import Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.connection import CloseReason, Connection
from messagebusd.explain.answer import explain
from messagebusd.explain.evidence import MAX_POLLS, Question, gather
from messagebusd.explain.words import Case
from messagebusd.filters.chain import ExpressionFilter, FilterChain
from messagebusd.filters.expressions import Expression
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.metrics import Metrics
from messagebusd.protocol import wire
from messagebusd.protocol.channels import qualify
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.requests import Mode
from messagebusd.protocol.rules import ChannelRule, ChannelRules
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

WALL = 1_700_000_000.0
ANN = Identity(user_id=7, group_ids=frozenset({"staff"}))


class World:
    """A worker on a clock that is moved by hand: its hub, its bus, a store in memory."""

    def __init__(self, *, rules=(), filters=(), backlog=1000):
        self.clock = FakeClock()
        self.began_at = self.clock.now
        self.rules = ChannelRules(rules)
        chain = FilterChain(
            [ExpressionFilter(prefix, Expression(source)) for prefix, source in filters],
            lambda: None,
            self.clock.call_soon,
            self.wall,
        )
        self.hub = Hub(
            self.clock,
            Metrics(),
            interval=25.0,
            max_active_clients=10_000,
            max_client_buffer=1000,
            filters=chain,
            jitter=lambda: 0.0,
        )
        self.backend = MemoryBackend(Retention(max_backlog_size=backlog), max_bytes=2**24)
        self.bus = MessageBus(self.backend, self.hub, Metrics(), max_backlog_bytes=2**20)

    def wall(self):
        return WALL + self.clock.now - self.began_at

    async def publish(self, channel="/a", *, site=None, data=b"1", later=1.0, **audience):
        self.clock.advance(later)
        whom = Audience(**audience) if audience else None
        published = await self.bus.publish(Publication(qualify(channel, site), data, audience=whom))
        self.backend._announce()
        return published.message_id

    async def poll(self, positions, viewer=ANN, *, client="c", seq=0, mode=Mode.STREAM, later=1.0):
        """A poll that has caught up, and parks unless it is answered at once."""
        self.clock.advance(later)
        channels = tuple(qualify(each, viewer.site_id) for each in positions)
        poll = Connection(self.hub, viewer, client, seq, mode, channels, wire.poll_headers())
        await self.bus.attach(poll, list(positions.values()))
        if mode is Mode.POLL:
            self.hub.remove(poll, CloseReason.ANSWERED)
        else:
            poll.park(RecordingTransport(), self.clock.now)
            self.hub.park(poll)
        return poll

    async def explain(self, message_id, channel="/a", user=7, client=None, site=None, groups=None):
        stored = qualify(channel, site)
        last_id = (await self.backend.last_ids([stored]))[stored].message_id
        message = await self.backend.message(stored, message_id)
        oldest, _ = await self.backend.backlog(stored, 0, max_messages=1, max_bytes=1)
        question = Question(stored, message_id, last_id, client, user, site)
        now = self.clock.now
        found = gather(self.hub, question, message, worker=1, now=now, wall=self.wall())
        return explain(
            Case(
                channel=stored,
                message_id=message_id,
                user_id=user,
                client_id=client,
                group_ids=groups,
                message=message,
                last_id=last_id,
                first_id=oldest[0].message_id if oldest else None,
                rules=self.rules,
                evidence=[found],
            ),
            "here",
        )


def fact(explanation, code):
    [found] = [each for each in explanation.facts if each.code == code]
    return found


def codes(explanation, about="poll"):
    return [each.code for each in explanation.facts if each.about == about]


# -- given ---------------------------------------------------------------------------------------


async def test_a_stream_that_waited_was_written_to():
    world = World()
    await world.poll({"/a": 0})
    found = await world.explain(await world.publish())
    assert found.conclusion == "given"
    assert found.answer == "user 7 was given message 1, by client c"
    written = fact(found, "written")
    assert (written.client_id, written.worker, written.until) == ("c", 1, None)
    assert written.at == WALL + 1
    assert fact(found, "delivered").at == WALL + 2
    assert "1 written, 0 withheld" in fact(found, "delivered").text
    assert codes(found, "next") == []


async def test_a_long_poll_was_answered():
    world = World()
    await world.poll({"/a": 0}, mode=Mode.LONG_POLL)
    found = await world.explain(await world.publish())
    assert (found.conclusion, codes(found)) == ("given", ["answered"])
    assert fact(found, "answered").until == WALL + 2
    assert fact(found, "last_seen").at == WALL + 2


@pytest.mark.parametrize("mode", [Mode.POLL, Mode.STREAM])
@pytest.mark.parametrize("position", [0, -2])
async def test_a_poll_that_came_later_read_it_from_the_backlog(mode, position):
    world = World()
    message_id = await world.publish()
    await world.poll({"/a": position}, mode=mode)
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found)) == ("given", ["backlog"])


async def test_what_came_while_a_poll_was_catching_up_was_handed_to_it():
    world = World()
    poll = Connection(world.hub, ANN, "c", 0, Mode.STREAM, ("/a",), wire.poll_headers())
    world.hub.add(poll)
    message_id = await world.publish()
    await world.bus.attach(poll, [0])
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found)) == ("given", ["backlog"])


async def test_a_connection_that_broke_after_the_write_may_not_have_brought_it():
    world = World()
    poll = await world.poll({"/a": 0})
    message_id = await world.publish()
    world.clock.advance(3)
    poll.connection_lost(None)
    found = await world.explain(message_id)
    assert found.conclusion == "given"
    assert "left by its client" in fact(found, "written").text
    assert "the next poll asks for it again" in fact(found, "given").text


# -- withheld ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "audience", [{"user_ids": [8]}, {"group_ids": ["admins"]}, {"client_ids": ["d"]}]
)
async def test_others_were_meant(audience):
    world = World()
    await world.poll({"/a": 0})
    found = await world.explain(await world.publish(**audience))
    assert found.conclusion == "withheld"
    assert codes(found) == ["withheld_by_audience"]
    assert '(its groups: "staff")' in fact(found, "withheld_by_audience").text


@pytest.mark.parametrize("audience", [{"user_ids": [7]}, {"group_ids": ["staff", 1]}])
async def test_whoever_is_meant_is_said_to_be(audience):
    world = World()
    await world.poll({"/a": 0})
    found = await world.explain(await world.publish(**audience))
    assert found.conclusion == "given"
    assert fact(found, "included").text == "user 7 is one of them"


async def test_an_id_of_another_type_is_somebody_else():
    world = World()
    await world.poll({"/a": 0})
    found = await world.explain(await world.publish(user_ids=["7"]))
    assert found.conclusion == "withheld"
    assert 'it names the user "7", and 7 is another one' in fact(found, "other_type").text


async def test_nobody_of_that_type_was_seen():
    world = World()
    await world.poll({"/a": 0}, Identity(user_id="7"))
    found = await world.explain(await world.publish())
    assert found.conclusion == "not_connected"
    assert 'user "7" polls here' in fact(found, "seen_as_other_type").text


async def test_the_audience_is_looked_at_without_any_poll():
    world = World()
    message_id = await world.publish(user_ids=[8], group_ids=["staff"])
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found, "audience")) == (
        "not_connected",
        ["restricted", "groups_unknown"],
    )
    found = await world.explain(message_id, groups=frozenset({"other"}))
    assert (found.conclusion, codes(found, "audience")) == (
        "withheld",
        ["restricted", "not_included"],
    )
    found = await world.explain(message_id, groups=frozenset({"staff"}))
    assert codes(found, "audience") == ["restricted", "included"]


async def test_the_filter_that_withheld_it_is_named():
    filters = [("/a", "message.data < 5"), ("/a", "client.user_id == 7"), ("/b", "false")]
    world = World(filters=filters)
    await world.poll({"/a": 0})
    await world.publish(data=b"1")
    await world.publish(data=b"9")
    assert (await world.explain(1)).conclusion == "given"
    found = await world.explain(2)
    assert found.conclusion == "withheld"
    assert found.answer.endswith("by the filter message.data < 5")
    assert codes(found) == ["withheld_by_filter"]


async def test_filters_are_asked_about_the_time_of_the_delivery():
    world = World(filters=[("/a", "now - message.data <= 20.0")])
    await world.poll({"/a": 0})
    sent_at = repr(world.wall()).encode()
    await world.publish(data=sent_at, later=10)
    await world.publish(data=sent_at, later=12)
    assert (await world.explain(1)).conclusion == "given"
    assert (await world.explain(2)).conclusion == "withheld"


# -- not subscribed ------------------------------------------------------------------------------


async def test_a_poll_for_other_channels():
    world = World()
    await world.poll({"/b": 0})
    found = await world.explain(await world.publish())
    assert (found.conclusion, codes(found)) == ("not_subscribed", ["not_subscribed"])
    assert fact(found, "announced").text.endswith("nobody was parked for the channel")


async def test_the_same_channel_of_another_site():
    world = World()
    await world.poll({"/a": 0}, Identity(user_id=7, site_id="forum"))
    found = await world.explain(await world.publish())
    assert (found.conclusion, codes(found)) == ("not_subscribed", ["other_site"])
    assert "of the site forum, which is another channel" in fact(found, "other_site").text
    found = await world.explain(await world.publish(site="forum"), site="forum")
    assert found.conclusion == "given"


@pytest.mark.parametrize(
    ("subscribe", "user", "code"),
    [
        ("public", 7, "may_subscribe"),
        ("authenticated", 7, "may_subscribe"),
        ("granted", 7, "if_granted"),
        ("none", 7, "may_not_subscribe"),
    ],
)
async def test_what_the_channels_rule_says(subscribe, user, code):
    world = World(rules=[ChannelRule("/a*", subscribe)])
    found = await world.explain(await world.publish(), user=user)
    assert codes(found, "channel") == [code]
    assert f"(the rule for /a* says {subscribe})" in fact(found, code).text
    assert (found.conclusion == "not_allowed") == (code == "may_not_subscribe")


# -- not there -----------------------------------------------------------------------------------


async def test_who_was_gone_gets_it_by_the_next_poll():
    world = World()
    poll = await world.poll({"/a": 0})
    poll.connection_lost(None)
    message_id = await world.publish(later=60)
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found)) == ("pending", ["ended_before"])
    assert "left by its client" in fact(found, "ended_before").text
    assert fact(found, "last_seen").at == WALL + 1
    assert "from a position below 1" in fact(found, "pending").text
    await world.poll({"/a": 0}, seq=1)
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found)) == ("given", ["ended_before", "backlog"])


async def test_who_was_gone_for_too_long():
    world = World(backlog=2)
    (await world.poll({"/a": 0})).connection_lost(None)
    for _ in range(4):
        await world.publish()
    # That it came after this poll is not recorded: nobody was there whom it was delivered to.
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("in_doubt", ["not_recorded"])
    assert "only what came from 3 on" in fact(found, "trimmed").text
    assert fact(found, "in_doubt").text == "It is not stored any more: no poll can get it."


async def test_who_was_gone_while_others_were_there_has_lost_it():
    world = World(backlog=2)
    (await world.poll({"/a": 0})).connection_lost(None)
    await world.poll({"/a": 0}, Identity(user_id=8), client="d")
    for _ in range(4):
        await world.publish()
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("lost", ["ended_before"])


async def test_a_poll_older_than_the_record_of_announcements(short_records):
    world = World()
    await world.poll({"/a": 0}, mode=Mode.POLL)
    await world.publish()
    await world.poll({"/a": 0}, seq=1, mode=Mode.POLL)
    for _ in range(recent.MAX_RECORDS):
        await world.publish("/other", later=0.001)
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("in_doubt", ["not_recorded"])
    await world.poll({"/a": 0}, seq=2, mode=Mode.POLL)
    assert (await world.explain(1)).conclusion == "given"


async def test_a_trimmed_message_may_still_have_been_written():
    world = World(backlog=1)
    await world.poll({"/a": 0})
    await world.publish()
    await world.publish()
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("given", ["written"])
    assert "is not stored any more" in fact(found, "trimmed").text


async def test_a_slow_reader_was_ended():
    world = World()
    poll = await world.poll({"/a": 0})
    poll.transport.unsent = 1001
    found = await world.explain(await world.publish())
    assert (found.conclusion, codes(found)) == ("pending", ["ended_as_slow"])


async def test_a_slow_reader_had_what_came_before():
    world = World()
    poll = await world.poll({"/a": 0})
    await world.publish()
    poll.transport.unsent = 1001
    await world.publish()
    assert (await world.explain(1)).conclusion == "given"
    assert (await world.explain(2)).conclusion == "pending"


@pytest.mark.parametrize("position", [-1, None])
async def test_who_asked_for_nothing_old(position):
    world = World()
    message_id = await world.publish()
    await world.poll({"/a": position})
    found = await world.explain(message_id)
    assert (found.conclusion, codes(found)) == ("not_asked_for", ["asked_for_nothing_old"])


async def test_what_came_while_a_poll_found_out_where_its_channels_are():
    world = World()
    poll = Connection(world.hub, ANN, "c", 0, Mode.STREAM, ("/a",), wire.poll_headers())
    last_ids = world.backend.last_ids

    async def slow_last_ids(channels):
        await world.publish()
        return await last_ids(channels)

    world.backend.is_immediate = False
    world.backend.last_ids = slow_last_ids
    await world.bus.attach(poll, [-1])
    world.backend.last_ids = last_ids
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("in_doubt", ["in_doubt"])


async def test_who_asked_for_the_last_few():
    world = World()
    for _ in range(3):
        await world.publish()
    await world.poll({"/a": -3})
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("in_doubt", ["asked_for_the_last"])
    assert "asked for the last 2 messages" in fact(found, "asked_for_the_last").text
    assert (await world.explain(2)).conclusion == "given"


async def test_who_asked_from_beyond():
    world = World()
    await world.publish()
    await world.publish()
    await world.poll({"/a": 1})
    found = await world.explain(1)
    assert (found.conclusion, codes(found)) == ("had_it", ["position_beyond"])
    assert "asked from 1" in fact(found, "position_beyond").text


async def test_a_poll_whose_answer_was_cut_short():
    world = World()
    world.bus.max_backlog_bytes = 100
    for _ in range(4):
        await world.publish(data=b'"%b"' % (b"x" * 60))
    await world.poll({"/a": 0}, mode=Mode.POLL)
    found = await world.explain(4)
    assert (found.conclusion, codes(found)) == ("pending", ["cut_short"])


async def test_a_poll_that_was_replaced():
    world = World()
    await world.poll({"/a": 0})
    message_id = await world.publish()
    await world.poll({"/a": 1}, seq=1)
    found = await world.explain(message_id)
    assert codes(found) == ["written", "position_beyond"]
    assert "replaced by a newer poll" in fact(found, "written").text


# -- in slices -----------------------------------------------------------------------------------


async def test_who_left_before_a_large_fan_out_came_to_him(monkeypatch):
    monkeypatch.setattr(fanout, "SLICE", 2)
    world = World()
    polls = [
        await world.poll({"/a": 0}, Identity(user_id=each), client=f"c{each}")
        for each in range(1, 7)
    ]
    message_id = await world.publish()
    in_doubt = await world.explain(message_id, user=6)
    assert (in_doubt.conclusion, codes(in_doubt)) == ("in_doubt", ["in_doubt"])
    polls[5].connection_lost(None)
    world.clock.advance(0.5)
    while polls[4].transport.frames == []:
        world.clock.turn()
    assert (await world.explain(message_id, user=1)).conclusion == "given"
    assert (await world.explain(message_id, user=5)).conclusion == "given"
    assert (await world.explain(message_id, user=6)).conclusion == "in_doubt"


# -- the store and the record --------------------------------------------------------------------


async def test_what_was_never_published():
    world = World()
    found = await world.explain(5)
    assert found.conclusion == "not_published"
    assert fact(found, "not_published").text == (
        "/a has no message 5: its last id is 0; nothing is published there"
    )
    await world.publish()
    assert (await world.explain(2)).answer == "there is no message 2 yet, so nobody was given it"


async def test_ids_that_began_anew():
    world = World()
    await world.poll({"/a": 0})
    await world.publish()
    await world.publish()
    await world.backend.delete_backlog("/a")
    world.hub.restarted({"/a"})
    world.backend._channels.clear()
    assert (await world.explain(2)).conclusion == "not_published"
    assert fact(await world.explain(2), "ids_began_anew").at == world.wall()


async def test_nobody_is_there():
    world = World()
    found = await world.explain(await world.publish())
    assert (found.conclusion, codes(found)) == ("not_connected", [])
    assert fact(found, "never_seen").at == WALL
    assert codes(found, "next") == ["not_connected"]


@pytest.fixture
def short_records(monkeypatch):
    monkeypatch.setattr(recent, "MAX_RECORDS", 20)


async def test_a_record_that_does_not_reach_back_says_so(short_records):
    world = World()
    poll = await world.poll({"/a": 0}, client="first")
    message_id = await world.publish()
    poll.close(CloseReason.ENDED)
    for _ in range(recent.MAX_RECORDS):
        await world.publish("/other", later=0)
    for each in range(recent.MAX_RECORDS):
        await world.poll({"/b": 0}, Identity(), client=f"x{each}", mode=Mode.POLL, later=0)
    found = await world.explain(message_id)
    assert found.conclusion == "not_connected"
    assert fact(found, "too_long_ago").at == WALL + 2
    assert fact(found, "never_seen").at == WALL + 2


async def test_polls_with_many_channels_take_the_room_of_many(monkeypatch):
    monkeypatch.setattr(recent, "MAX_CHANNELS", 5000)
    world = World()
    many = {f"/{each}": None for each in range(500)}
    for each in range(20):
        await world.poll(many, client=f"c{each}", mode=Mode.POLL, later=0)
    kept = list(world.hub.recent.ends())
    assert len(kept) == len(list(world.hub.recent.catch_ups())) == 10
    assert kept[0].client_id == f"c{each}"
    assert world.hub.recent.polls_since == world.clock.now


async def test_of_many_polls_those_next_to_the_message_are_told():
    world = World()
    for seq in range(3):
        await world.poll({"/a": 0}, seq=seq, mode=Mode.POLL)
    message_id = await world.publish()
    for seq in range(3, 6):
        await world.poll({"/a": 0 if seq == 3 else 1}, seq=seq, mode=Mode.POLL)
    found = await world.explain(message_id)
    assert codes(found) == ["ended_before", "backlog"]
    assert fact(found, "ended_before").at == WALL + 3
    assert fact(found, "more_polls").text.startswith("4 more polls of user 7")


async def test_an_answer_is_bounded():
    world = World()
    for each in range(MAX_POLLS + 5):
        await world.poll({"/a": 0}, client=f"c{each}", later=0)
    found = await world.explain(await world.publish())
    assert codes(found) == ["written"] * MAX_POLLS
    assert fact(found, "more_polls").text.startswith("5 more")


async def test_one_client_of_several():
    world = World()
    await world.poll({"/a": 0}, client="tab-1")
    await world.poll({"/b": 0}, client="tab-2")
    message_id = await world.publish()
    assert (await world.explain(message_id)).answer.endswith("by client tab-1")
    found = await world.explain(message_id, client="tab-2")
    assert found.answer == "user 7 at client tab-2 polled, but not for this channel"
    assert (await world.explain(message_id, user=None, client="tab-1")).conclusion == "given"
