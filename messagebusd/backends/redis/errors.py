"""What went wrong between us and a Redis server, in plain words.

Reasons end up in logs and answers: no address, no password, and of what a server says only what
cannot hold data of ours.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl

_REASONS = {
    "READONLY": "the server is a read-only replica",
    "LOADING": "the server is still loading its data",
    "OOM": "the server is out of memory",
    "MASTERDOWN": "the server is a replica that has lost its master",
    "MISCONF": "the server cannot save its data to disk and takes no writes",
    "NOREPLICAS": "too few replicas follow the server, it takes no writes",
    "NOAUTH": "the server wants a password",
    "WRONGPASS": "the user or the password is wrong",
    "NOPERM": "the user lacks a permission for a command, key or channel",
    "DENIED": "the server is in protected mode, it wants a password",
    "WRONGTYPE": "a key of the store holds something else",
    "BUSY": "the server is busy with a script",
    "NOSCRIPT": "the server forgets its scripts",
    "MOVED": "the keys have moved in the cluster",
    "ASK": "the keys are moving in the cluster",
    "TRYAGAIN": "the keys are moving in the cluster",
    "CLUSTERDOWN": "the cluster is down",
    "CROSSSLOT": "the server is a cluster: key_prefix needs a hash tag such as {bus}",
}
# Errors in scripts come with something before and after the word, on Redis 6 above all.
_WORD = re.compile(rf"(?<![\w'])({'|'.join(_REASONS)})(?![\w'])")
_NO_PERMISSION = "The user executing the script can't"
_MOVED = re.compile(r"MOVED \d+ (\S*:\d+)")


def code_of(answer: str) -> str:
    """The word that tells what kind of error a server's answer is."""
    if (found := _WORD.search(answer)) is not None:
        return found[1]
    return "NOPERM" if _NO_PERMISSION in answer else answer.partition(" ")[0]


def explain(answer: str) -> str:
    """A server's error in a few words."""
    code = code_of(answer)
    if (reason := _REASONS.get(code)) is not None:
        return reason
    # Whatever follows this may be what we sent.
    said = answer.partition(", with args")[0]
    return "the server says: " + re.sub(r"[^\x20-\x7e]", "?", said)[:120]


def moved_to(answer: str) -> str:
    """The node that a MOVED answer names, as ``host:port``; the host may be missing."""
    found = _MOVED.search(answer)
    return found[1] if found else ""


def describe(error: BaseException | None) -> str:
    """A failed connection in a few words."""
    match error:
        case None | asyncio.IncompleteReadError():
            return "the server has closed the connection"
        case TimeoutError():
            return "the server does not answer in time"
        case socket.gaierror():
            return "the server's name cannot be resolved"
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not accepted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS fails: {error.reason}"
        case OSError(errno=int(number)):
            return f"no connection to the server: {os.strerror(number)}"
    return "no connection to the server"
