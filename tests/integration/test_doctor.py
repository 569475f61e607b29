"""`messagebusd doctor` on real servers: each finding is provoked once."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from messagebusd.doctor import examine
from messagebusd.doctor.report import Finding, Level
from messagebusd.settings import Settings
from tests.conftest import StartDaemon
from tests.support.daemon import to_toml
from tests.support.fault_proxy import FaultProxy
from tests.support.program import free_port
from tests.support.redis_server import RedisServer, Sentinel

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM


@dataclass
class Diagnosis:
    """What the doctor said."""

    findings: list[Finding]

    def one(self, check: str) -> Finding:
        """The only finding of a check."""
        found = [each for each in self.findings if each.check == check]
        assert len(found) == 1, f"{check}: {self.findings}"
        return found[0]

    def assert_found(self, check: str, level: Level, *words: str) -> None:
        finding = self.one(check)
        assert finding.level is level, finding
        for word in words:
            assert word in finding.found, finding
        assert level is OK or finding.advice, finding

    @property
    def checks(self) -> list[str]:
        return [each.check for each in self.findings]

    @property
    def bad(self) -> set[str]:
        """The checks that are not ok, but for those that are so on every test's server."""
        usual = {"redis.persistence", "process.files"}
        return {each.check for each in self.findings if each.level is not OK} - usual


async def diagnose(config: dict[str, Any]) -> Diagnosis:
    return Diagnosis((await examine(Settings.model_validate(config))).findings)


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """The shared server, empty, with its options as they were afterwards."""
    control = redis_server.control
    names = ["maxmemory", "maxmemory-policy", "timeout", "save", "client-output-buffer-limit"]
    names += ["appendonly", "appendfsync"]
    before = {name: control.config_get(name)[name] for name in names}
    redis_server.flush()
    yield redis_server
    for name, value in before.items():
        control.config_set(name, value)
    redis_server.flush()


def redis_config(server: RedisServer, **options: Any) -> dict[str, Any]:
    return {"backend": {"kind": "redis", "redis": {"url": server.url, **options}}}


# -- the command


