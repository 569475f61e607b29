"""The memory store's snapshot file: written at a clean stop, read at start.

Text, one line each: a header with totals, then for every channel a line that describes it and its
messages in the stored form. The totals tell a cut-off file. It is written beside its place and
renamed, so that a file by its name is always whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from messagebusd.errors import SnapshotError
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import decode_payload, encode_payload

FORMAT = "messagebusd-snapshot-1"


class ChannelState(NamedTuple):
    """One channel; ``expires_at`` in seconds since the epoch."""

    name: str
    last_id: int
    expires_at: float
    messages: Sequence[Message]


class Snapshot(NamedTuple):
    """Everything that a memory store knows."""

    global_id: int
    channels: Sequence[ChannelState]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    global_id: int
    channels: int
    messages: int


class _ChannelLine(msgspec.Struct, forbid_unknown_fields=True):
    channel: str
    last_id: int
    expires_at: float
    messages: int


def prepare(path: Path) -> None:
    """Find out at start, not at the stop, that the file cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        raise SnapshotError(f"snapshot_file {path}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SnapshotError(f"snapshot_file {path}: the folder {folder} cannot be written to")


def save(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, readable by the owner only. Raises SnapshotError."""
    beside = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            for line in _lines(snapshot):
                file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SnapshotError(f"snapshot_file {path} cannot be written: {error}") from error


def _lines(snapshot: Snapshot) -> Iterator[bytes]:
    total = sum(len(each.messages) for each in snapshot.channels)
    yield msgspec.json.encode(_Header(FORMAT, snapshot.global_id, len(snapshot.channels), total))
    for name, last_id, expires_at, messages in snapshot.channels:
        yield msgspec.json.encode(_ChannelLine(name, last_id, expires_at, len(messages)))
        yield from map(encode_payload, messages)


def load(path: Path) -> Snapshot | None:
    """Read a snapshot; None if there is no such file. Raises SnapshotError if it is damaged."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotError(f"snapshot_file {path} cannot be read: {error}") from error
    numbered = enumerate(lines, 1)
    number = 0
    try:
        number, line = next(numbered)
        header = msgspec.json.decode(line, type=_Header)
        if header.format != FORMAT:
            raise ValueError(f"the format {header.format!r} is unknown")
        channels = []
        for _ in range(header.channels):
            number, line = next(numbered)
            about = msgspec.json.decode(line, type=_ChannelLine)
            messages = []
            for _ in range(about.messages):
                number, line = next(numbered)
                messages.append(decode_payload(line))
            channels.append(ChannelState(about.channel, about.last_id, about.expires_at, messages))
        if len(lines) != number or header.messages != sum(len(c.messages) for c in channels):
            raise ValueError("the totals do not agree")
    except StopIteration:
        number, reason = len(lines), "the file ends too early"
    except (msgspec.DecodeError, ValueError) as error:
        reason = str(error)
    else:
        return Snapshot(header.global_id, channels)
    raise SnapshotError(
        f"snapshot_file {path} is damaged at line {number}: {reason}; "
        "move it away to start with an empty store"
    )
