"""Holding what happened against what was recorded, as the data's README says under "Comparing".

Every function returns the differences as sentences; none means agreement. Informative members
(``http_version``, ``interim``, ``raw``, the kind of a refusal) are not looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.conformance.replay import Exchange, Parked, Published, Queried, Replay
from tests.conformance.scenarios import Step
from tests.support.rawhttp import Chunk, Response

SEPARATOR = b"\r\n|\r\n"

# "Immediate" means within half the interval, "timeout" after 90 % of it. Half an interval may be
# half a second, which a loaded machine can lose; three quarters tell the two apart as well.
IMMEDIATE = 0.75
TIMEOUT = 0.9

# Headers of the HTTP server, which the recordings leave out.
SERVER_HEADERS = frozenset(
    {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
)
# Headers that SPEC 2.4 adds to every answer.
ADDED_HEADERS = {"x-accel-buffering": "no"}
# Directives that SPEC 2.4 lets us add to the recorded ones.
ADDED_CACHE_DIRECTIVES = frozenset({"no-transform"})


def differences(steps: Sequence[Step], replayed: Replay) -> list[str]:
    """How the replay differs from what these steps expect."""
    found = []
    for index, (step, done, observation) in enumerate(
        zip(steps, replayed.steps, replayed.observations, strict=True)
    ):
        if done["do"] != step["do"]:
            found.append(f"step {index} ({step['do']}): {done['do']} in its place")
            continue
        match observation:
            case None:
                sentences: Iterator[str] = iter(())
            case Published():
                sentences = _published(step["expect"], observation)
            case Parked():
                sentences = unequal(step["expect"]["parked"], observation.parked, "parked")
            case Queried():
                sentences = unequal(step["expect"]["result"], observation.result, "result")
            case Exchange():
                sentences = _answered(step, observation, replayed)
        found += [f"step {index} ({step['do']}): {sentence}" for sentence in sentences]
    return found


def server_errors(replayed: Replay) -> list[str]:
    """The answers with a 5xx status, and the requests that got no answer at all."""
    return [
        f"step {index}: {_summary(observation.response)}"
        for index, observation in enumerate(replayed.observations)
        if isinstance(observation, Exchange)
        and (observation.response.status_line is None or observation.response.status >= 500)
        and not observation.dropped
    ]


# -- publications ------------------------------------------------------------------------------


def _published(expected: Mapping[str, Any], published: Published) -> Iterator[str]:
    if "error" in expected:
        if published.message_ids:
            yield f"accepted as {published.message_ids}, expected a refusal"
    elif published.refusals:
        yield f"refused: {published.refusals[0]}"
    elif "first" in expected:
        ends = [published.message_ids[0], published.message_ids[-1]]
        wanted = [expected["first"]["message_id"], expected["last"]["message_id"]]
        yield from unequal(wanted, ends, "first and last message_id")
    else:
        yield from unequal([expected["message_id"]], published.message_ids, "message_id")


# -- answers -----------------------------------------------------------------------------------


def _answered(step: Step, exchange: Exchange, replayed: Replay) -> Iterator[str]:
    response, expected = exchange.response, step["expect"]
    if response.status_line is None:
        yield f"no answer: {response.error or 'nothing came'}"
        return
    held = _held(exchange, replayed)
    if step.get("accept") == "error":
        if response.status < 400 or not _held_as("no", exchange, replayed):
            yield f"expected an error at once, got {_summary(response)}, held {held}"
        return
    if response.status != expected["status"]:
        yield f"status {_summary(response)}, expected {expected['status']}"
        return
    if not _held_as(expected["held"], exchange, replayed):
        yield f"held {held}, expected {expected['held']}"
    if response.error and not exchange.dropped:
        yield f"the response is broken: {response.error}"
    yield from _headers(expected, response)
    yield from _connection(step, exchange)
    if exchange.bytes_after != expected.get("bytes_after_response", False):
        yield f"bytes after the response: {exchange.connection.unread[:80]!r}"
    if expected["status"] == 200:
        yield from _content(expected, exchange, replayed)


def _summary(response: Response) -> str:
    if response.status_line is None:
        return "no answer"
    return f"{response.status} {response.body[:300].decode('utf-8', 'replace')!r}"


def _connection(step: Step, exchange: Exchange) -> Iterator[str]:
    """Open or closed afterwards. Framing that ends with the connection is not asked about here."""
    expected = step["expect"]["connection"]
    if exchange.dropped or expected == "dropped_by_client":
        return
    actual = "closed" if exchange.closed_by_server else "open"
    if actual == expected:
        return
    if actual == "closed" and exchange.response.status != 200:
        return
    if actual == "open" and not step.get("check_connection"):
        return
    yield f"connection {actual}, expected {expected}"


def _headers(expected: Mapping[str, Any], response: Response) -> Iterator[str]:
    names = Counter(name.lower() for name, _ in response.headers)
    for name, count in names.items():
        if count > 1 and name != "set-cookie":
            yield f"header {name} stands there {count} times: {response.values(name)}"
    successful = response.status == 200
    for name, value in expected["headers"].items():
        if name == "content-type" and not successful:
            continue
        actual = response.values(name)
        if name == "cache-control":
            if not actual or not _same_cache_control(value, actual[0]):
                yield f"header cache-control {actual}, expected {value!r}"
        elif actual != [value]:
            yield f"header {name} {actual}, expected {value!r}"
    for name in expected.get("headers_absent", ()):
        if name in names:
            yield f"header {name} {response.values(name)}, expected none"
    if successful:
        for name in names.keys() - expected["headers"].keys() - SERVER_HEADERS:
            if response.values(name) != [ADDED_HEADERS.get(name)]:
                yield f"unexpected header {name} {response.values(name)}"


def _same_cache_control(expected: str, actual: str) -> bool:
    wanted, got = (
        {directive.strip().lower() for directive in text.split(",")} for text in (expected, actual)
    )
    return wanted <= got and got - wanted <= ADDED_CACHE_DIRECTIVES


def _content(expected: Mapping[str, Any], exchange: Exchange, replayed: Replay) -> Iterator[str]:
    response = exchange.response
    if response.framing != expected["framing"]:
        yield f"framing {response.framing}, expected {expected['framing']}"
    if "terminated" in expected and response.terminated != expected["terminated"]:
        yield f"terminated {response.terminated}, expected {expected['terminated']}"
    if "chunks" in expected:
        yield from _chunks(expected["chunks"], exchange, replayed)
    elif "messages" in expected:
        yield from _messages(expected["messages"], response.body, "messages")
    else:
        yield from unequal(expected["body"], _body(expected["body"], response.body), "body")


def _body(expected: Any, body: bytes) -> Any:
    """A body in the form that its recording has."""
    if isinstance(expected, str):
        return body.decode("utf-8", "replace")
    return {"$base64": base64.b64encode(body).decode()}


def _chunks(
    expected: Sequence[Mapping[str, Any]], exchange: Exchange, replayed: Replay
) -> Iterator[str]:
    chunks = exchange.response.chunks
    expected = _in_batches(expected, chunks)
    if len(chunks) != len(expected):
        got = [(_time(exchange, chunk.at, replayed), chunk.data[:200]) for chunk in chunks]
        yield f"{len(chunks)} chunks, expected {len(expected)}: {got}"
        return
    for number, (wanted, chunk) in enumerate(zip(expected, chunks, strict=True)):
        if not _came(exchange, chunk.at, wanted["when"], replayed):
            came = _time(exchange, chunk.at, replayed)
            yield f"chunk {number} came at {came}, expected {wanted['when']}"
        yield from _frame(wanted["messages"], chunk, f"chunk {number}")


def _in_batches(
    expected: Sequence[Mapping[str, Any]], chunks: Sequence[Chunk]
) -> Sequence[Mapping[str, Any]]:
    """The expected chunks, put together where several of one event came as one (SPEC 2.4)."""
    rest = list(expected)
    batches = []
    for chunk in chunks:
        if not rest:
            return expected
        batch = dict(rest.pop(0))
        count = chunk.data.count(b'"message_id"')
        while rest and len(batch["messages"]) < count and rest[0]["when"] == batch["when"]:
            batch["messages"] = [*batch["messages"], *rest.pop(0)["messages"]]
        batches.append(batch)
    return expected if rest else batches


def _frame(expected: Sequence[Any], chunk: Chunk, where: str) -> Iterator[str]:
    if chunk.data.count(SEPARATOR) != 1 or not chunk.data.endswith(SEPARATOR):
        yield f"{where} is not exactly one frame: {chunk.data[:200]!r}"
    else:
        yield from _messages(expected, chunk.data.removesuffix(SEPARATOR), where)


def _messages(expected: Sequence[Any], body: bytes, where: str) -> Iterator[str]:
    try:
        actual = json.loads(body.decode("utf-8"), object_pairs_hook=_object)
    except ValueError as error:
        yield f"{where}: not a list of messages ({error}): {body[:200]!r}"
    else:
        yield from unequal(expected, actual, where)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands there twice")
    return members


# -- time ----------------------------------------------------------------------------------------


def _held(exchange: Exchange, replayed: Replay) -> str:
    """How long a response was held, for people."""
    ended_at = exchange.response.ended_at
    if ended_at is None or exchange.dropped:
        return "still_open"
    return f"until {_time(exchange, ended_at, replayed)}"


def _held_as(expected: str, exchange: Exchange, replayed: Replay) -> bool:
    ended_at = exchange.response.ended_at
    if ended_at is None or exchange.dropped:
        return expected == "still_open"
    when = "immediate" if expected == "no" else expected.removeprefix("until_")
    return _came(exchange, ended_at, when, replayed)


def _came(exchange: Exchange, at: float, when: str, replayed: Replay) -> bool:
    """Whether something came then: ``immediate``, ``step:N`` or ``timeout``."""
    elapsed = (at - exchange.response.sent_at) / replayed.interval
    last = _last_event(exchange, at, replayed)
    if when == "immediate":
        return last is None and elapsed <= IMMEDIATE
    if when == "timeout":
        return elapsed >= TIMEOUT
    return when == f"step:{last}"


def _time(exchange: Exchange, at: float, replayed: Replay) -> str:
    """The same for people, who are told both."""
    elapsed = (at - exchange.response.sent_at) / replayed.interval
    last = _last_event(exchange, at, replayed)
    return f"{elapsed:.0%} of the interval" + ("" if last is None else f", after step {last}")


def _last_event(exchange: Exchange, at: float, replayed: Replay) -> int | None:
    """The event before that moment, if there was one since the request."""
    before = [
        index for index, began in replayed.events.items() if index > exchange.step and began <= at
    ]
    return max(before, default=None)


# -- values ------------------------------------------------------------------------------------


def unequal(expected: Any, actual: Any, where: str) -> Iterator[str]:
    """Compare strictly: 1, 1.0 and true are three values, and members have an order.

    An expected ``$long_text`` or ``$long_bytes`` is the digest of a value too long to be kept.
    """
    match expected:
        case {"$long_text": {"length": length, "sha256": sha256}}:
            if not isinstance(actual, str):
                yield f"{where}: {_shown(actual)}, expected a text of {length} characters"
            elif (len(actual), _digest(actual.encode())) != (length, sha256):
                yield f"{where}: another text of {len(actual)} characters, expected {length}"
        case {"$long_bytes": {"length": length, "sha256": sha256}}:
            body = base64.b64decode(actual["$base64"])
            if (len(body), _digest(body)) != (length, sha256):
                yield f"{where}: other {len(body)} bytes, expected {length}"
        case dict() if isinstance(actual, dict):
            if list(expected) != list(actual):
                yield f"{where}: members {_shown(list(actual))}, expected {_shown(list(expected))}"
            else:
                for key, member in expected.items():
                    yield from unequal(member, actual[key], f"{where}[{key!r}]")
        case list() if isinstance(actual, list):
            if len(expected) != len(actual):
                yield f"{where}: {_shown(actual)}, expected {_shown(expected)}"
            else:
                for index, member in enumerate(expected):
                    yield from unequal(member, actual[index], f"{where}[{index}]")
        case _:
            if type(expected) is not type(actual) or expected != actual:
                yield f"{where}: {_shown(actual)}, expected {_shown(expected)}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}…"
