"""The stored form shared with the Ruby library: envelopes, payloads, key names (REFERENCE 4.1).

An *envelope* is ``{"data":…,"user_ids":…,"group_ids":…,"client_ids":…}``, nulls present. A
*payload* is ``global_id|message_id|channel|envelope``, pipes in the stored name escaped.

The ``compact`` codec (SPEC 8) writes the same envelope, but for many ids ``compact:``, the audience
(`protocol.audiences`), a space, and the data. It is read wherever envelopes are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from messagebusd.protocol.audiences import pack_audience, unpack_audience
from messagebusd.protocol.channels import escape, unescape, unqualify
from messagebusd.protocol.message import Audience, Message

COMPACT = b"compact:"
# With fewer ids there is little to gain, and the envelope is what Ruby reads.
COMPACT_FROM_IDS = 100


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")
    user_ids: list[Any] | None = None
    group_ids: list[Any] | None = None
    client_ids: list[Any] | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_data = msgspec.json.Decoder(msgspec.Raw).decode

Encode = Callable[[bytes, Audience | None], bytes]
Decode = Callable[[bytes], tuple[bytes, Audience | None]]


class EnvelopeCodec(NamedTuple):
    """How a store writes and reads envelopes.

    ``encode`` makes UTF-8 without NUL of JSON data and an audience; it may raise StoreRefused.
    ``decode`` reads what anybody may have stored, raises ValueError and nothing else, and gives an
    audience that is no wider than the publisher's.
    """

    encode: Encode
    decode: Decode


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
        # Only now, so that it costs nothing where nobody uses it.
        if envelope.startswith(COMPACT):
            return _decode_compact(envelope)
        raise ValueError(f"not an envelope: {error}") from None
    ids = (found.user_ids or None, found.group_ids or None, found.client_ids or None)
    return bytes(found.data), None if ids == (None, None, None) else Audience(*ids)


def encode_compact(
    data: bytes, audience: Audience | None, from_ids: int = COMPACT_FROM_IDS
) -> bytes:
    """The envelope; an audience of so many ids or more is packed."""
    if audience is not None and _count(audience) >= from_ids:
        packed = pack_audience(audience)
        if packed is not None:
            return b"%b%b %b" % (COMPACT, packed, data)
    return encode_envelope(data, audience)


def _count(audience: Audience) -> int:
    lists = (audience.user_ids, audience.group_ids, audience.client_ids)
    return sum(len(ids) for ids in lists if ids is not None)


def _decode_compact(envelope: bytes) -> tuple[bytes, Audience]:
    packed, _, data = envelope.removeprefix(COMPACT).partition(b" ")
    return check_data(data), unpack_audience(packed)


def check_data(data: bytes) -> bytes:
    """The same data; raises ValueError unless it is one JSON value in UTF-8.

    It is spliced into frames: anything else could end its message there, and begin another.
    """
    try:
        data.decode()
        return bytes(_decode_data(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"no data: {error}") from None


JSON = EnvelopeCodec(encode_envelope, decode_envelope)
COMPACTING = EnvelopeCodec(encode_compact, decode_envelope)


def encode_payload(message: Message) -> bytes:
    """The payload of a message."""
    return b"%d|%d|%b|%b" % (
        message.global_id,
        message.message_id,
        escape(message.stored_channel).encode(),
        encode_envelope(message.data, message.audience),
    )


def decode_payload(payload: bytes, decode: Decode = decode_envelope) -> Message:
    """Read a payload that anybody may have written; raises ValueError where it is none."""
    parts = payload.split(b"|", 3)
    if len(parts) != 4:
        raise ValueError("a payload has four parts")
    global_id, message_id, channel, envelope = parts
    if not (global_id.isdigit() and message_id.isdigit() and len(global_id) + len(message_id) < 40):
        raise ValueError("a payload starts with two ids")
    stored_channel = unescape(channel.decode())
    data, audience = decode(envelope)
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
