"""Examine a Redis store, and the stream of the Redis door."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from messagebusd.backends.redis.keys import Keys
from messagebusd.doctor import redis_inbox, redis_keys, redis_server, timing
from messagebusd.doctor.announcements import round_trip
from messagebusd.doctor.redis_probe import Info, Probe, Refused
from messagebusd.doctor.report import Finding, Report, ok, problem, warning
from messagebusd.errors import ConfigurationError, StoreUnavailable
from messagebusd.settings import Settings

Check = Callable[[], Awaitable[list[Finding]]]


async def examine_store(settings: Settings, report: Report) -> None:
    """Examine the store; stops where the server goes away."""
    await _Examination(settings, report).run()


class _Examination:
    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._redis = settings.backend.redis
        self._report = report
        self._keys = Keys(self._redis.key_prefix)
        self._info: Info = {}

    async def run(self) -> None:
        report = self._report
        async with AsyncExitStack() as stack:
            try:
                self._probe = Probe(self._redis, self._redis.timeout)
                await stack.enter_async_context(self._probe)
            except ConfigurationError as error:
                report.add(problem("redis.reachable", str(error), "mend backend.redis"))
                return
            except StoreUnavailable as error:
                report.add(problem("redis.reachable", str(error), "see backend.redis; is it up?"))
                return
            report.add(ok("redis.reachable", "the server answers"))
            try:
                await self._examine()
            except StoreUnavailable as error:
                report.add(problem("redis.reachable", f"not any more: {error}", "is it stable?"))
                return
        advice = "see the other findings; publishing and subscribing need the same server"
        report.add(await round_trip(self._settings.backend, "redis.announcements", advice))

    async def _examine(self) -> None:
        await self._attempt("redis.info", self._ask_info, "+info")
        if self._info:
            await self._attempt("redis.config", self._ask_config, "+config|get")
        await self._attempt("redis.latency", self._measure, "+ping")
        await self._attempt("redis.clock", self._compare_clocks, "+time")
        await self._attempt("redis.pubsub", self._names, "+pubsub|channels +pubsub|numsub")
        await self._find_node()
        if self._info.get("role") != "slave":
            await self._attempt("redis.permissions", self._permissions, "")
        await self._attempt("redis.keys", self._layout, "+scan +evalsha +script|load")

    async def _attempt(self, name: str, check: Check, rights: str) -> None:
        """Run a check; one that the server refuses is none."""
        try:
            self._report.extend(await check())
        except Refused as refused:
            advice = f"redis-cli ACL SETUSER USER {rights}, or look yourself" if rights else ""
            self._report.add(warning(name, f"not examined: {refused}", advice))

    async def _ask_info(self) -> list[Finding]:
        self._info = info = await self._probe.info()
        findings = redis_server.judge_info(info)
        prefix, database = self._redis.key_prefix, self._probe.target.database
        if (cluster := redis_server.cluster(info, prefix, database)) is not None:
            findings.append(cluster)
        return findings

    async def _ask_config(self) -> list[Finding]:
        config = await self._probe.config(*redis_server.CONFIG)
        return redis_server.judge_config(self._info, config, self._settings.backend.max_data_size)

    async def _measure(self) -> list[Finding]:
        taken = []
        for _ in range(timing.ROUND_TRIPS):
            since = time.monotonic()
            await self._probe.ask("PING")
            taken.append(time.monotonic() - since)
        setting = "backend.redis.timeout"
        return [timing.latency("redis.latency", taken, self._redis.timeout, setting)]

    async def _compare_clocks(self) -> list[Finding]:
        since = time.time()
        seconds, micros = await self._probe.ask("TIME")
        until = time.time()
        theirs = int(seconds) + int(micros) / 1e6
        return [timing.clock("redis.clock", theirs - (since + until) / 2, until - since)]

    async def _names(self) -> list[Finding]:
        configured = self._redis.pubsub_channel
        derived = f"{self._redis.key_prefix}_message_bus_{self._probe.target.database}"
        return [await redis_keys.names(self._probe, configured or derived, configured is None)]

    async def _find_node(self) -> None:
        """In a cluster, go to the node that has the keys."""
        try:
            await self._probe.ask("GET", self._keys.global_id)
        except Refused as refused:
            if refused.node:
                await self._probe.follow(refused.node)

    async def _permissions(self) -> list[Finding]:
        return [await redis_keys.permissions(self._probe, self._keys)]

    async def _layout(self) -> list[Finding]:
        return await redis_keys.layout(self._probe, self._keys)


async def examine_inbox(settings: Settings, report: Report) -> None:
    """Examine the stream of the Redis door."""
    inbox = settings.ingest.redis
    try:
        connection = inbox.connection(settings.backend)
        async with Probe(connection, settings.backend.redis.timeout) as probe:
            report.extend(await redis_inbox.examine(probe, inbox.stream))
    except (ConfigurationError, StoreUnavailable) as error:
        report.add(problem("inbox.reachable", str(error), "see ingest.redis; is the server up?"))
    except Refused as refused:
        rights = "+type +exists +xlen +xrange +time"
        report.add(
            warning("inbox.stream", f"not examined: {refused}", f"ACL SETUSER USER {rights}")
        )
