"""The stored form shared with the Ruby library: envelopes, payloads, key names (REFERENCE 4.1).

An *envelope* is ``{"data":…,"user_ids":…,"group_ids":…,"client_ids":…}``, nulls present. A
*payload* is ``global_id|message_id|channel|envelope``, pipes in the stored name escaped.
"""

from __future__ import annotations

from typing import Any

import msgspec

from messagebusd.protocol.channels import escape, unescape, unqualify
from messagebusd.protocol.message import Audience, Message


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")
    user_ids: list[Any] | None = None
    group_ids: list[Any] | None = None
    client_ids: list[Any] | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def encode_envelope(data: bytes, audience: Audience | None) -> bytes:
    """The envelope of some JSON data."""
    if audience is None:
        return b'{"data":%b,"user_ids":null,"group_ids":null,"client_ids":null}' % data
    return b'{"data":%b,"user_ids":%b,"group_ids":%b,"client_ids":%b}' % (
        data,
        msgspec.json.encode(audience.user_ids),
        msgspec.json.encode(audience.group_ids),
        msgspec.json.encode(audience.client_ids),
    )


def decode_envelope(envelope: bytes) -> tuple[bytes, Audience | None]:
    """Data and audience; raises ValueError where it is no envelope.

    A stored empty list means no restriction: older publishers wrote it so (REFERENCE A2).
    """
    try:
        envelope.decode()
        found = _decode_envelope(envelope)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not an envelope: {error}") from None
    ids = (found.user_ids or None, found.group_ids or None, found.client_ids or None)
    return bytes(found.data), None if ids == (None, None, None) else Audience(*ids)


def encode_payload(message: Message) -> bytes:
    """The payload of a message."""
    return b"%d|%d|%b|%b" % (
        message.global_id,
        message.message_id,
        escape(message.stored_channel).encode(),
        encode_envelope(message.data, message.audience),
    )


def decode_payload(payload: bytes) -> Message:
    """Read a payload that anybody may have written; raises ValueError where it is none."""
    parts = payload.split(b"|", 3)
    if len(parts) != 4:
        raise ValueError("a payload has four parts")
    global_id, message_id, channel, envelope = parts
    if not (global_id.isdigit() and message_id.isdigit() and len(global_id) + len(message_id) < 40):
        raise ValueError("a payload starts with two ids")
    stored_channel = unescape(channel.decode())
    data, audience = decode_envelope(envelope)
    return Message(
        int(global_id),
        int(message_id),
        stored_channel,
        *unqualify(stored_channel),
        data,
        audience,
    )


def global_id_key(prefix: str = "") -> str:
    """Redis key of the last global id."""
    return f"{prefix}__mb_global_id_n"


def channel_id_key(stored_channel: str, prefix: str = "") -> str:
    """Redis key of a channel's last id."""
    return f"{prefix}__mb_backlog_id_n_{stored_channel}"


def backlog_key(stored_channel: str, prefix: str = "") -> str:
    """Redis key of a channel's backlog."""
    return f"{prefix}__mb_backlog_n_{stored_channel}"


def global_backlog_key(prefix: str = "") -> str:
    """Redis key of the global backlog."""
    return f"{prefix}__mb_global_backlog_n"
