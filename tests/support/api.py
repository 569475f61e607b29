"""The API in this process, on a real port, and a client that holds it to its description.

::

    async with ApiServer() as api:
        answer = await api.post("publish", {"channel": "/foo", "data": 1})
        assert answer.status == 200

Every request and answer that goes through the client is checked against the OpenAPI document.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from jsonschema import Draft202012Validator

from messagebusd.backends.base import Once, Published, Retention
from messagebusd.backends.memory import MemoryBackend
from messagebusd.bus import MessageBus
from messagebusd.errors import StoreUnavailable
from messagebusd.http import openapi
from messagebusd.http.api import PREFIX, Api
from messagebusd.http.app import application, runner
from messagebusd.http.auth import Key, KeyRing, digest
from messagebusd.http.middleware import Errors
from messagebusd.http.openapi_parts import ITEM_SCHEMA
from messagebusd.hub import Hub
from messagebusd.metrics import Metrics
from messagebusd.protocol.catchup import LastId
from messagebusd.protocol.publication import Publication, PublishRules, check_publication
from messagebusd.protocol.requests import PollLimits

KEY = "the-key"
WAIT_SECONDS = 10.0


class FragileBackend(MemoryBackend):
    """A store that can be away: ``away_after`` more operations, if it is not None."""

    def __init__(self, retention: Retention) -> None:
        super().__init__(retention, max_bytes=2**26)
        self.away_after: int | None = None
        # Cleared, it holds publishes back; the first of them sets the other one.
        self.publishing = asyncio.Event()
        self.publishing.set()
        self.arrived = asyncio.Event()

    def _fail_if_away(self) -> None:
        if self.away_after is not None:
            if self.away_after <= 0:
                raise StoreUnavailable("the test took it away")
            self.away_after -= 1

    async def publish(self, publication: Publication, once: Once | None = None) -> Published:
        self.arrived.set()
        await self.publishing.wait()
        self._fail_if_away()
        return await super().publish(publication, once)

    async def last_ids(self, channels: Sequence[str]) -> Mapping[str, LastId]:
        self._fail_if_away()
        return await super().last_ids(channels)

    async def backlog(self, *args: Any, **options: Any) -> Any:
        self._fail_if_away()
        return await super().backlog(*args, **options)

    async def channels(self, after: str, limit: int) -> Any:
        self._fail_if_away()
        return await super().channels(after, limit)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``json`` is None where there is no body."""

    status: int
    headers: Mapping[str, str]
    json: Any

    @property
    def code(self) -> str | None:
        return self.json["code"] if self.status >= 400 else None


