"""Cutting what was read to the size that was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from messagebusd.backends.base import Backlog
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import encode_payload


def surplus_of(channel: str) -> int:
    """How much longer the stored form of an unrestricted message is than its wire form."""
    sample = Message(0, 0, channel, *unqualify(channel), b"")
    return len(encode_payload(sample)) - len(sample.encoded)


def bounded(
    messages: Sequence[Message], max_messages: int, max_bytes: int, *, is_part: bool
) -> Backlog:
    """As many messages as may be returned; ``is_part`` says that there are others behind them."""
    for index, message in enumerate(messages):
        max_bytes -= len(message.encoded)
        if index == max_messages or (max_bytes < 0 and index):
            return Backlog(messages[:index], True)
    return Backlog(messages, is_part)


def names_after(keys: Iterable[bytes], start: str, after: str) -> Iterable[str]:
    """The channels of these keys that come after one."""
    for key in keys:
        try:
            name = key.decode()[len(start) :]
        except UnicodeDecodeError:
            continue
        if name > after:
            yield name