def run(folder: Path, config: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    path = folder / "bus.toml"
    path.write_text(to_toml(config))
    return subprocess.run(
        [sys.executable, "-m", "messagebusd", "doctor", "--config", str(path), *options],
        capture_output=True,
        text=True,
        timeout=30,
        env={k: v for k, v in os.environ.items() if not k.startswith("MESSAGEBUSD_")},
    )


def test_a_healthy_store_exits_with_0(server: RedisServer, tmp_path: Path) -> None:
    done = run(tmp_path, redis_config(server))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       redis.reachable: the server answers" in done.stdout.splitlines()


def test_a_problem_exits_with_1_and_says_what_to_do(server: RedisServer, tmp_path: Path) -> None:
    server.control.config_set("maxmemory", "1gb")
    server.control.config_set("maxmemory-policy", "allkeys-lru")
    done = run(tmp_path, redis_config(server))
    assert done.returncode == 1
    (line,) = [each for each in done.stdout.splitlines() if "redis.eviction" in each]
    assert line.startswith("problem  redis.eviction: maxmemory-policy is allkeys-lru")
    assert "-> redis-cli CONFIG SET maxmemory-policy noeviction" in line


def test_for_machines(server: RedisServer, tmp_path: Path) -> None:
    done = run(tmp_path, redis_config(server), "--json")
    answer = json.loads(done.stdout)
    assert answer["status"] == "warning"  # nothing is persistent here
    by_name = {each["check"]: each for each in answer["checks"]}
    assert set(by_name["redis.version"]) == {"check", "level", "found", "advice"}
    assert by_name["redis.persistence"]["level"] == "warning"


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    done = run(tmp_path, {"backend": {"kind": "redys"}})
    assert done.returncode == 1
    assert "backend.kind" in done.stderr


def test_no_secret_is_printed(server: RedisServer, tmp_path: Path) -> None:
    url = f"redis://somebody:hush-hush@127.0.0.1:{server.port}/0"
    for options in ((), ("--json",)):
        done = run(tmp_path, {"backend": {"kind": "redis", "redis": {"url": url}}}, *options)
        assert done.returncode == 1
        assert "the user or the password is wrong" in done.stdout
        assert "hush" not in done.stdout + done.stderr
        assert "127.0.0.1" not in done.stdout + done.stderr


# -- Redis: there or not


async def test_a_healthy_redis(server: RedisServer) -> None:
    diagnosis = await diagnose(redis_config(server))
    assert diagnosis.bad == set()
    assert server.control.keys("*doctor*") == []


async def test_a_server_that_is_down_ends_the_examination(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.reachable", PROBLEM, "no connection to the server")
    assert diagnosis.checks[-1] == "redis.reachable"


async def test_a_server_that_is_silent(server: RedisServer) -> None:
    async with FaultProxy(server.port) as proxy:
        proxy.blackhole()
        url = f"redis://127.0.0.1:{proxy.port}"
        diagnosis = await diagnose(redis_config(server, url=url, timeout=0.3))
        diagnosis.assert_found("redis.reachable", PROBLEM, "does not answer in time")


async def test_a_server_that_is_slow(server: RedisServer) -> None:
    async with FaultProxy(server.port) as proxy:
        proxy.delay = 0.04
        url = f"redis://127.0.0.1:{proxy.port}"
        diagnosis = await diagnose(redis_config(server, url=url, timeout=0.5))
        diagnosis.assert_found("redis.latency", WARNING, "round trip", "0.5 s")


async def test_a_server_that_goes_away_meanwhile(server: RedisServer) -> None:
    async with FaultProxy(server.port) as proxy:
        proxy.cut_after(b"INFO")
        url = f"redis://127.0.0.1:{proxy.port}"
        found = (await diagnose(redis_config(server, url=url))).findings
    assert [each.level for each in found if each.check == "redis.reachable"] == [OK, PROBLEM]
    assert found[-1].found.startswith("not any more: ")


async def test_a_codec_that_cannot_be_loaded(server: RedisServer) -> None:
    config = {"backend": {"kind": "redis", "codec": "no_such:Codec", "redis": {"url": server.url}}}
    diagnosis = await diagnose(config)
    words = "backend.codec: no_such:Codec cannot be imported"
    diagnosis.assert_found("redis.announcements", PROBLEM, words)


async def test_a_url_that_cannot_be_used(server: RedisServer) -> None:
    diagnosis = await diagnose(redis_config(server, url=f"{server.url}?nonsense=1"))
    diagnosis.assert_found("redis.reachable", PROBLEM, "its only option is db")
    # A password that is not escaped may be anywhere in it.
    assert "nonsense" not in diagnosis.one("redis.reachable").found


# -- Redis: how the server is set up


async def test_eviction(server: RedisServer) -> None:
    server.control.config_set("maxmemory-policy", "volatile-ttl")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.eviction", WARNING, "volatile-ttl", "maxmemory is 0")
    server.control.config_set("maxmemory", "1gb")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.eviction", PROBLEM, "volatile-ttl", "counters can be evicted")


async def test_memory_is_nearly_full(server: RedisServer) -> None:
    used = int(server.control.info("memory")["used_memory"])
    server.control.config_set("maxmemory", int(used * 1.11))
    diagnosis = await diagnose(redis_config(server))
    assert diagnosis.one("redis.memory").level is not OK
    server.control.config_set("maxmemory", used // 2)  # what is used shrinks as clients leave
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.memory", PROBLEM, "publishes fail")
    # which is then also seen by trying
    diagnosis.assert_found("redis.permissions", PROBLEM, "out of memory")


async def test_persistence(server: RedisServer) -> None:
    set_option = server.control.config_set
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.persistence", WARNING, "none", "all ids begin anew")
    set_option("save", "900 1")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.persistence", WARNING, "snapshots only (save 900 1)")
    set_option("appendonly", "yes")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.persistence", OK, "about a second")
    set_option("appendfsync", "always")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.persistence", OK, "nothing can be lost")
    set_option("appendfsync", "no")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.persistence", WARNING, "appendfsync no")


async def test_the_server_cannot_save(tmp_path: Path) -> None:
    with RedisServer(tmp_path, {"save": "900 1"}) as server:
        # A folder in place of the file that a snapshot is renamed to stops root as well.
        (tmp_path / "dump.rdb" / "in the way").mkdir(parents=True)
        server.control.bgsave()
        while server.control.info("persistence")["rdb_last_bgsave_status"] == "ok":
            await asyncio.sleep(0.01)
        diagnosis = await diagnose(redis_config(server))
        diagnosis.assert_found("redis.reachable", PROBLEM, "cannot save its data to disk")
        server.control.config_set("stop-writes-on-bgsave-error", "no")
        diagnosis = await diagnose(redis_config(server))
        diagnosis.assert_found("redis.disk", PROBLEM, "its snapshot (RDB)")


async def test_output_buffers(server: RedisServer) -> None:
    def limit(text: str) -> None:
        server.control.config_set("client-output-buffer-limit", f"pubsub {text}")

    limit("4000000 0 0")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.buffers", WARNING, "a few messages")
    limit("32mb 500kb 60")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.buffers", WARNING, "a few messages")
    limit("1000000 0 0")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.buffers", PROBLEM, "cuts off every subscriber")
    small = redis_config(server)
    small["backend"]["max_data_size"] = 65536
    diagnosis = await diagnose(small)
    diagnosis.assert_found("redis.buffers", OK)
    limit("0 0 0")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.buffers", OK, "no limit")


async def test_idle_connections_are_closed(server: RedisServer) -> None:
    server.control.config_set("timeout", 300)
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.idle", WARNING, "300 s")


async def test_a_replica(tmp_path: Path, redis_server: RedisServer) -> None:
    with RedisServer(tmp_path) as server:
        server.replica_of(redis_server)
        diagnosis = await diagnose(redis_config(server))
        diagnosis.assert_found("redis.role", PROBLEM, "publishes fail")
        diagnosis.assert_found("redis.announcements", PROBLEM, "read-only replica")


async def test_a_cluster(tmp_path: Path) -> None:
    options = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with RedisServer(tmp_path, options) as server:
        server.control.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        while "cluster_state:ok" not in str(server.control.execute_command("CLUSTER", "INFO")):
            await asyncio.sleep(0.01)
        diagnosis = await diagnose(redis_config(server))
        diagnosis.assert_found("redis.cluster", PROBLEM, "no hash tag")
        diagnosis = await diagnose(redis_config(server, key_prefix="{bus}"))
        diagnosis.assert_found("redis.cluster", OK)
        assert diagnosis.bad == set()


async def test_the_node_that_has_the_keys(tmp_path: Path) -> None:
    servers = []
    with ExitStack() as stack:
        for number in range(2):
            (folder := tmp_path / str(number)).mkdir()
            bus_port = free_port()
            options = {"cluster-enabled": "yes", "cluster-port": str(bus_port)}
            servers.append(stack.enter_context(RedisServer(folder, options)))
        here, there = servers
        ask = here.control.execute_command
        # Two nodes need two configuration epochs before they agree upon anything.
        ask("CLUSTER", "SET-CONFIG-EPOCH", 1)
        ask("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        there.control.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
        there.control.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        ask("CLUSTER", "MEET", "127.0.0.1", there.port, bus_port)
        for each in servers:
            while "cluster_state:ok" not in str(each.control.execute_command("CLUSTER", "INFO")):
                await asyncio.sleep(0.05)
        tag = next(
            f"{{{number}}}"
            for number in range(100)
            if int(ask("CLUSTER", "KEYSLOT", f"{{{number}}}")) > 8191
        )
        there.control.set(f"{tag}__mb_backlog_n_/text", "hello")
        diagnosis = await diagnose(redis_config(here, key_prefix=tag))
        diagnosis.assert_found("redis.keys", PROBLEM, "/text")
        assert diagnosis.bad == {"redis.keys"}


async def test_through_sentinels(tmp_path: Path, server: RedisServer) -> None:
    with Sentinel(tmp_path, server) as sentinel:
        diagnosis = await diagnose(
            redis_config(server, url="redis://nowhere.invalid", sentinels=[sentinel.address])
        )
        assert diagnosis.bad == set()


# -- Redis: names and permissions


async def test_a_name_that_ruby_does_not_use(server: RedisServer) -> None:
    config = redis_config(server, url=server.url.replace("/0", "/7"))
    (await diagnose(config)).assert_found("redis.pubsub", OK, "_message_bus_7")
    with server.control.pubsub() as ruby:
        ruby.subscribe("_message_bus_0")
        ruby.get_message(timeout=5)
        diagnosis = await diagnose(config)
        diagnosis.assert_found(
            "redis.pubsub", WARNING, "_message_bus_7", "others on this server hear _message_bus_0"
        )
        assert "pubsub_channel" in diagnosis.one("redis.pubsub").advice
        config["backend"]["redis"]["pubsub_channel"] = "_message_bus_0"
        diagnosis = await diagnose(config)
        diagnosis.assert_found("redis.pubsub", OK, "_message_bus_0, which 1 subscribers hear")
        # another bus in another database is nobody's mistake
        config = redis_config(server, pubsub_channel="_message_bus_7")
        diagnosis = await diagnose(config)
        diagnosis.assert_found("redis.pubsub", WARNING, "which 0 subscribers hear")
        ruby.subscribe("_message_bus_7")
        ruby.get_message(timeout=5)
        diagnosis = await diagnose(config)
        diagnosis.assert_found("redis.pubsub", OK, "others on this server hear _message_bus_0")


RIGHTS = "+@all -@dangerous +info +config|get +pubsub"


def allow(server: RedisServer, rights: str, keys: str = "~__mb_* ~__messagebusd_*") -> None:
    server.control.execute_command(
        "ACL", "SETUSER", "bus", "reset", "on", ">secret", "&_message_bus_*", *keys.split(),
        *rights.split(),
    )  # fmt: skip


async def test_permissions(server: RedisServer) -> None:
    config = redis_config(server, username="bus", password="secret")
    allow(server, RIGHTS)
    assert (await diagnose(config)).bad == set()
    allow(server, f"{RIGHTS} -zadd -script|load")
    diagnosis = await diagnose(config)
    diagnosis.assert_found("redis.permissions", PROBLEM, "may not use SCRIPT LOAD, ZADD on keys")
    assert "+script|load +zadd" in diagnosis.one("redis.permissions").advice
    allow(server, RIGHTS, keys="~other_*")
    diagnosis = await diagnose(config)
    diagnosis.assert_found("redis.permissions", PROBLEM, "INCR")
    allow(server, RIGHTS)
    server.control.execute_command("ACL", "SETUSER", "bus", "resetchannels")
    diagnosis = await diagnose(config)
    diagnosis.assert_found("redis.announcements", PROBLEM, "lacks a permission")


async def test_what_may_not_be_looked_at_is_said(server: RedisServer) -> None:
    allow(server, "+@all -@dangerous -pubsub -time")
    diagnosis = await diagnose(redis_config(server, username="bus", password="secret"))
    for check in ("redis.info", "redis.pubsub", "redis.clock"):
        diagnosis.assert_found(check, WARNING, "not examined", "lacks a permission")
    diagnosis.assert_found("redis.announcements", OK)


# -- Redis: what is in it


async def test_counters_that_were_evicted(server: RedisServer, start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(redis_config(server))
    for number in range(3):
        await daemon.publish("/a", number)
    await daemon.publish("/b", 1)
    (await diagnose(redis_config(server))).assert_found("redis.keys", OK, "agree")
    server.control.delete("__mb_backlog_id_n_/a")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", WARNING, "below the newest stored id", ": /a;")
    server.control.set("__mb_backlog_id_n_/a", 2)
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", WARNING, ": /a;")
    server.control.set("__mb_backlog_id_n_/a", 3)
    server.control.set("__mb_global_id_n", 1)
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", WARNING, "the global log")


async def test_keys_of_somebody_else(server: RedisServer) -> None:
    server.control.set("__mb_backlog_n_/text", "hello")
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", PROBLEM, "something else", "/text")
    server.flush()
    server.control.set("__mb_backlog_id_n_/word", "hello")
    server.control.zadd("__mb_backlog_n_/word", {"1|1|/word|{}": 1})
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", PROBLEM, "/word")
    server.flush()
    server.control.set("__mb_backlog_id_n_/odd", 1)
    server.control.zadd("__mb_backlog_n_/odd", {"what is this": 1})
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", WARNING, "form", "/odd")


async def test_a_prefix_is_no_pattern(server: RedisServer) -> None:
    server.control.set("a__mb_backlog_n_/text", "hello")
    diagnosis = await diagnose(redis_config(server, key_prefix="[a-z]"))
    diagnosis.assert_found("redis.keys", OK)
    diagnosis = await diagnose(redis_config(server, key_prefix="a"))
    diagnosis.assert_found("redis.keys", PROBLEM)


async def test_many_channels_are_not_all_looked_at(server: RedisServer) -> None:
    pipeline = server.control.pipeline()
    for number in range(4000):
        pipeline.set(f"__mb_backlog_id_n_/{number}", 1)
        pipeline.zadd(f"__mb_backlog_n_/{number}", {"1|1|/|{}": 1})
    pipeline.execute()
    diagnosis = await diagnose(redis_config(server))
    diagnosis.assert_found("redis.keys", OK, "the first 2")


# -- the Redis door


def inbox(server: RedisServer, **options: Any) -> dict[str, Any]:
    return {"ingest": {"redis": {"enabled": True, "url": server.url, **options}}}


async def test_an_inbox_that_works(server: RedisServer, start_daemon: StartDaemon) -> None:
    (await diagnose(inbox(server))).assert_found("inbox.stream", OK, "no daemon reads it")
    await start_daemon(inbox(server))
    while not server.control.exists("messagebusd:publish:reader"):
        await asyncio.sleep(0.01)
    diagnosis = await diagnose(inbox(server))
    diagnosis.assert_found("inbox.stream", OK, "nothing waits", "a daemon reads it")
    diagnosis.assert_found("inbox.dead", OK)


async def test_an_inbox_that_nobody_reads(server: RedisServer) -> None:
    server.control.xadd("messagebusd:publish", {"channel": "/a", "data": "1"})
    diagnosis = await diagnose(inbox(server))
    diagnosis.assert_found("inbox.stream", WARNING, "1 entries wait", "no daemon reads it")


async def test_an_inbox_that_is_stuck(server: RedisServer) -> None:
    stream = "messagebusd:publish"
    server.control.set(f"{stream}:reader", "somebody")
    server.control.xadd(stream, {"channel": "/a", "data": "1"})
    diagnosis = await diagnose(inbox(server))
    diagnosis.assert_found("inbox.stream", OK, "1 entries wait")
    server.control.delete(stream)
    old = int(server.control.time()[0]) - 90
    server.control.xadd(stream, {"channel": "/a", "data": "1"}, id=f"{old}000-0")
    diagnosis = await diagnose(inbox(server))
    diagnosis.assert_found("inbox.stream", WARNING, "the oldest for 9")


async def test_an_inbox_beside_the_store(server: RedisServer) -> None:
    server.control.xadd("messagebusd:publish:dead", {"dead_reason": "x"})
    config = redis_config(server) | {"ingest": {"redis": {"enabled": True}}}
    (await diagnose(config)).assert_found("inbox.dead", WARNING, "1 entries")


async def test_an_inbox_that_may_not_be_looked_at(server: RedisServer) -> None:
    allow(server, "+@all", keys="~__mb_*")
    diagnosis = await diagnose(inbox(server, username="bus", password="secret"))
    diagnosis.assert_found("inbox.stream", WARNING, "not examined")


async def test_dead_letters(server: RedisServer, start_daemon: StartDaemon) -> None:
    server.control.xadd("messagebusd:publish:dead", {"dead_reason": "x"})
    (await diagnose(inbox(server))).assert_found("inbox.dead", WARNING, "1 entries")


async def test_an_inbox_key_of_another_type(server: RedisServer) -> None:
    server.control.set("messagebusd:publish", "x")
    (await diagnose(inbox(server))).assert_found("inbox.stream", PROBLEM, "is a string")


async def test_an_inbox_that_is_away(tmp_path: Path) -> None:
    diagnosis = await diagnose(inbox(RedisServer(tmp_path)))
    diagnosis.assert_found("inbox.reachable", PROBLEM, "no connection")


# -- memory


async def test_the_memory_store(tmp_path: Path) -> None:
    diagnosis = await diagnose({})
    diagnosis.assert_found("memory.size", OK, "256.0 MiB")
    diagnosis.assert_found("memory.snapshot", WARNING, "begin anew")
    kept = {"backend": {"memory": {"snapshot_file": str(tmp_path / "snapshot")}}}
    (await diagnose(kept)).assert_found("memory.snapshot", OK)
    kept["backend"]["memory"]["snapshot_file"] = str(tmp_path / "missing" / "snapshot")
    (await diagnose(kept)).assert_found("memory.snapshot", PROBLEM, "cannot be written")


async def test_open_files() -> None:
    few = {"poll": {"max_active_clients": 100}}
    (await diagnose(few)).assert_found("process.files", OK)
    many = {"poll": {"max_active_clients": 2**40}}
    (await diagnose(many)).assert_found("process.files", WARNING, "a worker needs")
