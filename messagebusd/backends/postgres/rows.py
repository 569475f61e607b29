"""Rows of the table as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from messagebusd.backends.base import Observer
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import decode_envelope


def decode_rows(rows: Iterable[Mapping[str, Any]], observer: Observer) -> list[Message]:
    """The messages of these rows; a row that anybody has filled with something else is ignored."""
    messages = []
    for row in rows:
        message_id, name = row["id"], row["channel"]
        try:
            data, audience = decode_envelope(row["value"].encode())
        except ValueError:
            observer.store_ignored("malformed")
            continue
        messages.append(Message(message_id, message_id, name, *unqualify(name), data, audience))
    return messages
