"""What the supervisor and a worker tell each other, over the socket that joins them.

First comes the worker's assignment. Then there are lines: a word, and for some a JSON value. Where
one of the two sees the end of the socket, the other one is gone.
"""

from __future__ import annotations

import pickle
import signal
import socket
import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from messagebusd.settings import LoadedSettings

# A worker's lines. It says so often that its loop turns.
BEAT, READY, FAILED = b"beat", b"ready", b"failed"
BEAT_SECONDS = 1.0
# The supervisor's lines: what a first and what a second signal mean.
DRAIN, HURRY = b"drain", b"hurry"
# Other settings, in two steps so that all workers have the same ones: make ready for them, then go
# by them, or don't. The first two are answered, with their number. Last, to one: count how it went.
PREPARE, ADOPT, ABANDON, COUNT, ANSWER = b"prepare", b"adopt", b"abandon", b"count", b"answer"
# One line; the settings are the longest.
LINE_BYTES = 2**26

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# What reaches all processes of a terminal or a service, and is the supervisor's business alone.
SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among the others: what it has of its own, and where they meet.

    ``descriptors`` are its listening sockets by listener. ``folder`` is private to the daemon.
    ``session_secret`` signs what any of them must be able to read. ``read_at`` is when the settings
    were read, in seconds since the epoch.
    """

    number: int
    folder: Path
    descriptors: Mapping[str, Sequence[int]]
    made_key: str | None = field(repr=False)
    session_secret: bytes = field(repr=False)
    read_at: float = 0.0


class Assignment(NamedTuple):
    """All that a worker needs."""

    loaded: LoadedSettings
    place: Place

    def encode(self) -> bytes:
        """As bytes that begin with their own length."""
        content = pickle.dumps(self)
        return _LENGTH.pack(len(content)) + content


def receive_assignment(control: socket.socket) -> Assignment:
    """Wait for the assignment. Raises EOFError if the supervisor is gone."""
    (length,) = _LENGTH.unpack(_receive(control, _LENGTH.size))
    assignment = pickle.loads(_receive(control, length))
    assert isinstance(assignment, Assignment)
    return assignment


def encode_settings(loaded: LoadedSettings, number: int) -> bytes:
    """Settings as a line, with the number of the attempt."""
    return b"%b %d %b" % (PREPARE, number, b64encode(pickle.dumps(loaded)))


def decode_settings(value: bytes) -> tuple[int, LoadedSettings]:
    """What is behind the word of such a line."""
    number, _, content = value.partition(b" ")
    loaded = pickle.loads(b64decode(content))
    assert isinstance(loaded, LoadedSettings)
    return int(number), loaded


def _receive(control: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = control.recv(size - len(received))
        if not more:
            raise EOFError
        received += more
    return received
