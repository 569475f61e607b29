"""``GET /api/v1/explain``: why somebody got a message, or not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from messagebusd.bus import MessageBus
from messagebusd.errors import MalformedRequest
from messagebusd.explain.answer import explain
from messagebusd.explain.evidence import Evidence, Question, gather
from messagebusd.explain.words import Case
from messagebusd.http.auth import KeyRing
from messagebusd.http.exchange import Query, answer, id_of
from messagebusd.http.siblings import Siblings
from messagebusd.metrics import Metrics
from messagebusd.protocol.channels import qualify
from messagebusd.protocol.requests import PollLimits
from messagebusd.protocol.rules import ChannelRules


class ExplainDoor:
    """Asks the store, and every worker of this daemon. ``wall`` is the time of day in seconds."""

    def __init__(
        self,
        bus: MessageBus,
        keys: KeyRing,
        metrics: Metrics,
        limits: PollLimits,
        rules: ChannelRules,
        siblings: Siblings,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._metrics = metrics
        self._limits = limits
        self._rules = rules
        self._siblings = siblings
        self._wall = wall
        self._node = socket.gethostname()

    async def explain(self, request: web.Request) -> web.Response:
        """What is known of a message and of a user or client."""
        self._keys.authorize(request, "admin").require_unrestricted()
        query = Query(
            request,
            "channel",
            "message_id",
            "user_id",
            "client_id",
            "group_id",
            "site_id",
            repeatable=("group_id",),
        )
        channel = qualify(query.channel(self._limits.max_channel), query.site_id())
        message_id = query.integer("message_id")
        user, client_id = query.text("user_id"), query.text("client_id")
        if message_id is None:
            raise MalformedRequest("the query parameter 'message_id' is missing")
        if user is None and client_id is None:
            raise MalformedRequest("name a user_id, a client_id, or both")
        backend = self._bus.backend
        with self._metrics.store_operation("read"):
            last_id = (await backend.last_ids((channel,)))[channel].message_id
            message = await backend.message(channel, message_id)
            oldest, _ = await backend.backlog(channel, 0, max_messages=1, max_bytes=1)
        question = Question(
            channel,
            message_id,
            last_id,
            client_id,
            None if user is None else id_of(user),
            query.site_id(),
        )
        own = await self._gather(question)
        others = await self._siblings.ask("/explain", question)
        groups = query.texts("group_id")
        case = Case(
            channel=channel,
            message_id=message_id,
            user_id=question.user_id,
            client_id=client_id,
            group_ids=frozenset(map(id_of, groups)) if groups else None,
            message=message,
            last_id=last_id,
            first_id=oldest[0].message_id if oldest else None,
            rules=self._rules,
            evidence=sorted(
                [own, *(msgspec.convert(each, Evidence) for each in others.bodies)],
                key=lambda each: each.worker,
            ),
        )
        explanation = msgspec.to_builtins(explain(case, self._node))
        return answer(msgspec.json.encode({**explanation, **others.note()}))

    async def sibling_explain(self, request: web.Request) -> web.Response:
        """What this worker knows."""
        question = msgspec.json.decode(await request.read(), type=Question)
        return answer(msgspec.json.encode(await self._gather(question)))

    async def _gather(self, question: Question) -> Evidence:
        with self._metrics.store_operation("read"):
            message = await self._bus.backend.message(question.channel, question.message_id)
        return gather(
            self._bus.hub,
            question,
            message,
            worker=self._siblings.number,
            now=asyncio.get_running_loop().time(),
            wall=self._wall(),
        )
