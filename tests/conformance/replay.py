"""Doing a scenario's steps and noting what happened.

Nothing is judged here. What a step's recording expects is only used to wait a little longer on a
loaded machine: until something that should have come by now is there.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tests.conformance.scenarios import Scenario, Step, expand
from tests.conformance.target import Refused, Target
from tests.support.rawhttp import RawConnection, Response, encode_parts

PAUSE_SECONDS = 0.15  # for live delivery, which is asynchronous
QUIET_SECONDS = 0.3  # a poll of which nothing came for so long is parked
PATIENCE_SECONDS = 10.0  # beyond the interval; then a response counts as never ending
CLOSE_SECONDS = 2.0  # for a server that is to close the connection
OPEN_SECONDS = 0.05  # for a server that is not
BOUNDARY = "messagebusd-conformance"

# What may release or feed a waiting poll. Steps that are not here, and quick ones, are no events.
EVENTS = ("publish", "request", "start", "disconnect")
PUBLISH_OPTIONS = (
    "user_ids",
    "group_ids",
    "client_ids",
    "site_id",
    "max_backlog_size",
    "max_backlog_age",
)


@dataclass(slots=True, eq=False)
class Exchange:
    """A request and what came back. ``step`` is the index of the step that sent it."""

    step: int
    connection: RawConnection
    response: Response
    shared: bool  # the connection has a name, more requests may follow
    dropped: bool = False
    closed_by_server: bool = False
    bytes_after: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """The ids that publications got, the refusals of those that got none."""

    message_ids: list[int]
    refusals: list[str]


@dataclass(frozen=True, slots=True)
class Parked:
    parked: bool


@dataclass(frozen=True, slots=True)
class Queried:
    result: Any


Observation = Exchange | Published | Parked | Queried | None


@dataclass(slots=True)
class Replay:
    """What happened: one observation for each step, and when each event began."""

    steps: list[Step]
    interval: float
    observations: list[Observation] = field(default_factory=list)
    events: dict[int, float] = field(default_factory=dict)


async def replay(scenario: Scenario, target: Target) -> Replay:
    """Do all steps, in order."""
    async with _Player.playing(scenario, target) as player:
        for index, step in enumerate(scenario.steps):
            player.record.observations.append(await player.do(index, step))
        return player.record


class _Player:
    """The state between steps: connections, and polls that are still waiting."""

    def __init__(self, scenario: Scenario, target: Target) -> None:
        self.record = Replay(scenario.steps, scenario.interval)
        self._steps = scenario.steps
        self._interval = scenario.interval
        self._target = target
        self._named: dict[str, RawConnection] = {}
        self._connections: list[RawConnection] = []
        self._waiting: dict[str, Exchange] = {}
        self._just_published = False

    @classmethod
    @asynccontextmanager
    async def playing(cls, scenario: Scenario, target: Target) -> AsyncIterator[_Player]:
        player = cls(scenario, target)
        try:
            yield player
        finally:
            for connection in player._connections:
                await connection.abort()

    async def do(self, index: int, step: Step) -> Observation:
        quick = step.get("quick", False)
        sends = step["do"] in ("request", "start")
        if self._just_published and sends and not quick:
            await asyncio.sleep(PAUSE_SECONDS)
            self._just_published = False
        if step["do"] in EVENTS and not quick:
            self.record.events[index] = asyncio.get_running_loop().time()
        observation = await self._do(index, step)
        if self._waiting and not quick:
            await self._let_arrive(index)
            await asyncio.sleep(PAUSE_SECONDS)
        return observation

    async def _do(self, index: int, step: Step) -> Observation:
        match step["do"]:
            case "publish":
                self._just_published = True
                return await self._publish(step)
            case "request":
                exchange = await self._send(index, step)
                return await self._finish(exchange, step)
            case "start":
                self._waiting[step["id"]] = await self._send(index, step)
                return None
            case "wait_parked":
                return await self._wait_parked(index, step)
            case "await":
                exchange = self._waiting[step["id"]]
                try:
                    return await self._finish(exchange, step)
                finally:
                    del self._waiting[step["id"]]
            case "disconnect":
                return await self._disconnect(self._waiting.pop(step["id"]))
            case "sleep":
                await asyncio.sleep(step["ms"] / 1000)
                return None
            case "query":
                arguments = {k: v for k, v in step.items() if k in _QUERY_ARGUMENTS}
                return Queried(await self._target.query(step["op"], arguments))
            case unknown:
                raise NotImplementedError(f"step {unknown}")

    # -- publishing ----------------------------------------------------------------------------

    async def _publish(self, step: Step) -> Published:
        message_ids, refusals = [], []
        options = {name: step[name] for name in PUBLISH_OPTIONS if name in step}
        for number in range(1, step.get("times", 1) + 1):
            try:
                message_ids.append(
                    await self._target.publish(
                        expand(step["channel"], number),
                        expand(step["data"], number),
                        expand(options, number),
                    )
                )
            except Refused as refusal:
                refusals.append(str(refusal))
        return Published(message_ids, refusals)

    # -- requests ------------------------------------------------------------------------------

    async def _send(self, index: int, step: Step) -> Exchange:
        connection, shared = await self._connect(step.get("connection"))
        headers, body = _content(step)
        head, framed = encode_parts(
            step["method"],
            expand(step["path"]),
            headers=headers,
            body=body,
            chunked=step.get("transfer") == "chunked",
            version=step.get("http_version", "1.1"),
        )
        if any(name.lower() == "expect" for name, _ in headers):
            response = connection.send(head)
            await response.until(lambda r: bool(r.interim or r.status_line), CLOSE_SECONDS)
            connection.send_more(framed)
        else:
            response = connection.send(head + framed)
        return Exchange(index, connection, response, shared)

    async def _connect(self, name: str | None) -> tuple[RawConnection, bool]:
        """The named connection, if it is still open; any other is fresh."""
        known = self._named.get(name) if name else None
        if known is not None and not await known.closed_by_peer(within=0):
            return known, True
        connection = await RawConnection.open(self._target.url)
        self._connections.append(connection)
        if name:
            self._named[name] = connection
        return connection, name is not None

    async def _finish(self, exchange: Exchange, step: Step) -> Exchange:
        """Read the rest and see what the server then does with the connection."""
        response = exchange.response
        await response.until(lambda r: r.over, self._interval + PATIENCE_SECONDS)
        announced = "close" in [value.lower() for value in response.values("connection")]
        to_close = announced or (
            step.get("check_connection", False) and step["expect"]["connection"] == "closed"
        )
        within = CLOSE_SECONDS if to_close else OPEN_SECONDS
        exchange.closed_by_server = await exchange.connection.closed_by_peer(within)
        exchange.bytes_after = response.over and bool(exchange.connection.unread)
        if not exchange.shared:
            await exchange.connection.abort()
        return exchange

    async def _disconnect(self, exchange: Exchange) -> Exchange:
        if exchange.response.over:
            exchange.closed_by_server = await exchange.connection.closed_by_peer(CLOSE_SECONDS)
        else:
            exchange.dropped = True
        await exchange.connection.abort()
        return exchange

    # -- waiting -------------------------------------------------------------------------------

    async def _wait_parked(self, index: int, step: Step) -> Parked:
        await self._let_arrive(index)
        return Parked(await self._waiting[step["id"]].response.quiet(QUIET_SECONDS))

    async def _let_arrive(self, index: int) -> None:
        """Wait until the waiting polls have got what the events so far should have brought.

        In vain, when the bus does otherwise: so not for long.
        """
        for name, exchange in self._waiting.items():
            due = _due(self._outcome_of(name, exchange.step), index)
            await exchange.response.until(due, self._interval / 4)

    def _outcome_of(self, name: str, started: int) -> Mapping[str, Any]:
        """What is expected of a response that was started at that step under that name."""
        for step in self._steps[started + 1 :]:
            if step["do"] in ("await", "disconnect") and step["id"] == name:
                expected: Mapping[str, Any] = step["expect"]
                return expected
        return {}


_QUERY_ARGUMENTS = ("channel", "channels", "last_id", "site_id")


def _due(expected: Mapping[str, Any], index: int) -> Callable[[Response], bool]:
    """Whether all has come that was to come until the event with that index."""

    def happened(when: str) -> bool:
        if when.startswith(("step:", "until_step:")):
            return int(when.rpartition(":")[2]) <= index
        return when in ("immediate", "no")

    chunks = sum(happened(chunk["when"]) for chunk in expected.get("chunks", ()))
    over = happened(expected.get("held", ""))
    return lambda response: len(response.chunks) >= chunks and (response.over or not over)


def _content(step: Step) -> tuple[list[tuple[str, str]], bytes | None]:
    """The headers, with the content type that belongs to the body, and the body."""
    headers = list(step.get("headers", {}).items())
    content_type = None
    body: bytes | None = None
    if "form" in step:
        form = expand(step["form"])
        pairs = form.items() if isinstance(form, dict) else form
        body = urlencode(list(map(tuple, pairs))).encode()
        content_type = "application/x-www-form-urlencoded"
    elif "json" in step:
        document = expand(step["json"])
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        content_type = "application/json"
    elif "multipart" in step:
        body = _multipart(expand(step["multipart"]))
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
    elif "raw" in step:
        raw = expand(step["raw"])
        body = (raw if isinstance(raw, str) else "".join(raw)).encode()
    elif "raw_base64" in step:
        body = base64.b64decode(step["raw_base64"])
    named = any(name.lower() == "content-type" for name, _ in headers)
    if content_type is not None and not named:
        headers.append(("Content-Type", content_type))
    if body is None and step["method"] == "POST":
        body = b""
    return headers, body


def _multipart(pairs: Sequence[Sequence[str]]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in pairs
    ]
    return ("".join(parts) + f"--{BOUNDARY}--\r\n").encode()
