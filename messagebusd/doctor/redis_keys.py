"""What is in Redis: names of announcements, permissions, and whether the keys make sense."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from messagebusd.backends.redis.connection import Word
from messagebusd.backends.redis.keys import Keys
from messagebusd.doctor.redis_probe import Probe, Refused
from messagebusd.doctor.report import Finding, ok, problem, some, warning
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import encode_payload

# The Ruby library names its announcements so.
ANNOUNCEMENTS = "_message_bus_"
# A large shared database is not searched through: so many channels, in so many steps.
MAX_CHANNELS, MAX_STEPS, STEP_KEYS = 2000, 500, 500
# Nothing of a trial stays for longer, should it not be deleted.
TRIAL_SECONDS = 60

# The counter, the newest entry's id, and whether that entry looks as it should; not the entry
# itself, which may be large.
_LOOK = b"""
local newest = redis.call('ZREVRANGEBYSCORE', KEYS[2], '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
local readable = newest[1] and string.match(newest[1], '^%d+|') and 1 or 0
return {redis.call('GET', KEYS[1]) or '', newest[2] or '', readable}
"""


_NOTHING = b"return 1"


def _digest(script: bytes) -> str:
    return hashlib.sha1(script, usedforsecurity=False).hexdigest()


async def names(probe: Probe, ours: str, is_derived: bool) -> Finding:
    """Whether those who share the store announce by the same name (REFERENCE 4.1)."""
    heard = await probe.ask("PUBSUB", "CHANNELS", f"*{ANNOUNCEMENTS}*")
    others = sorted(each.decode("utf-8", "replace") for each in heard if each != ours.encode())
    _, listening = await probe.ask("PUBSUB", "NUMSUB", ours)
    found = f"announcements go to {ours}, which {listening} subscribers hear"
    if not others:
        return ok("redis.pubsub", found)
    found += f"; others on this server hear {some(others)}"
    mistaken = f"{ANNOUNCEMENTS}0" in others and is_derived
    if not listening or mistaken:
        return warning(
            "redis.pubsub",
            found,
            f"if Ruby processes share this store, set backend.redis.pubsub_channel to the name "
            f"they use: one that is configured by URL uses {ANNOUNCEMENTS}0, whatever its database",
        )
    return ok("redis.pubsub", found)


async def permissions(probe: Probe, keys: Keys) -> Finding:
    """Try what the store does on keys of a channel that nobody uses."""
    trial = _Trial(keys)
    commands = trial.commands()
    answers = await probe.ask_all(commands)  # the last one deletes the keys
    refused = [
        (_name(command), answer)
        for command, answer in zip(commands, answers, strict=True)
        if isinstance(answer, Refused)
    ]
    lacking = [name for name, answer in refused if answer.code == "NOPERM"]
    if lacking:
        return problem(
            "redis.permissions",
            f"the user may not use {some(lacking, 30)} on keys such as {trial.keys[0]!r}",
            "redis-cli ACL SETUSER USER "
            + " ".join(f"+{name.lower().replace(' ', '|')}" for name in dict.fromkeys(lacking))
            + f" ~{keys.prefix}__mb_* ~{keys.prefix}__messagebusd_*",
        )
    if refused:
        return problem(
            "redis.permissions",
            f"the server refuses {refused[0][0]}: {refused[0][1]}",
            "see the other findings about this server",
        )
    return ok("redis.permissions", "the user may use all commands that the store needs")


def _name(command: Sequence[Word]) -> str:
    has_two_words = command[0] in ("SCRIPT", "MEMORY")
    return " ".join(map(str, command[: 1 + has_two_words]))


class _Trial:
    """One of each command, on keys of its own."""

    def __init__(self, keys: Keys) -> None:
        mark = secrets.token_hex(8)
        channel = f"/__messagebusd_doctor/{mark}"
        self._global_id = keys.global_id
        self._payload = encode_payload(Message(1, 1, channel, channel, None, b"0", None))
        self._id, self._backlog = keys.channel_id(channel), keys.backlog(channel)
        self._once = f"{keys.prefix}__messagebusd_once_doctor_{mark}"
        self.keys = (self._backlog, self._id, self._once)

    def commands(self) -> list[tuple[Word, ...]]:
        newest = ("+inf", "-inf", "LIMIT", 0, 1)
        return [
            ("SCRIPT", "LOAD", _NOTHING),
            ("EVALSHA", _digest(_NOTHING), 0),
            ("INCR", self._id),
            ("EXPIRE", self._id, TRIAL_SECONDS),
            ("TTL", self._id),
            ("GET", self._id),
            ("MGET", self._global_id, self._id),
            ("DECR", self._id),
            ("ZADD", self._backlog, 1, self._payload),
            ("EXPIRE", self._backlog, TRIAL_SECONDS),
            ("ZCARD", self._backlog),
            ("MEMORY", "USAGE", self._backlog),
            ("ZRANGEBYSCORE", self._backlog, 0, 1),
            ("ZREVRANGEBYSCORE", self._backlog, *newest),
            ("ZREMRANGEBYSCORE", self._backlog, 0, 1),
            ("ZREM", self._backlog, self._payload),
            ("SET", self._once, "0", "EX", TRIAL_SECONDS),
            ("SCAN", 0, "COUNT", 1),
            ("DEL", *self.keys),
        ]


@dataclass(slots=True)
class _Layout:
    """What is wrong with the keys, by channel."""

    examined: int = 0
    fallen: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def judge(self, name: str, answer: Any) -> None:
        """Take note of one counter and its log."""
        self.examined += 1
        if isinstance(answer, Refused):
            if answer.code != "WRONGTYPE":
                raise answer
            self.foreign.append(name)
            return
        counter, newest, is_readable = answer
        if counter and not counter.isdigit():
            self.foreign.append(name)
        elif newest and not is_readable:
            self.unreadable.append(name)
        elif newest and float(newest) > float(counter or 0):
            self.fallen.append(name)

    def findings(self, is_whole: bool) -> list[Finding]:
        """What was found."""
        found = []
        if self.foreign:
            found.append(
                problem(
                    "redis.keys",
                    f"keys hold something else than counters and logs: {some(self.foreign)}; "
                    "publishes there fail",
                    "find out who writes them; DEL the key, or set backend.redis.key_prefix",
                )
            )
        if self.fallen:
            found.append(
                warning(
                    "redis.keys",
                    "counters are below the newest stored id, so they were evicted or deleted: "
                    f"{some(self.fallen)}; ids begin anew and older entries are not read",
                    "set maxmemory-policy to noeviction; delete these channels' backlogs, or wait "
                    "until they expire",
                )
            )
        if self.unreadable:
            found.append(
                warning(
                    "redis.keys",
                    f"the newest entry is not in the Ruby library's form: {some(self.unreadable)}; "
                    "it is passed over",
                    "find out who writes there",
                )
            )
        if not found:
            part = "all" if is_whole else "the first"
            found.append(ok("redis.keys", f"counters and backlogs agree ({part} {self.examined})"))
        return found


async def layout(probe: Probe, keys: Keys) -> list[Finding]:
    """Whether counters and logs agree, for the global log and for many channels (I#346)."""
    seen = _Layout()
    await probe.ask("SCRIPT", "LOAD", _LOOK)
    (answer,) = await probe.ask_all([_look(keys.global_id, keys.global_backlog)])
    seen.judge("the global log", answer)
    start = keys.backlog("")
    pattern = re.sub(r"([\\*?\[\]])", r"\\\1", start) + "*"
    cursor: bytes = b"0"
    for _ in range(MAX_STEPS):
        cursor, found = await probe.ask("SCAN", cursor, "MATCH", pattern, "COUNT", STEP_KEYS)
        channels = [each.decode("utf-8", "replace").removeprefix(start) for each in found]
        looks = [_look(keys.channel_id(each), keys.backlog(each)) for each in channels]
        answers = await probe.ask_all(looks) if looks else []
        for channel, answer in zip(channels, answers, strict=True):
            seen.judge(channel, answer)
        if cursor == b"0" or seen.examined > MAX_CHANNELS:
            break
    return seen.findings(is_whole=cursor == b"0")


def _look(counter: str, log: str) -> tuple[Word, ...]:
    return ("EVALSHA", _digest(_LOOK), 2, counter, log)
