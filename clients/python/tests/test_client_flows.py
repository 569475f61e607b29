"""Calls are tried again when that is right, and only then; streams go on where they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messagebus_client import _calls
from messagebus_client._exchange import Flow, Patience, Pause, Request, Response
from messagebus_client._following import Channels, Everything, Reopening, StreamEnded
from messagebus_client.errors import (
    ConnectionFailed,
    InvalidRequest,
    MessageBusError,
    NotAllowed,
    RequestRefused,
    TemporarilyRefused,
    UnexpectedAnswer,
)
from messagebus_client.types import Gap, Message, Publication, Restarted

Answer = Response | ConnectionFailed


class World:
    """Carries a flow out: gives the answers it is told to, and passes time."""

    def __init__(self, *answers: Answer) -> None:
        self.now = 0.0
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self._answers = list(answers)

    def patience(self, seconds: float = 30.0) -> Patience:
        return Patience(seconds, lambda: self.now, lambda: 0.5)

    def run(self, flow: Flow[Any]) -> Any:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now += step.seconds
                    step = flow.send(None)
                    continue
                self.requests.append(step)
                # The last answer is that of every later request as well.
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                if isinstance(answer, ConnectionFailed):
                    step = flow.throw(ConnectionFailed(str(answer)))
                else:
                    step = flow.send(answer)
        except StopIteration as stop:
            return stop.value


def ok(document: Any, **headers: str) -> Response:
    return Response(200, headers, json.dumps(document).encode())


def problem(status: int, code: str, **headers: str) -> Response:
    body = {"status": status, "code": code, "detail": "because", "request_id": "r1"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, named, json.dumps(body).encode())


PUBLISHED = {"channel": "/a", "message_id": 3, "global_id": 9}
FAILED = ConnectionFailed("reset")
AWAY = problem(503, "store_unavailable", retry_after="2")


def test_a_publish_is_repeated_with_the_same_key_and_body() -> None:
    limited = problem(429, "rate_limited")
    world = World(FAILED, AWAY, limited, Response(502, {}, b"oops"), ok(PUBLISHED))
    published = world.run(_calls.publish(Publication("/a", {"ü": 1}), None, world.patience()))
    assert (published.message_id, published.global_id) == (3, 9)
    assert len(world.requests) == 5
    assert len({(each.body, each.headers["idempotency-key"]) for each in world.requests}) == 1
    assert world.pauses == [pytest.approx(each) for each in (0.1, 2.5, 0.4, 0.8)]
    again = World(ok(PUBLISHED))
    again.run(_calls.publish(Publication("/a", {"ü": 1}), None, again.patience()))
    key = again.requests[0].headers["idempotency-key"]
    assert key != world.requests[0].headers["idempotency-key"]
    again.run(_calls.publish(Publication("/a", 1), "mine", again.patience()))
    assert again.requests[1].headers["idempotency-key"] == "mine"


@pytest.mark.parametrize(
    ("answer", "kind"), [(FAILED, ConnectionFailed), (AWAY, TemporarilyRefused)]
)
def test_trying_ends_in_time(answer: Answer, kind: type[MessageBusError]) -> None:
    world = World(answer)
    with pytest.raises(kind) as caught:
        world.run(_calls.last_id("/a", None, world.patience(20)))
    assert 10 < world.now < 20
    if isinstance(caught.value, TemporarilyRefused):
        assert (caught.value.retry_after, caught.value.request_id) == (2, "r1")


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (problem(400, "invalid_channel"), InvalidRequest, "invalid_channel"),
        (problem(401, "unauthorized"), NotAllowed, "unauthorized"),
        (problem(403, "forbidden"), NotAllowed, "forbidden"),
        (problem(404, "not_found"), InvalidRequest, "not_found"),
        (problem(422, "invalid_audience"), InvalidRequest, "invalid_audience"),
        (problem(500, "internal_error"), RequestRefused, "internal_error"),
        (Response(404, {}, b"<html>nginx</html>"), InvalidRequest, ""),
        (Response(301, {}, b""), UnexpectedAnswer, None),
        (Response(200, {}, b"<html>"), UnexpectedAnswer, None),
        (ok([]), UnexpectedAnswer, None),
        (ok({"last_id": "1"}), UnexpectedAnswer, None),
    ],
)
def test_other_refusals_are_raised_at_once(
    answer: Response, kind: type[MessageBusError], code: str | None
) -> None:
    world = World(answer)
    with pytest.raises(kind) as caught:
        world.run(_calls.last_id("/a", None, world.patience()))
    assert len(world.requests) == 1
    assert getattr(caught.value, "code", None) == code


def test_only_what_is_said_is_sent() -> None:
    world = World(ok(PUBLISHED))

    def body(publication: Publication) -> Any:
        world.run(_calls.publish(publication, None, world.patience()))
        return json.loads(world.requests[-1].body or b"")

    assert body(Publication("/a", None)) == {"channel": "/a", "data": None}
    assert body(Publication("/a", 1, "s", (1, "1"), [2], ["c"], 10, 20, queue_in_memory=True)) == {
        "channel": "/a",
        "data": 1,
        "site_id": "s",
        "user_ids": [1, "1"],
        "group_ids": [2],
        "client_ids": ["c"],
        "max_backlog_size": 10,
        "max_backlog_age": 20,
        "queue_in_memory": True,
    }
    # Refused by the daemon, not left out: left out it would be for everybody.
    assert body(Publication("/a", 1, user_ids=[]))["user_ids"] == []
    with pytest.raises(TypeError):
        body(Publication("/a", 1, user_ids="42"))
    for data in (float("nan"), object(), "\ud800"):
        with pytest.raises((TypeError, ValueError)):
            body(Publication("/a", data))


def test_a_batch_goes_on_where_it_was_interrupted() -> None:
    refused = {"error": {"status": 400, "code": "invalid_channel", "detail": "empty"}}
    away = {"error": {"status": 503, "code": "store_unavailable", "detail": "away"}}
    first, second = [PUBLISHED, refused, away], [PUBLISHED, refused, PUBLISHED]
    world = World(ok({"results": first}), ok({"results": second}))
    publications = [Publication("/a", 1)] * 3
    results = world.run(_calls.publish_batch(publications, None, world.patience()))
    assert [isinstance(each, InvalidRequest) for each in results] == [False, True, False]
    assert len({(each.body, each.headers["idempotency-key"]) for each in world.requests}) == 1
    world = World(ok({"results": [PUBLISHED, refused, away]}))
    results = world.run(_calls.publish_batch(publications, None, world.patience(5)))
    assert isinstance(results[2], TemporarilyRefused)
    assert world.now < 5


# -- following


def line(channel: str, message_id: int, global_id: int = 1000) -> bytes:
    return json.dumps(
        {"global_id": global_id, "message_id": message_id, "channel": channel, "data": message_id}
    ).encode()


def status(data: dict[str, int], global_id: int = -1) -> bytes:
    return json.dumps(
        {"global_id": global_id, "message_id": -1, "channel": "/__status", "data": data}
    ).encode()


def asked(following: Channels, *last_ids: dict[str, int]) -> dict[str, int]:
    """The positions that the next stream is asked for with."""
    world = World(*(ok({"last_ids": each}) for each in last_ids or ({},)))
    request: Request = world.run(following.prepare(world.patience()))
    positions: dict[str, int] = json.loads(request.body or b"")["channels"]
    return positions


def test_positions_follow_what_comes() -> None:
    following = Channels({"/a": 5, "/b": -1, "/c": None}, None)
    assert asked(following) == {"/a": 5, "/b": -1, "/c": -1}
    assert following.take(b"") == (None, [])
    assert following.take(status({"/b": 7, "/c": 0})) == (None, [])
    message, notices = following.take(line("/a", 6))
    assert isinstance(message, Message)
    assert (message.data, notices) == (6, [])
    following.take(line("/b", 8))
    assert asked(following) == following.positions == {"/a": 6, "/b": 8, "/c": 0}


def test_what_is_missing_is_told() -> None:
    following = Channels({"/a": 5, "/b": 9}, None)
    assert following.take(line("/a", 8))[1] == [Gap("/a", 5, 8)]
    assert following.take(status({"/b": 2})) == (None, [Restarted("/b", 2)])
    assert following.take(line("/a", 1))[1] == [Restarted("/a", 0)]
    assert following.positions == {"/a": 1, "/b": 2}


def test_ids_that_all_channels_share_are_no_gaps() -> None:
    """PostgreSQL has one id for both."""
    following = Channels({"/a": 5}, None)
    assert following.take(line("/a", 8, 8))[1] == []


def test_looking_back_survives_a_stream_that_brought_nothing() -> None:
    following = Channels({"/a": -3, "/b": 1}, "site")
    assert asked(following, {"/a": 10}) == {"/a": -3, "/b": 1}
    assert asked(following, {"/a": 14}) == {"/a": -7, "/b": 1}
    following.take(line("/a", 9))
    assert asked(following) == {"/a": 9, "/b": 1}


def test_all_channels_are_followed_by_global_id() -> None:
    following = Everything(None, None)
    world = World(FAILED)
    assert world.run(following.prepare(world.patience())).query["last_id"] == -1
    assert following.take(status({}, 50)) == (None, [])
    message, notices = following.take(line("/a", 1, 57))
    assert message is not None
    assert notices == []
    assert world.run(following.prepare(world.patience())).query["last_id"] == 57
    assert following.take(status({}, 3))[1] == [Restarted(None, 3)]
    assert following.take(line("/a", 1, 2))[1] == [Restarted(None, 1)]


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"1",
        b"{}",
        b"oops",
        line("/other", 1),
        status({"/other": 1}),
        b'{"channel":"/a","message_id":"1","global_id":1,"data":1}',
        b'{"channel":"/a","message_id":1,"global_id":1}',
        b'{"channel":"/__status","data":[]}',
        b'{"channel":"/__status","data":{"/a":"1"}}',
        b'{"channel":"/a","message_id":1,"global_id":1,"data":1,"user_ids":1}',
    ],
)
def test_a_line_that_is_none_is_refused(text: bytes) -> None:
    following = Channels(["/a"], None)
    with pytest.raises(UnexpectedAnswer):
        following.take(text)
    assert following.positions == {"/a": -1}


def test_the_last_line_says_why() -> None:
    with pytest.raises(StreamEnded) as caught:
        Channels(["/a"], None).take(b'{"end":{"code":"draining","detail":"stops"}}')
    assert caught.value.code == "draining"


def test_streams_are_opened_again_later_and_later() -> None:
    channels, everything = Channels(["/a"], None), Everything(0, None)
    reopening = Reopening(lambda: 0.5)
    waits = [reopening.after(ConnectionFailed("x"), channels).retry_in for _ in range(9)]
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]
    reopening.line()  # a stream that has begun, and no more
    assert reopening.after(StreamEnded("overflow", ""), channels).retry_in == 15
    for _ in range(2):
        reopening.line()
    told = reopening.after(TemporarilyRefused(429, "rate_limited", "", None, 10), channels)
    assert (told.code, told.retry_in) == ("rate_limited", 10.5)
    interrupted = StreamEnded("interrupted", "the store was away")
    assert not reopening.after(interrupted, channels).may_have_missed
    assert reopening.after(interrupted, everything).may_have_missed
    assert not reopening.after(StreamEnded("draining", ""), everything).may_have_missed
    fault = RequestRefused(500, "internal_error", "")
    assert reopening.after(fault, channels).code == "internal_error"
    with pytest.raises(NotAllowed):
        reopening.after(NotAllowed(401, "unauthorized", ""), channels)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), unique=True).map(sorted),
    st.lists(st.integers(0, 5), max_size=10),
)
def test_each_message_comes_once_however_often_the_stream_breaks(
    stored: list[int], lengths: list[int]
) -> None:
    following = Channels({"/a": 0}, None)
    received: list[int] = []
    missing: set[int] = set()
    for length in [*lengths, len(stored)]:
        position = asked(following)["/a"]
        for each in [each for each in stored if each > position][:length]:
            message, notices = following.take(line("/a", each))
            assert message is not None
            received.append(message.message_id)
            for notice in notices:
                assert isinstance(notice, Gap)
                missing |= set(range(notice.after_id + 1, notice.before_id))
    assert received == stored
    assert missing == set(range(1, max(stored, default=0))) - set(stored)
