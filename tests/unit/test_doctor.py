"""What the doctor makes of a server's own words, where no server at hand says them."""

from __future__ import annotations

import json
import resource

import pytest

from messagebusd.doctor import postgres_server, redis_server, report, timing
from messagebusd.doctor.postgres_server import Server, Table
from messagebusd.doctor.process import judge_open_files
from messagebusd.doctor.report import Level, Report

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM

POSTGRES = Server(
    version_number=150_005,
    version="15.5",
    is_replica=False,
    is_read_only=False,
    encoding="UTF8",
    fsync="on",
    synchronous_commit="on",
    time_zone="Etc/UTC",
    time_zone_source="configuration file",
    statement_timeout=0.0,
    idle_session_timeout=0.0,
    queue_usage=0.0,
    autovacuum="on",
)


@pytest.mark.parametrize(
    ("info", "level", "found"),
    [
        ({"redis_version": "6.0.16"}, PROBLEM, "Redis 6.0.16"),
        ({"redis_version": "6.2.0"}, OK, "Redis 6.2.0"),
        ({"redis_version": "10.0.0"}, OK, "Redis 10.0.0"),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, OK, "Valkey 8.0.1"),
        ({"redis_version": "7.2.4", "server_name": "valkey"}, OK, "Valkey 7.2.4"),
        ({}, PROBLEM, "Redis ?"),
    ],
)
def test_redis_versions(info: dict[str, str], level: Level, found: str) -> None:
    finding = redis_server.version(info)
    assert (finding.level, finding.found) == (level, found)


@pytest.mark.parametrize(
    ("used", "level"), [("79", OK), ("80", WARNING), ("94", WARNING), ("95", PROBLEM)]
)
def test_redis_memory(used: str, level: Level) -> None:
    assert redis_server.memory({"used_memory": used, "maxmemory": "100"}).level is level


def test_what_redis_evicted_is_told() -> None:
    info = {"maxmemory_policy": "allkeys-lru", "maxmemory": "1", "evicted_keys": "12"}
    assert "12 keys were evicted" in redis_server.eviction(info).found


@pytest.mark.parametrize("key", ["aof_last_write_status", "aof_last_bgrewrite_status"])
def test_redis_cannot_write_its_log(key: str) -> None:
    assert redis_server.saving({key: "err"}).level is PROBLEM


@pytest.mark.parametrize(
    ("prefix", "database", "level"),
    [
        ("{bus}", 0, OK),
        ("a{bus}b", 0, OK),
        ("", 0, PROBLEM),
        ("bus", 0, PROBLEM),
        ("{}{bus}", 0, PROBLEM),  # the first pair of braces counts, and it is empty
        ("{bus}", 1, PROBLEM),
    ],
)
def test_redis_cluster(prefix: str, database: int, level: Level) -> None:
    finding = redis_server.cluster({"cluster_enabled": "1"}, prefix, database)
    assert finding is not None
    assert finding.level is level
    assert redis_server.cluster({"cluster_enabled": "0"}, prefix, database) is None


@pytest.mark.parametrize(("number", "level"), [(120_017, PROBLEM), (130_000, OK)])
def test_postgres_versions(number: int, level: Level) -> None:
    server = POSTGRES._replace(version_number=number)
    assert postgres_server.version(server).level is level


@pytest.mark.parametrize(
    ("usage", "level"), [(0.0, OK), (0.049, OK), (0.05, WARNING), (0.5, PROBLEM)]
)
def test_the_queue_of_announcements(usage: float, level: Level) -> None:
    assert postgres_server.queue(POSTGRES._replace(queue_usage=usage)).level is level


@pytest.mark.parametrize(
    ("live", "dead", "level"),
    [(10, 10_000, OK), (10, 10_001, WARNING), (10_000, 50_000, OK), (10_000, 50_001, WARNING)],
)
def test_dead_rows(live: int, dead: int, level: Level) -> None:
    assert postgres_server.vacuum(POSTGRES, Table(0, live, dead, True)).level is level
    off = POSTGRES._replace(autovacuum="off")
    assert postgres_server.vacuum(off, Table(0, live, dead, True)).level is WARNING


@pytest.mark.parametrize(
    ("difference", "round_trip", "level", "found"),
    [
        (1.9, 0.0, OK, "less than 2 s"),
        (-3.0, 0.0, WARNING, "3.0 s behind ours"),
        (3.0, 0.0, WARNING, "3.0 s ahead of ours"),
        (3.0, 4.0, OK, "less than 2 s"),  # the answer may be that old
    ],
)
def test_clocks(difference: float, round_trip: float, level: Level, found: str) -> None:
    finding = timing.clock("x.clock", difference, round_trip)
    assert finding.level is level
    assert found in finding.found


@pytest.mark.parametrize(
    ("seconds", "level"),
    [([0.1, 0.1, 0.5], OK), ([0.11, 0.11, 0.11], WARNING), ([0.01, 0.01, 0.51], WARNING)],
)
def test_latency(seconds: list[float], level: Level) -> None:
    assert timing.latency("x.latency", seconds, 1.0, "a.timeout").level is level


@pytest.mark.parametrize(
    ("limit", "workers", "level"),
    [
        (10_511, 1, WARNING),
        (10_512, 1, OK),
        (5_511, 2, WARNING),
        (5_512, 2, OK),
        (resource.RLIM_INFINITY, 1, OK),
    ],
)
def test_open_files(limit: int, workers: int, level: Level) -> None:
    assert judge_open_files(limit, 10_000, workers).level is level


def test_a_report_is_as_bad_as_its_worst() -> None:
    told = Report()
    assert told.level is OK
    told.add(report.ok("a", "fine"), report.problem("b", "broken", "mend it"))
    told.add(report.warning("c", "odd", "look"))
    assert told.level is PROBLEM
    assert told.lines() == [
        "ok       a: fine",
        "problem  b: broken -> mend it",
        "warning  c: odd -> look",
    ]
    answer = json.loads(told.as_json())
    assert answer["status"] == "problem"
    assert answer["checks"][1] == {
        "check": "b",
        "level": "problem",
        "found": "broken",
        "advice": "mend it",
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 bytes"), (2048, "2.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert report.size(count) == text


def test_many_names() -> None:
    assert report.some(["a", "b"], 2) == "a, b"
    assert report.some(["a", "b", "c"], 2) == "a, b and 1 more"
