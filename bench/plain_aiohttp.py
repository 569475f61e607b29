"""The measure: the same protocol on plain aiohttp, written as a textbook would.

A handler for each poll, a `StreamResponse` and a queue for each client, a loop that waits for the
queue. It does no more than the benchmark asks for: no reserved channels, retention by age, limits,
replaced polls, metrics, or deadlines. The JSON of a message is built once, as anybody would.

``python -m bench.plain_aiohttp KEY`` serves on a free port and says which on stderr.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import uvloop
from aiohttp import web

MAX_BACKLOG = 1000
HEADERS = {
    "Cache-Control": "must-revalidate, private, max-age=0, no-transform",
    "Pragma": "no-cache",
    "Expires": "0",
    "X-Accel-Buffering": "no",
    "X-Discourse-Route": "message-bus",
}


@dataclass(frozen=True, slots=True)
class Message:
    message_id: int
    encoded: bytes
    user_ids: frozenset[Any] | None


@dataclass(eq=False)
class Client:
    user_id: Any
    streams: bool
    queue: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)


class Channel:
    def __init__(self) -> None:
        self.last_id = 0
        self.backlog: deque[Message] = deque(maxlen=MAX_BACKLOG)
        self.clients: set[Client] = set()


class PlainServer:
    def __init__(self, key: str) -> None:
        self._authorization = f"Bearer {key}"
        self._channels: defaultdict[str, Channel] = defaultdict(Channel)
        self._global_id = 0
        self._parked = {"stream": 0, "long_poll": 0}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/message-bus/{client_id}/poll", self.poll)
        app.router.add_post("/api/v1/publish", self.publish)
        app.router.add_post("/api/v1/publish/batch", self.batch)
        app.router.add_get("/api/v1/stats", self.stats)
        app.router.add_get("/metrics", self.health)
        app.router.add_get("/readyz", self.health)
        return app

    async def poll(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        user = request.headers.get("X-MessageBus-User")
        streams = "Dont-Chunk" not in request.headers
        client = Client(int(user) if user else None, streams)
        news: list[bytes] = []
        channels = []
        for name, position in form.items():
            channel = self._channels[name]
            channels.append(channel)
            news += self._backlog(channel, int(str(position)), client)
        if request.query.get("dlp") == "t" or (news and not streams):
            return self._json(news)
        for channel in channels:
            channel.clients.add(client)
        mode = "stream" if streams else "long_poll"
        self._parked[mode] += 1
        try:
            if not streams:
                return self._json([await client.queue.get()])
            return await self._stream(request, client, news)
        finally:
            self._parked[mode] -= 1
            for channel in channels:
                channel.clients.discard(client)

    def _backlog(self, channel: Channel, position: int, client: Client) -> list[bytes]:
        after = position if position >= 0 else channel.last_id + position + 1
        if after >= channel.last_id:
            return []
        return [
            message.encoded
            for message in channel.backlog
            if message.message_id > after and allowed(client, message)
        ]

    def _json(self, messages: list[bytes]) -> web.Response:
        return web.Response(
            body=array(messages), content_type="application/json", charset="utf-8", headers=HEADERS
        )

    async def _stream(
        self, request: web.Request, client: Client, news: list[bytes]
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                **HEADERS,
                "Content-Type": "text/plain; charset=utf-8",
                "X-Content-Type-Options": "nosniff",
            }
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(frame(news))
        while True:
            messages = [await client.queue.get()]
            while not client.queue.empty():
                messages.append(client.queue.get_nowait())
            await response.write(frame(messages))

    async def publish(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return web.json_response(self._publish(await request.json()))

    async def batch(self, request: web.Request) -> web.Response:
        self._authorize(request)
        fields = await request.json()
        return web.json_response({"results": [self._publish(each) for each in fields["messages"]]})

    async def stats(self, request: web.Request) -> web.Response:
        self._authorize(request)
        return web.json_response({"clients": self._parked})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response(self._parked)

    def _authorize(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != self._authorization:
            raise web.HTTPUnauthorized

    def _publish(self, fields: dict[str, Any]) -> dict[str, Any]:
        name = fields["channel"]
        channel = self._channels[name]
        channel.last_id += 1
        self._global_id += 1
        ids = {"global_id": self._global_id, "message_id": channel.last_id}
        encoded = json.dumps({**ids, "channel": name, "data": fields["data"]}).encode()
        user_ids = fields.get("user_ids")
        message = Message(
            channel.last_id, encoded, None if user_ids is None else frozenset(user_ids)
        )
        channel.backlog.append(message)
        for client in tuple(channel.clients):
            if allowed(client, message):
                client.queue.put_nowait(encoded)
        return {"channel": name, **ids}


def allowed(client: Client, message: Message) -> bool:
    return message.user_ids is None or client.user_id in message.user_ids


def array(messages: list[bytes]) -> bytes:
    return b"[" + b",".join(messages) + b"]"


def frame(messages: list[bytes]) -> bytes:
    return array(messages) + b"\r\n|\r\n"


async def serve(key: str) -> None:
    # Cancelled handlers are how a plain server learns that a waiting client has gone.
    runner = web.AppRunner(PlainServer(key).app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    host, port = runner.addresses[0]
    for record in ({"message": "listening", "address": f"{host}:{port}"}, {"message": "ready"}):
        print(json.dumps(record), file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