class ApiServer:
    """The API's routes on the internal application, and what is behind them."""

    def __init__(
        self,
        *,
        keys: Sequence[Key] = (),
        retention: Retention | None = None,
        rules: PublishRules | None = None,
        backend: MemoryBackend | None = None,
        max_backlog_bytes: int = 2**22,
        wall: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self.metrics = Metrics()
        self.hub = Hub(
            asyncio.get_running_loop(),
            self.metrics,
            interval=25.0,
            max_active_clients=1000,
            max_client_buffer=2**18,
        )
        self.backend: Any = backend or FragileBackend(retention or Retention())
        self.bus = MessageBus(
            self.backend, self.hub, self.metrics, max_backlog_bytes=max_backlog_bytes
        )
        self.rules = rules or PublishRules()
        ring = KeyRing([Key("test", digest(KEY)), *keys], wall)
        api = Api(
            self.bus,
            ring,
            self.metrics,
            self.rules,
            PollLimits(),
            **{"body_timeout": WAIT_SECONDS, **options},
        )
        app = application(Errors(self.metrics), lambda: False)
        app.add_routes(api.routes())
        self._runner = runner(app, self.metrics, 1.0)
        self.url = ""
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        await self.backend.open()
        await self._runner.setup()
        site = aiohttp.web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self.session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(WAIT_SECONDS))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.session.close()
        self.hub.end_feeds()
        await self._runner.cleanup()
        self.hub.abort()
        await self.backend.close()

    # -- requests --------------------------------------------------------------------------------

    async def get(self, call: str, **query: Any) -> Answer:
        return await self.request("GET", call, query=query)

    async def post(self, call: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("POST", call, body=body, **options)

    async def request(
        self,
        method: str,
        call: str,
        *,
        query: Any = None,
        body: Any = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = KEY,
    ) -> Answer:
        """Ask for ``/api/v1/<call>``, and check question and answer."""
        if body is not None:
            raw = json.dumps(body).encode()
        async with self.session.request(
            method,
            PREFIX + call,
            params=query,
            data=None if raw is None else io.BytesIO(raw),
            headers=_headers(key, headers),
        ) as response:
            text = await response.text()
            answer = Answer(response.status, response.headers, json.loads(text) if text else None)
        check_answer(method, PREFIX + call, answer)
        if answer.status < 400:
            check_request(method, PREFIX + call, query, raw, headers or {}, answer)
        return answer

    @asynccontextmanager
    async def subscribe(
        self,
        *,
        positions: Any = None,
        query: Any = None,
        headers: Mapping[str, str] | None = None,
        key: str = KEY,
    ) -> AsyncIterator[Subscription]:
        """An open subscription: a POST with positions, or a GET."""
        method = "GET" if positions is None else "POST"
        data = None if positions is None else json.dumps(positions).encode()
        async with self.session.request(
            method,
            f"{PREFIX}subscribe",
            params=query,
            data=data,
            headers=_headers(key, headers),
            timeout=aiohttp.ClientTimeout(None),
        ) as response:
            assert response.status == 200, await response.text()
            assert "no-store" in response.headers["Cache-Control"]
            check_request(method, f"{PREFIX}subscribe", query, data, headers or {}, None)
            yield Subscription(response)

    async def publish(self, channel: str, data: Any = None, **options: Any) -> Published:
        """Publish past the API."""
        raw = json.dumps(data).encode()
        return await self.bus.publish(check_publication(channel, raw, self.rules, **options))


class Subscription:
    """Lines of a subscription as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.raw = b""
        self._rest = b""
        self._validator = _validator({"$ref": "#/components/schemas/SubscriptionLine"})

    async def chunk(self) -> bytes:
        """Whatever comes next; empty at the end."""
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.response.content.readany()

    async def line(self) -> bytes | None:
        """The next line as it is, None at the end."""
        while b"\n" not in self._rest:
            chunk = await self.chunk()
            if not chunk:
                assert not self._rest, f"an unfinished line: {self._rest!r}"
                return None
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    async def document(self) -> Any:
        """The next line that is no heartbeat, decoded and checked; None at the end."""
        while (line := await self.line()) is not None:
            if line:
                document = json.loads(line)
                self._validator.validate(document)
                return document
        return None

    async def documents(self, count: int) -> list[Any]:
        """That many."""
        return [await self.document() for _ in range(count)]

    async def event(self) -> dict[str, str]:
        """The next server-sent event, its fields; comments are under the empty name."""
        fields: dict[str, str] = {}
        while line := await self.line():
            name, _, value = line.decode().partition(":")
            fields[name] = value.removeprefix(" ")
        if "data" in fields:
            self._validator.validate(json.loads(fields["data"]))
        return fields


def _headers(key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent.setdefault("Authorization", f"Bearer {key}")
    return sent


# -- the description -----------------------------------------------------------------------------

DOCUMENT = json.loads(json.dumps(openapi.document()))
CHECKED: set[tuple[str, str, int]] = set()
"""What was seen and found as described: method, path, status."""


def _validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]},
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )


def check_answer(method: str, path: str, answer: Answer) -> None:
    """An answer is as described."""
    operation = DOCUMENT["paths"].get(path, {}).get(method.lower())
    if operation is None:
        assert answer.status in (404, 405), f"{method} {path} is not described"
        described = DOCUMENT["components"]["responses"]["Problem404"]
    else:
        described = operation["responses"].get(str(answer.status))
        assert described, f"{method} {path} answered {answer.status}: {answer.json}"
        if "$ref" in described:
            described = DOCUMENT["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
    CHECKED.add((method, path, answer.status))
    assert answer.headers["Cache-Control"] == "no-store"
    for name, header in described.get("headers", {}).items():
        assert name in answer.headers or not header.get("required")
    if "content" not in described:
        assert answer.json is None
        return
    content = described["content"]
    assert answer.headers["Content-Type"] in content
    _validator(content[answer.headers["Content-Type"]]["schema"]).validate(answer.json)
    if answer.status >= 400:
        assert answer.json["status"] == answer.status
        assert answer.json["request_id"] == answer.headers["X-Request-Id"]


def check_request(
    method: str,
    path: str,
    query: Any,
    body: bytes | None,
    headers: Mapping[str, str],
    answer: Answer | None,
) -> None:
    """A request that was accepted is as described."""
    operation = DOCUMENT["paths"][path][method.lower()]
    known = {(each["in"], each["name"]): each for each in operation.get("parameters", ())}
    pairs = list(query.items() if isinstance(query, Mapping) else query or ())
    for name, value in pairs:
        schema = known["query", name]["schema"]
        if schema.get("type") == "array":
            schema = schema["items"]
        if schema.get("type") == "integer":
            value = int(value)
        _validator(schema).validate(value)
    for (place, name), parameter in known.items():
        assert not parameter.get("required") or (place, name) in {("query", n) for n, _ in pairs}
    if "requestBody" not in operation:
        assert not body
        return
    assert body is not None
    kind = headers.get("Content-Type", "application/json")
    content = operation["requestBody"]["content"][kind]
    if ITEM_SCHEMA in content:
        items = [json.loads(line) if _is_json(line) else None for line in body.splitlines() if line]
        schema = content[ITEM_SCHEMA]
    else:
        document = json.loads(body)
        schema = content["schema"]
        if not path.endswith("batch"):
            _validator(schema).validate(document)
            return
        items, schema = document["messages"], {"$ref": "#/components/schemas/Publication"}
    # Of a batch, each message is accepted or refused by itself.
    assert answer is not None
    for item, result in zip(items, answer.json["results"], strict=True):
        if "error" not in result:
            _validator(schema).validate(item)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
