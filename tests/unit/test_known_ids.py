"""What a worker knows of last ids, and from when on it does not believe it any more."""

from __future__ import annotations

import pytest

from messagebusd.known_ids import BELIEVED_SECONDS, KnownIds
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.message import Message
from tests.support.clock import FakeClock


def message(channel: str, message_id: int, global_id: int) -> Message:
    return Message(global_id, message_id, channel, channel, None, b"1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def known(clock: FakeClock) -> KnownIds:
    return KnownIds(clock)


def test_nothing_is_known_at_first(known: KnownIds) -> None:
    assert not known.are(["/a"], [0])
    assert known.are([], [])


@pytest.mark.parametrize("position", [4, 6, 0, -1, -2, None])
def test_only_the_very_last_id_is_up_to_date(known: KnownIds, position: int | None) -> None:
    known.read({"/a": LastId(5, 9), "/b": LastId(0, 9)})
    assert known.are(["/a", "/b"], [5, 0])
    assert not known.are(["/a", "/b"], [position, 0])
    assert not known.are(["/a", "/c"], [5, 0])


def test_announcements_go_on_from_what_was_read(known: KnownIds) -> None:
    known.read({"/a": LastId(5, 9)})
    known.announced([message("/a", 6, 10), message("/b", 1, 11), message("/a", 7, 12)])
    assert known.are(["/a", "/b"], [7, 1])


def test_what_was_read_earlier_does_not_take_the_place_of_an_announcement(known: KnownIds) -> None:
    known.announced([message("/a", 6, 10)])
    known.read({"/a": LastId(5, 9)})
    assert known.are(["/a"], [6])
    known.read({"/a": LastId(0, 11)})  # it has expired
    assert known.are(["/a"], [0])


def test_what_was_published_here_is_unknown_until_it_is_announced(known: KnownIds) -> None:
    known.read({"/a": LastId(5, 9)})
    known.published("/a", 11)
    known.read({"/a": LastId(5, 10)})
    known.announced([message("/a", 6, 10)])  # somebody else's
    assert not any(known.are(["/a"], [position]) for position in (5, 6, 7, None))
    known.announced([message("/a", 7, 11)])
    assert known.are(["/a"], [7])


def test_what_was_published_here_may_be_announced_before_its_publisher_is_told(
    known: KnownIds,
) -> None:
    known.announced([message("/a", 6, 10)])
    known.published("/a", 10)
    assert known.are(["/a"], [6])


def test_a_read_may_bring_what_was_published_here(known: KnownIds) -> None:
    known.published("/a", 10)
    known.read({"/a": LastId(6, 10)})
    assert known.are(["/a"], [6])


def test_what_comes_out_of_order_makes_a_channel_unknown(known: KnownIds) -> None:
    known.announced([message("/a", 6, 10)])
    known.announced([message("/a", 1, 1)])
    assert not known.are(["/a"], [6])
    assert not known.are(["/a"], [1])


def test_nothing_is_believed_for_long(known: KnownIds, clock: FakeClock) -> None:
    known.read({"/a": LastId(5, 9)})
    known.published("/b", 10)
    clock.advance(BELIEVED_SECONDS)
    assert known.are(["/a"], [5])
    clock.advance(0.1)
    assert not known.are(["/a"], [5])
    # Ids that began anew, and nobody was told.
    known.read({"/a": LastId(1, 1), "/b": LastId(1, 2)})
    assert known.are(["/a", "/b"], [1, 1])


def test_an_announcement_is_new_knowledge(known: KnownIds, clock: FakeClock) -> None:
    known.read({"/a": LastId(5, 9)})
    clock.advance(BELIEVED_SECONDS)
    known.announced([message("/a", 6, 10)])
    clock.advance(BELIEVED_SECONDS)
    assert known.are(["/a"], [6])


def test_it_is_bounded_and_whoever_was_noted_longest_ago_goes_first(clock: FakeClock) -> None:
    known = KnownIds(clock, max_channels=3)
    known.read({name: LastId(1, 5) for name in ("/a", "/b", "/c")})
    known.announced([message("/a", 2, 6)])
    known.published("/d", 7)
    assert len(known) == 3
    assert known.are(["/a", "/c"], [2, 1])
    assert not known.are(["/b"], [1])


def test_all_of_it_can_be_given_up(known: KnownIds) -> None:
    known.read({"/a": LastId(5, 9)})
    known.clear()
    assert not known.are(["/a"], [5])
