"""Message filters: functions of the operator's that may withhold a message (SPEC 6).

A filter concerns the channels that begin with its prefix. Every filter that concerns a message
must allow it; one that raises withholds, because a broken filter must not become a leak.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from messagebusd.connection import Viewer
from messagebusd.errors import ConfigurationError
from messagebusd.protocol.message import Message

# Called with the message and the client as dictionaries; whether the message may be delivered.
# The message is the same object for all clients: a filter must not change it.
Allow = Callable[[dict[str, Any], dict[str, Any]], object]

_log = logging.getLogger(__name__)


class Filter(NamedTuple):
    """One declared filter; ``name`` is how logs call it."""

    channel_prefix: str
    name: str
    allow: Allow


def load_filter(channel_prefix: str, name: str) -> Filter:
    """Import ``package.module:function``. Raises ConfigurationError."""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError([f"filters: {name} cannot be imported: {error}"]) from error
    if not callable(function):
        raise ConfigurationError([f"filters: {name} is not callable"])
    return Filter(channel_prefix, name, function)


class FilterChain:
    """All filters. ``failed`` is called for each evaluation that raised."""

    def __init__(self, filters: Sequence[Filter], failed: Callable[[], None]) -> None:
        self._filters = tuple(filters)
        self._failed = failed
        self._logged: set[str] = set()
        # The last message looked at: a fan-out asks for the same one ten thousand times.
        self._decoded: tuple[Message, dict[str, Any]] | None = None

    def concerns(self, channel: str) -> bool:
        """Whether any filter looks at this channel."""
        return any(channel.startswith(each.channel_prefix) for each in self._filters)

    def allow(self, message: Message, viewer: Viewer, client_id: str) -> bool:
        """Whether all filters that concern the message let this client have it."""
        for each in self._filters:
            if message.channel.startswith(each.channel_prefix) and not self._ask(
                each, message, viewer, client_id
            ):
                return False
        return True

    def _ask(self, each: Filter, message: Message, viewer: Viewer, client_id: str) -> bool:
        client = {
            "user_id": viewer.user_id,
            "group_ids": list(viewer.group_ids),
            "site_id": viewer.site_id,
            "is_admin": viewer.is_admin,
            "client_id": client_id,
        }
        try:
            return bool(each.allow(self._decode(message), client))
        except Exception:
            self._failed()
            if each.name not in self._logged:
                self._logged.add(each.name)
                _log.exception("filter failed, so it withholds", extra={"filter": each.name})
            return False

    def _decode(self, message: Message) -> dict[str, Any]:
        if self._decoded is None or self._decoded[0] is not message:
            about = {
                "channel": message.channel,
                "site_id": message.site_id,
                "message_id": message.message_id,
                "global_id": message.global_id,
                "data": msgspec.json.decode(message.data),
            }
            self._decoded = (message, about)
        return self._decoded[1]
