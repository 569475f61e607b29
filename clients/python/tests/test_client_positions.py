"""Several callbacks on one channel each get what they asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client_vectors import cases

from messagebus_client._poller import Poll, PollerState, Settings
from messagebus_client._positions import Catchup, Subscriber


@pytest.mark.parametrize("case", cases("positions"))
def test_callbacks_share_a_channel_as_the_vectors_say(case: dict[str, Any]) -> None:
    received: list[list[int]] = [[] for _ in case["callbacks"]]
    subscribers: list[Subscriber[Callable[[int], None]]] = [
        Subscriber(mine.append, each["position"], is_confirmed=each["confirmed"])
        for each, mine in zip(case["callbacks"], received, strict=True)
    ]
    catchup = Catchup(subscribers)
    assert catchup.ask.position == case["asked"]
    assert [subscribers.index(each) for each in catchup.ask.taking_part] == case["taking_part"]
    assert catchup.ask.is_alone == case["alone"]
    for each in case["answer"]:
        if "message" in each:
            for subscriber in catchup.message(each["message"]):
                subscriber.callback(each["message"])
        else:
            catchup.status(each["status"])
    catchup.told()
    assert received == case["received"]
    assert [each.position for each in subscribers] == case["positions"]


def message(channel: str, message_id: int) -> str:
    return f'{{"channel":"{channel}","message_id":{message_id},"global_id":9,"data":{message_id}}}'


def deliver(poll: Poll[Any], *messages: str) -> list[int]:
    return [each.data for each in poll.take(f"[{','.join(messages)}]".encode())]


def test_a_poll_asks_for_all_channels_with_a_sequence_number() -> None:
    state: PollerState[Callable[..., None]] = PollerState(Settings())
    state.subscribe("/a", print, 5)
    state.subscribe("/b", print, -1)
    assert state.poll().body == b'{"/a":5,"/b":-1,"__seq":1}'
    poll = state.poll()
    assert poll.body == b'{"/a":5,"/b":-1,"__seq":2}'
    assert deliver(poll, message("/a", 6), message("/c", 1)) == [6]
    assert state.channels == {"/a": 6, "/b": -1}


def test_what_is_sent_says_how_to_answer() -> None:
    def poll(**settings: Any) -> Poll[Any]:
        state: PollerState[Callable[..., None]] = PollerState(Settings(**settings))
        state.subscribe("/a", print, 0)
        return state.poll()

    streaming = poll(headers={"authorization": "Bearer x"})
    assert streaming.streams
    assert "dont-chunk" not in streaming.headers
    assert streaming.headers["authorization"] == "Bearer x"
    assert streaming.path.endswith("/poll")
    long = poll(enable_chunked_encoding=False, headers=lambda: {"a": "b"})
    assert long.headers.items() >= {"dont-chunk": "true", "a": "b"}.items()
    assert long.path.endswith("/poll")
    short = poll(enable_long_polling=False)
    assert short.headers["dont-chunk"] == "true"
    assert short.path.endswith("/poll?dlp=t")


def test_streaming_comes_back_after_it_was_given_up() -> None:
    state: PollerState[Callable[..., None]] = PollerState(Settings())
    state.subscribe("/a", print, 0)
    state.give_streaming_up()
    streams = [state.poll().streams for _ in range(32)]
    assert streams == [False] * 30 + [True] * 2


def test_a_callback_that_is_forgotten_meanwhile_is_not_called() -> None:
    state: PollerState[Callable[..., None]] = PollerState(Settings())
    state.subscribe("/a", print, 0)
    deliveries = state.poll().take(f"[{message('/a', 1)},{message('/a', 2)}]".encode())
    assert next(deliveries).data == 1
    assert state.unsubscribe("/a", None)
    assert list(deliveries) == []
    assert not state.has_channels()
    assert not state.unsubscribe("/a", None)
