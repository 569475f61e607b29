"""What a Redis server says of itself, judged: values in, findings out, no I/O.

``INFO`` is asked rather than ``CONFIG`` wherever both know: hosted servers hide the latter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from messagebusd.doctor.report import Finding, ok, problem, size, warning

OLDEST_VERSION = (6, 2)
# Parts of maxmemory.
NEARLY_FULL, FULL = 0.8, 0.95
# What an announcement has more than its data: ids, channel, audience.
ENVELOPE_BYTES = 16 * 1024
# Announcements of the largest size that should fit into the server's buffer for a subscriber.
ROOMY_BUFFER, TIGHT_BUFFER = 8, 1

# The options that `judge_config` looks at.
CONFIG = ("save", "appendfsync", "timeout", "client-output-buffer-limit")

Values = Mapping[str, str]


def judge_info(info: Values) -> list[Finding]:
    """All that ``INFO`` tells."""
    return [version(info), role(info), eviction(info), memory(info), saving(info)]


def judge_config(info: Values, config: Values, max_data_size: int) -> list[Finding]:
    """All that ``CONFIG GET`` tells besides."""
    return [
        persistence(info, config),
        buffers(config, max_data_size),
        idle(config),
    ]


def version(info: Values) -> Finding:
    """Whether the server is new enough."""
    name, text = "Redis", info.get("redis_version", "?")
    if info.get("server_name") == "valkey" or "valkey_version" in info:
        # It says 7.2 under the old name, whatever its own is.
        name, text = "Valkey", info.get("valkey_version", text)
    numbers = tuple(int(each) for each in re.findall(r"\d+", text)[:2])
    oldest = ".".join(map(str, OLDEST_VERSION))
    if numbers < OLDEST_VERSION:
        return problem("redis.version", f"{name} {text}", f"needs at least Redis {oldest}")
    return ok("redis.version", f"{name} {text}")


def role(info: Values) -> Finding:
    """Whether this is a server that can be written to."""
    if info.get("role") == "slave":
        return problem(
            "redis.role",
            f"a replica (its link to the master is {info.get('master_link_status', 'unknown')}); "
            "publishes fail",
            "point backend.redis.url at the master, or use backend.redis.sentinels",
        )
    return ok("redis.role", f"a master, {info.get('connected_slaves', '0')} replicas")


def eviction(info: Values) -> Finding:
    """Whether the server may throw away counters: ids would begin anew."""
    policy, evicted = info.get("maxmemory_policy", "?"), int(info.get("evicted_keys", "0"))
    if policy == "noeviction":
        return ok("redis.eviction", "maxmemory-policy is noeviction")
    advice = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    found = f"maxmemory-policy is {policy}: counters can be evicted, and ids then begin anew"
    if evicted:
        found += f" ({evicted} keys were evicted)"
    if _bytes(info, "maxmemory") == 0:
        return warning("redis.eviction", f"{found}; not now, as maxmemory is 0", advice)
    return problem("redis.eviction", found, advice)


def memory(info: Values) -> Finding:
    """Whether there is room for more messages."""
    used, limit = _bytes(info, "used_memory"), _bytes(info, "maxmemory")
    if limit == 0:
        return ok("redis.memory", f"{size(used)} used, no maxmemory")
    found = f"{size(used)} used of maxmemory {size(limit)} ({used / limit:.0%})"
    advice = "raise maxmemory, or lower backend.max_backlog_size or backend.max_backlog_age"
    if used >= FULL * limit:
        return problem("redis.memory", f"{found}: publishes fail when it is full", advice)
    if used >= NEARLY_FULL * limit:
        return warning("redis.memory", found, advice)
    return ok("redis.memory", found)


def saving(info: Values) -> Finding:
    """Whether the server could write what it had to write."""
    failed = [
        what
        for what, key in (
            ("its snapshot (RDB)", "rdb_last_bgsave_status"),
            ("its log (AOF)", "aof_last_write_status"),
            ("its log anew (AOF rewrite)", "aof_last_bgrewrite_status"),
        )
        if info.get(key, "ok") != "ok"
    ]
    if not failed:
        return ok("redis.disk", "the last writes to disk succeeded")
    return problem(
        "redis.disk",
        f"the server could not write {' and '.join(failed)}; it may refuse publishes for that",
        "see the server's log; look for a full disk or missing permissions in its folder",
    )


def persistence(info: Values, config: Values) -> Finding:
    """What a restart of the server loses."""
    if info.get("aof_enabled") == "1":
        fsync = config.get("appendfsync", "everysec")
        if fsync == "no":
            return warning(
                "redis.persistence",
                "appendonly yes, appendfsync no: a crash of the machine loses what the kernel had "
                "not written yet, often 30 seconds",
                "redis-cli CONFIG SET appendfsync everysec",
            )
        lost = "nothing" if fsync == "always" else "about a second"
        return ok("redis.persistence", f"appendonly yes, appendfsync {fsync}: {lost} can be lost")
    advice = "redis-cli CONFIG SET appendonly yes, and the same in redis.conf"
    if config.get("save"):
        return warning(
            "redis.persistence",
            f"snapshots only (save {config['save']}): a crash loses what was published since the "
            "last one, and its ids are given again",
            advice,
        )
    return warning(
        "redis.persistence",
        "none: a restart of the server loses all backlogs, and all ids begin anew",
        advice,
    )


def buffers(config: Values, max_data_size: int) -> Finding:
    """Whether the server gives up subscribers that are a few messages behind."""
    limits = _limits(config.get("client-output-buffer-limit", ""))
    hard, soft, seconds = limits.get("pubsub", (0, 0, 0))
    announcement = max_data_size + ENVELOPE_BYTES
    found = f"client-output-buffer-limit pubsub is {size(hard)}, {size(soft)} for {seconds} s"
    roomy = ROOMY_BUFFER * announcement
    advice = (
        f'redis-cli CONFIG SET client-output-buffer-limit "pubsub {4 * roomy} {roomy} 60", and '
        "the same in redis.conf; or lower backend.max_data_size"
    )
    if hard and hard < TIGHT_BUFFER * announcement:
        return problem(
            "redis.buffers",
            f"{found}: a single message of backend.max_data_size ({size(max_data_size)}) cuts off "
            "every subscriber",
            advice,
        )
    if (hard and hard < roomy) or (soft and soft < TIGHT_BUFFER * announcement):
        return warning(
            "redis.buffers",
            f"{found}: a few messages of backend.max_data_size ({size(max_data_size)}) cut off "
            "subscribers, which then read them from the backlog",
            advice,
        )
    return ok("redis.buffers", found if hard or soft else "no limit for subscribers")


def idle(config: Values) -> Finding:
    """Whether the server closes connections that are silent."""
    seconds = config.get("timeout", "0")
    if seconds == "0":
        return ok("redis.idle", "timeout is 0: idle connections stay open")
    return warning(
        "redis.idle",
        f"timeout is {seconds} s: idle connections are closed, and a publish at that moment fails",
        "redis-cli CONFIG SET timeout 0 (tcp-keepalive finds the dead ones)",
    )


def cluster(info: Values, prefix: str, database: int) -> Finding | None:
    """Whether a cluster can hold the store; None where there is none."""
    if info.get("cluster_enabled") != "1":
        return None
    if not re.match(r"[^{]*\{[^}]+\}", prefix):
        return problem(
            "redis.cluster",
            "the server is a cluster and backend.redis.key_prefix has no hash tag: the keys of a "
            "publish are on different nodes",
            'set backend.redis.key_prefix to a hash tag such as "{bus}"; Ruby has none',
        )
    if database:
        return problem("redis.cluster", "a cluster has database 0 only", "mend backend.redis.url")
    return ok("redis.cluster", f"all keys are in the slot of {prefix}")


def _limits(text: str) -> Mapping[str, tuple[int, int, int]]:
    words = text.split()
    return {
        words[index]: (int(words[index + 1]), int(words[index + 2]), int(words[index + 3]))
        for index in range(0, len(words) - 3, 4)
    }


def _bytes(info: Values, name: str) -> int:
    text = info.get(name, "0")
    return int(text) if text.isdecimal() else 0
