"""No interleaving of publishes, polls and thefts shows a message to somebody it is not for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from messagebusd.connection import CloseReason, Connection
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from messagebusd.protocol.requests import Mode
from tests.support.transport import RecordingTransport
from tests.unit.test_bus import World

CHANNEL = "/a"
IDS = st.sampled_from([1, "1", 2])
CLIENTS = st.sampled_from(["c1", "c2"])


def some(ids):
    return st.none() | st.lists(ids, min_size=1, max_size=2)


letters = st.builds(Audience, some(IDS), some(IDS), st.none() | some(CLIENTS))
people = st.builds(Identity, st.none() | IDS, st.frozensets(IDS, max_size=2))


@dataclass(frozen=True)
class Publish:
    audience: Audience


@dataclass(frozen=True)
class Poll:
    person: Identity
    client_id: str
    position: int
    seq: int
    mode: Mode


@dataclass(frozen=True)
class Turn:
    """Time passes: the store may answer so often."""

    permits: int


@dataclass(frozen=True)
class Expel:
    """End the polls of a user, parked or catching up."""

    user_id: int | str


polls = st.builds(
    Poll,
    people,
    CLIENTS,
    st.sampled_from([0, 0, 0, 2, -1, -3]),
    st.integers(0, 3),
    st.sampled_from([Mode.STREAM, Mode.LONG_POLL]),
)
turns = st.builds(Turn, st.integers(0, 3))
actions = st.lists(
    st.builds(Publish, letters) | polls | turns | st.builds(Expel, IDS), min_size=5, max_size=30
)


def may_see(audience, poll):
    """SPEC 3.1 in plain words; ids are compared by type as well."""

    def named(ids, mine):
        return any(type(a) is type(b) and a == b for a in ids or () for b in mine)

    if audience.client_ids is not None and poll.client_id not in audience.client_ids:
        return False
    if audience.user_ids is None and audience.group_ids is None:
        return True
    return named(audience.user_ids, [poll.person.user_id]) or named(
        audience.group_ids, poll.person.group_ids
    )


def shown(poll, transport):
    """All messages that were written to a poll."""
    if poll.mode is Mode.STREAM:
        return [each for frame in transport.frames for each in frame]
    _, _, body = b"".join(transport.writes).partition(b"\r\n\r\n")
    return json.loads(body or b"[]")


class Play:
    def __init__(self):
        self.world = World()
        self.audiences = []
        self.answers = []
        self.tasks = []

    async def poll(self, poll):
        """One poll as the door does it."""
        world, transport = self.world, RecordingTransport()
        self.answers.append((poll, transport))
        connection = Connection(
            *(world.hub, poll.person, poll.client_id, poll.seq, poll.mode, (CHANNEL,)),
            wire.poll_headers(),
        )
        news = await world.bus.attach(connection, [poll.position])
        connection.park(transport, 0)
        if poll.mode is Mode.LONG_POLL and (news or news.truncated):
            connection.answer(news.array())
            return
        if poll.mode is Mode.STREAM:
            transport.write(wire.frame(news.array()))
        if news.truncated:
            connection.close(CloseReason.ENDED)
        else:
            world.hub.park(connection)

    async def act(self, action):
        match action:
            case Publish(audience):
                self.audiences.append(audience)
                data = b"%d" % (len(self.audiences) - 1)
                await self.world.bus.publish(Publication(CHANNEL, data, audience=audience))
            case Poll():
                self.tasks.append(asyncio.create_task(self.poll(action)))
            case Turn(permits):
                for _ in range(permits):
                    self.world.backend.permits.release()
            case Expel(user_id):
                self.world.hub.close_matching(lambda each: each.viewer.user_id == user_id)
        await asyncio.sleep(0)

    async def end(self):
        """Let every poll have its answer."""
        for task in self.tasks:
            while not task.done():
                self.world.backend.permits.release()
                await asyncio.sleep(0)
            await task
        await self.world.backend.close()


@given(actions)
def test_nobody_is_shown_what_is_not_for_them(actions):
    async def scenario():
        play = Play()
        await play.world.backend.open()
        for action in actions:
            await play.act(action)
        await play.end()
        for poll, transport in play.answers:
            for message in shown(poll, transport):
                if message["channel"] == CHANNEL:
                    assert may_see(play.audiences[message["data"]], poll)

    asyncio.run(scenario())
