"""Rows of the table as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from messagebusd.backends.base import Observer
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import Decode


class Rows:
    """Reads rows; one that anybody has filled with something else is counted and ignored."""

    def __init__(self, decode: Decode, observer: Observer) -> None:
        self.decode = decode
        self._observer = observer

    def messages(self, rows: Iterable[Mapping[str, Any]]) -> list[Message]:
        """The messages of these rows."""
        messages = []
        for row in rows:
            message_id, name = row["id"], row["channel"]
            try:
                data, audience = self.decode(row["value"].encode())
            except ValueError:
                self._observer.store_ignored("malformed")
                continue
            found = Message(message_id, message_id, name, *unqualify(name), data, audience)
            messages.append(found)
        return messages
