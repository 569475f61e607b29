"""What a distributed cache holds, and in which order operations take effect: no I/O.

Every operation has the message id that it was published with, and the higher id wins, whatever
comes first: the stream or the answer to the publish. So all caches come to hold the same.

What is on the wire is that of the Ruby gem's DistributedCache (REFERENCE 4.3). Values that Ruby has
marshalled are never read: unmarshalling runs code of whoever wrote them. Their keys are forgotten
instead, which for a cache is always right.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from typing import Any, TypeAlias

from messagebus_client import _json
from messagebus_client.types import Data, Message

CHANNEL = "/distributed_hash"
# An audience of nobody: pages never see it.
NOBODY = (-1,)

Key: TypeAlias = str | int


def setting(key: Key, value: Data) -> dict[str, Any]:
    """The operation that sets a key, with a copy of the value as others will see it."""
    copy = _json.decode(_json.encode(value))
    return {"op": "set", "key": key, "value": copy, "marshalled": False}


class CacheState:
    """One cache: all that publish with the same ``name`` share it.

    ``app_version``: operations of processes with another one are left alone, and have theirs left
    alone. The methods may be called by several threads; none of them waits.
    """

    def __init__(self, name: str, app_version: str | None) -> None:
        self.name = name
        self._app_version = app_version
        self._origin = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._values: dict[Key, Data] = {}
        # The operation that last decided about a key, by message id, and the latest clear: kept
        # only while an older one may still come, from the stream or as an answer to a publish.
        self._decided: dict[Key, int] = {}
        self._cleared = 0
        self._reached = 0
        self._in_flight = 0
        self._is_open = True

    def get(self, key: Key, default: Data) -> Data:
        return self._values.get(key, default)

    def snapshot(self) -> dict[Key, Data]:
        with self._lock:
            return dict(self._values)

    # -- operations of this process

    def begin(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What to publish for an operation; then `published` or `failed` must be called."""
        data = {**fields, "origin": self._origin, "hash_key": self.name}
        if self._app_version is not None:
            data["app_version"] = self._app_version
        with self._lock:
            self._in_flight += 1
        return data

    def published(self, fields: Mapping[str, Any], message_id: int | None) -> None:
        """The operation was published under this id: it takes effect here."""
        with self._lock:
            self._in_flight -= 1
            if message_id is not None:
                self._apply(fields, message_id)
            self._forget_decisions()

    def failed(self) -> None:
        """The operation was not published, or nobody knows: then the stream brings it."""
        with self._lock:
            self._in_flight -= 1
            self._forget_decisions()

    # -- operations of others

    def take(self, message: Message) -> None:
        """Take an operation from the stream. What is not one for this cache is left alone."""
        fields = message.data
        with self._lock:
            self._reached = message.message_id
            if self._is_for_us(fields):
                self._apply(fields, message.message_id)
            self._forget_decisions()

    def forget(self) -> None:
        """Operations were missed, so that anything may be stale; ids may begin anew."""
        with self._lock:
            self._values = {}
            self._decided = {}
            self._cleared = self._reached = 0

    def close(self) -> None:
        """Nothing will be heard any more: an empty cache is right, an old one is not."""
        self.forget()
        self._is_open = False

    def _is_for_us(self, fields: Any) -> bool:
        return (
            isinstance(fields, dict)
            and fields.get("hash_key") == self.name
            and (self._app_version is None or fields.get("app_version") == self._app_version)
        )

    def _apply(self, fields: Mapping[str, Any], message_id: int) -> None:
        if not self._is_open or message_id <= self._cleared:
            return
        if fields.get("op") == "clear":
            self._cleared = message_id
            kept = {key for key, decided in self._decided.items() if decided > message_id}
            self._values = {key: self._values[key] for key in kept if key in self._values}
            return
        key = fields.get("key")
        if not isinstance(key, str | int) or isinstance(key, bool):
            return  # Ruby may have keys that are none here
        if message_id <= self._decided.get(key, 0):
            return  # of this process' own operations the stream is the echo
        self._decided[key] = message_id
        if fields.get("op") == "set" and not fields.get("marshalled"):
            self._values[key] = fields.get("value")
        else:
            self._values.pop(key, None)

    def _forget_decisions(self) -> None:
        """Forget which operations decided, as far as all older ones have been seen."""
        if self._in_flight or not self._decided:
            return
        self._decided = {
            key: decided for key, decided in self._decided.items() if decided > self._reached
        }
