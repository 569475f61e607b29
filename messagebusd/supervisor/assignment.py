"""What the supervisor and a worker tell each other, over the socket that joins them.

First comes the worker's assignment. Then there are lines: a word, and for some a JSON value. Where
one of the two sees the end of the socket, the other one is gone.
"""

from __future__ import annotations

import pickle
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from messagebusd.settings import Settings, Sources

# A worker's lines. It says so often that its loop turns.
BEAT, READY, FAILED = b"beat", b"ready", b"failed"
BEAT_SECONDS = 1.0
# The supervisor's lines: what a first and what a second signal mean.
DRAIN, HURRY = b"drain", b"hurry"

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Place:
    """A worker's place among the others: what it has of its own, and where they meet.

    ``descriptors`` are its listening sockets by listener. ``folder`` is private to the daemon.
    ``session_secret`` signs what any of them must be able to read.
    """

    number: int
    folder: Path
    descriptors: Mapping[str, Sequence[int]]
    made_key: str | None = field(repr=False)
    session_secret: bytes = field(repr=False)


class Assignment(NamedTuple):
    """All that a worker needs. ``sources`` says of each key where it is set."""

    settings: Settings
    place: Place
    sources: Sources

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


def _receive(control: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        more = control.recv(size - len(received))
        if not more:
            raise EOFError
        received += more
    return received
