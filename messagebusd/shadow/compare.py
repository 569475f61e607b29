"""Two answers to one poll: in what do they differ?

What is told of a difference names channels, ids and sizes. It never quotes what a message holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from messagebusd.protocol.channels import STATUS_CHANNEL

# Above this our answer may go on with the next poll, where the original's does not
# (poll.max_backlog_bytes): what is missing at its end is no difference.
MAY_CONTINUE_BYTES = 256 * 1024


class Reply(NamedTuple):
    """An answer, as far as it is compared."""

    status: int
    content_type: str
    body: bytes


class Difference(NamedTuple):
    """One thing that is not the same; ``kind`` is what is counted."""

    kind: str
    detail: str


class _Message(msgspec.Struct):
    channel: str
    message_id: int
    global_id: int
    data: msgspec.Raw


_decode = msgspec.json.Decoder(list[_Message]).decode


def compare(original: Reply, ours: Reply) -> list[Difference]:
    """All differences; none means that a client could not tell the two apart."""
    if original.status != ours.status:
        detail = f"the original answers {original.status}, we {ours.status}"
        return [Difference("status", detail)]
    found = []
    theirs_type, our_type = _media_type(original), _media_type(ours)
    if theirs_type != our_type:
        found.append(
            Difference("content_type", f"the original's is {theirs_type}, ours {our_type}")
        )
    if original.status != 200:
        return found  # what it says beside is the application's own text
    try:
        their_messages = _decode(original.body)
    except (msgspec.DecodeError, RecursionError):
        return [*found, Difference("unreadable", "the original's answer is no array of messages")]
    try:
        our_messages = _decode(ours.body)
    except (msgspec.DecodeError, RecursionError):
        return [*found, Difference("unreadable", "our answer is no array of messages")]
    found += _messages(their_messages, our_messages, may_continue=len(ours.body))
    found += _positions(_positions_of(their_messages), _positions_of(our_messages))
    return found


def _messages(
    theirs: list[_Message], ours: list[_Message], *, may_continue: int
) -> Iterator[Difference]:
    their_channels, our_channels = _by_channel(theirs), _by_channel(ours)
    for channel in sorted({*their_channels, *our_channels}):
        expected, given = their_channels.get(channel, []), our_channels.get(channel, [])
        their_ids = {each.message_id: each for each in expected}
        our_ids = {each.message_id: each for each in given}
        last = max(our_ids, default=0)
        missing = their_ids.keys() - our_ids.keys()
        if may_continue >= MAY_CONTINUE_BYTES:
            missing = {each for each in missing if each <= last}
        if missing:
            yield Difference("missing", f"{channel}: we do not give {_shown(missing)}")
        if more := our_ids.keys() - their_ids.keys():
            yield Difference("extra", f"{channel}: only we give {_shown(more)}")
        both = [each for each in expected if each.message_id in our_ids]
        if [each.message_id for each in both] != [
            each.message_id for each in given if each.message_id in their_ids
        ]:
            yield Difference("order", f"{channel}: the same messages in another order")
        for each in both:
            other = our_ids[each.message_id]
            if each.global_id != other.global_id:
                ids = f"{each.global_id}, ours {other.global_id}"
                detail = f"{channel}: the global id of {each.message_id} is {ids}"
                yield Difference("global_id", detail)
            elif not _same(each.data, other.data):
                sizes = f"{len(bytes(each.data))} and {len(bytes(other.data))} bytes"
                yield Difference("data", f"{channel}: {each.message_id} holds other data ({sizes})")


def _positions(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[Difference]:
    for channel in sorted({*theirs, *ours}):
        expected, given = theirs.get(channel), ours.get(channel)
        if expected != given:
            detail = f"{channel}: the original's status says {_told(expected)}, ours {_told(given)}"
            yield Difference("position", detail)


def _by_channel(messages: list[_Message]) -> dict[str, list[_Message]]:
    found: dict[str, list[_Message]] = {}
    for each in messages:
        if each.channel != STATUS_CHANNEL:
            found.setdefault(each.channel, []).append(each)
    return found


def _positions_of(messages: list[_Message]) -> dict[str, Any]:
    """What the statuses say together, the last one last."""
    found: dict[str, Any] = {}
    for each in messages:
        if each.channel == STATUS_CHANNEL:
            said = msgspec.json.decode(each.data)
            if isinstance(said, dict):
                found |= said
    return found


def _same(one: msgspec.Raw, other: msgspec.Raw) -> bool:
    """Whether two texts are the same JSON: serializers escape and space as they like."""
    if bytes(one) == bytes(other):
        return True
    try:
        return bool(msgspec.json.decode(one) == msgspec.json.decode(other))
    except (msgspec.DecodeError, RecursionError):
        return False


def _media_type(reply: Reply) -> str:
    return reply.content_type.partition(";")[0].strip().lower() or "none"


def _shown(ids: set[int]) -> str:
    some = ", ".join(map(str, sorted(ids)[:5]))
    return f"{some} and {len(ids) - 5} more" if len(ids) > 5 else some


def _told(position: object) -> str:
    return "nothing" if position is None else msgspec.json.encode(position).decode()[:40]
