"""The bus under test: the seam between the replay and whatever speaks the protocol.

A replay needs a fresh bus with a scenario's settings, its URL, and the two things that no
subscriber can do: publishing and asking for what is stored. ``launch_daemon`` provides that with a
messagebusd process; anything else with the same signature, ``Launch``, will do as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.conformance.filters import filter_tables, write_module
from tests.conformance.scenarios import Scenario
from tests.conformance.stores import FreshStore
from tests.conformance.webhook import application
from tests.support.daemon import ApiError, Daemon
from tests.support.hosted import HostedDaemon

USER, GROUPS, SITE, FAIL = "X-Test-User", "X-Test-Groups", "X-Test-Site", "X-Test-Fail"
NO_SITE = "X-Test-No-Site"  # nobody sends it: the host application gives no site ids

# The fields a stored message has in the recordings.
MESSAGE_FIELDS = (
    "global_id",
    "message_id",
    "channel",
    "data",
    "site_id",
    "user_ids",
    "group_ids",
    "client_ids",
)


class Refused(Exception):
    """A publication was refused, as the caller's mistake."""


class Target(Protocol):
    """A running bus."""

    @property
    def url(self) -> str:
        """Where polls go, ``http://host:port``."""
        ...

    async def publish(self, channel: str, data: Any, options: Mapping[str, Any]) -> int:
        """Publish and return the message id. Raises Refused."""
        ...

    async def query(self, op: str, arguments: Mapping[str, Any]) -> Any:
        """Ask for what is stored, by the name and in the form of the recordings."""
        ...

    async def stop(self) -> list[str]:
        """Stop it, and tell what went wrong inside meanwhile."""
        ...


class Launch(Protocol):
    """Start a fresh bus, on an empty store, with the scenario's settings.

    ``limits`` are settings of the bus that the scenario needs raised, section by section.
    """

    def __call__(
        self, scenario: Scenario, limits: Mapping[str, Mapping[str, Any]]
    ) -> AbstractAsyncContextManager[Target]: ...


@asynccontextmanager
async def launch_daemon(
    store: FreshStore,
    scenario: Scenario,
    limits: Mapping[str, Mapping[str, Any]],
    *,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Target]:
    """A messagebusd on this store, if it is a process with ``env`` in its environment.

    The host application is played by request headers, and by a small server only where it refuses
    polls: that takes a webhook.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="messagebusd-")))
        backend = await stack.enter_async_context(store())
        config = _config(scenario, backend, limits)
        write_module(folder, scenario.server["client_message_filters"])
        if "host_rejection" in scenario.requires:
            headers = [USER, GROUPS, FAIL, *([SITE] if scenario.server["multisite"] else [])]
            url = await stack.enter_async_context(application(USER, GROUPS, SITE, FAIL))
            config["lookup"] = {
                "mode": "webhook",
                "webhook": {"url": url, "forward_headers": [name.lower() for name in headers]},
            }
        # Filters are modules of one name, which one process can have only once. The embedded store
        # is replayed as users start it, the others in less time.
        alone = backend["kind"] == "memory" or "filters" in scenario.requires
        kind = Daemon if alone else HostedDaemon
        daemon = kind(folder, config, env={**(env or {}), "PYTHONPATH": str(folder)})
        yield DaemonTarget(await stack.enter_async_context(daemon))


def _config(
    scenario: Scenario, backend: Mapping[str, Any], limits: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    server = scenario.server
    config: dict[str, Any] = {
        "server": {
            "base_route": server["base_route"],
            "trusted_proxies": ["127.0.0.1"],
            "shutdown_timeout": 2.0,
        },
        "poll": {
            "long_polling_enabled": server["long_polling_enabled"],
            "long_polling_interval": scenario.interval,
            "chunked_encoding_enabled": server["chunked_encoding_enabled"],
            "max_active_clients": server["max_active_clients"],
            "allow_broadcast": server["allow_broadcast"],
            "extra_response_headers": server["extra_response_headers"],
        },
        # Nothing of our own shall count ids while a scenario goes on.
        "backend": {"keepalive_interval": 0.0, **backend, **server.get("backlog_limits", {})},
        "lookup": {
            "mode": "headers",
            "headers": {
                "user": USER,
                "groups": GROUPS,
                "site": SITE if server["multisite"] else NO_SITE,
            },
        },
    }
    for section, values in limits.items():
        config[section].update(values)
    if server["client_message_filters"]:
        config["filters"] = filter_tables(server["client_message_filters"])
    return config


class DaemonTarget:
    """A messagebusd process in the words of the recordings."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    @property
    def url(self) -> str:
        return self._daemon.url

    async def publish(self, channel: str, data: Any, options: Mapping[str, Any]) -> int:
        try:
            answer = await self._daemon.publish(channel, data, **options)
        except ApiError as error:
            if 400 <= error.status < 500:
                raise Refused(str(error)) from None
            raise
        if isinstance(self._daemon, HostedDaemon):
            await self._daemon.settle()
        message_id: int = answer["message_id"]
        return message_id

    async def query(self, op: str, arguments: Mapping[str, Any]) -> Any:
        match op:
            case "last_id":
                return (await self._get("last_id", arguments))["last_id"]
            case "last_ids":
                return (await self._daemon.api("POST", "last_ids", dict(arguments)))["last_ids"]
            case "backlog" | "global_backlog":
                messages = (await self._get(op, arguments))["messages"]
                return [_as_recorded(message) for message in messages]
            case "last_message":
                return _as_recorded(await self._get("message", {**arguments, "last": "true"}))
            case _:
                raise NotImplementedError(f"query {op}")

    async def stop(self) -> list[str]:
        code = await self._daemon.stop()
        problems = [] if code == 0 else [f"the daemon ended with exit code {code}"]
        problems += [
            f"the daemon logged {record['level']}: {record}"
            for record in self._daemon.log
            if record.get("level") in ("error", "critical")
        ]
        return problems

    async def _get(self, call: str, query: Mapping[str, Any]) -> Any:
        return await self._daemon.api("GET", call, query=query)


def _as_recorded(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with all its fields, in the order of the recordings; those it lacks are null."""
    unknown = sorted(message.keys() - MESSAGE_FIELDS)
    assert not unknown, f"a stored message has the fields {unknown}"
    return {field: message.get(field) for field in MESSAGE_FIELDS}
