"""Notifications and rows in any order become announcements in order, each once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from messagebusd.backends.postgres import order as order_module
from messagebusd.backends.postgres.order import Order
from messagebusd.protocol.message import Message


def message(message_id: int, channel: str = "/a") -> Message:
    return Message(message_id, message_id, channel, channel, None, b"1")


def ids(messages: list[Message]) -> list[int]:
    return [each.global_id for each in messages]


@given(
    st.permutations(range(1, 13)),
    st.sets(st.integers(1, 12)),
    st.lists(st.sampled_from(["release", "found"]), max_size=12),
)
def test_each_is_announced_once_and_in_order(arriving, holes, steps):
    order = Order()
    announced = []
    for step, message_id in zip([*steps, *["release"] * 12], arriving, strict=False):
        if message_id in holes:
            continue
        if step == "found":
            order.found([message(message_id)])
        assert order.notified(message_id, message(message_id))
        announced += ids(order.release())
    order.expect(12)
    assert order.is_behind == (order.seen < 12)
    announced += ids(order.release_to(12).messages)
    assert announced == [each for each in range(1, 13) if each not in holes]
    assert not order.is_behind
    assert order.held() == []


@given(st.permutations(range(1, 9)), st.integers(0, 8))
def test_a_look_at_the_table_leaves_nothing_for_the_notifications(arriving, committed):
    """Whatever was announced from the table is known when its notification comes."""
    order = Order()
    order.found([message(each) for each in range(1, committed + 1)])
    announced = ids(order.release())
    for message_id in arriving:
        assert order.notified(message_id, message(message_id))
        announced += ids(order.release())
    assert announced == list(range(1, 9))


def test_what_was_missing_is_counted():
    order = Order(10)
    order.notified(12, message(12))
    order.notified(13, None)  # cannot be read
    order.found([message(14)])
    assert ids(order.release()) == []
    released = order.release_to(15)
    assert ids(released.messages) == [12, 14]
    assert (released.replayed, released.missing) == (1, 3)
    assert order.release_to(15).messages == []
    assert not order.notified(11, message(11))


def test_only_what_is_newer_on_its_channel_is_news():
    order = Order()
    order.remember("/a", 5, 0.0)
    assert order.is_news(message(6))
    assert not order.is_news(message(4))
    assert order.is_news(message(4, "/b"))


def test_what_was_forgotten_is_no_news(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_CHANNELS", 2)
    order = Order()
    for last_id, channel in enumerate(("/a", "/b", "/c"), 1):
        order.remember(channel, last_id, 0.0)
    assert order.latest("/a") is None
    assert not order.is_news(message(1, "/a"))
    assert order.is_news(message(2, "/d"))


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_HELD", 3)
    order = Order()
    for message_id in range(2, 10):
        order.notified(message_id, message(message_id))
    assert len(order.held()) == 3
    assert order.target == 9
    order.notified(1, message(1))
    assert ids(order.release()) == [1, 2, 3, 4]
    assert order.is_behind


def test_ids_that_were_never_given_out_are_dropped():
    order = Order(5)
    order.notified(1000, message(1000))
    order.notified(7, message(7))
    order.drop([1000], 6)
    assert (order.target, order.held()) == (7, [7])
    order.drop([7], 6)
    assert (order.target, order.held()) == (6, [])
