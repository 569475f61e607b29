"""What several workers are given, what they count together, and how their sockets are bound."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from prometheus_client import values

from messagebusd.cli import main
from messagebusd.connection import CloseReason
from messagebusd.errors import ConfigurationError
from messagebusd.listeners import bind, make_key, shown_address
from messagebusd.metrics import Metrics, forget_worker
from messagebusd.protocol.requests import Mode
from messagebusd.settings import (
    FdAddress,
    LoadedSettings,
    Settings,
    TcpAddress,
    UnixAddress,
    load_settings,
)
from messagebusd.supervisor.assignment import Assignment, Place, receive_assignment
from messagebusd.supervisor.supervisor import pause_before_restart

# -- settings


def test_workers_need_a_store_that_they_can_share() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, {"MESSAGEBUSD_SERVER__WORKERS": "2"}, {})
    [problem] = caught.value.problems
    assert problem.startswith("MESSAGEBUSD_SERVER__WORKERS: server.workers must be 1")
    environ = {"MESSAGEBUSD_SERVER__WORKERS": "2", "MESSAGEBUSD_BACKEND__KIND": "redis"}
    assert load_settings(None, environ, {}).settings.server.workers == 2


@pytest.mark.parametrize(("workers", "chosen"), [("1", "alone"), ("2", "supervisor")])
def test_serve_needs_a_supervisor_for_several(
    monkeypatch: pytest.MonkeyPatch, workers: str, chosen: str
) -> None:
    called = []
    for name in ("alone", "supervisor.supervisor"):
        fake = ModuleType(name)
        monkeypatch.setattr(
            fake, "run", lambda *_, name=name, **__: called.append(name) or 3, False
        )
        monkeypatch.setitem(sys.modules, f"messagebusd.{name}", fake)
        monkeypatch.setattr(f"messagebusd.{name}", fake, raising=False)
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.root.level
    environ = {"MESSAGEBUSD_SERVER__WORKERS": workers, "MESSAGEBUSD_BACKEND__KIND": "redis"}
    try:
        assert CliRunner().invoke(main, ["serve"], env=environ).exit_code == 3
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert [each.partition(".")[0] for each in called] == [chosen]


def test_a_key_is_made_only_where_none_is_configured() -> None:
    made = make_key(Settings())
    assert made is not None
    assert made.startswith("mb_")
    assert made != make_key(Settings())
    assert make_key(Settings.model_validate({"api": {"key": "x"}})) is None
    assert make_key(Settings.model_validate({"api": {"enabled": False}})) is None


# -- the assignment


def test_an_assignment_arrives_whole() -> None:
    settings = Settings.model_validate(
        {
            "api": {"key": "secret", "keys": [{"name": "a", "token": "b", "scopes": ["read"]}]},
            "cors": {"allow_origins": [f"https://{number}.example" for number in range(20_000)]},
            "server": {"listen": "unix:/run/x", "trusted_proxies": ["10.0.0.0/8", "unix"]},
        }
    )
    place = Place(2, Path("/tmp/x"), {"public": [7, 8]}, "mb_made", b"signs")
    loaded = LoadedSettings(settings, {"api.key": "bus.toml:2"}, ())
    content = Assignment(loaded, place).encode()
    assert len(content) > 2**18  # more than a socket takes at once
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=ours.sendall, args=(content + b"drain\n",))
        sending.start()
        assert receive_assignment(theirs) == (loaded, place)
        assert theirs.recv(100) == b"drain\n"
        sending.join()


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\0\0\0\0\5abcd"])
def test_a_supervisor_that_is_gone_assigns_nothing(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(sent)
        with pytest.raises(EOFError):
            receive_assignment(theirs)


def test_secrets_of_a_place_are_not_shown() -> None:
    shown = repr(Place(2, Path("/tmp/x"), {}, "mb_made", b"signs"))
    assert "mb_made" not in shown
    assert "signs" not in shown


# -- starting again


def test_pauses_grow_to_a_limit() -> None:
    pauses = [pause_before_restart(failures) for failures in range(1, 8)]
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert pause_before_restart(10**9) == 5.0


# -- sockets


Close = Callable[[list[list[socket.socket]]], list[list[socket.socket]]]


@pytest.fixture
def close() -> Iterator[Close]:
    """Close these sockets afterwards."""
    opened: list[socket.socket] = []

    def keep(rows: list[list[socket.socket]]) -> list[list[socket.socket]]:
        opened.extend(each for row in rows for each in row)
        return rows

    yield keep
    for each in opened:
        each.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_each_process_has_its_own_sockets_on_one_port(close: Close, host: str) -> None:
    rows = close(bind(TcpAddress(host, 0), 3))
    assert len({id(each) for row in rows for each in row}) == 3 * len(rows[0])
    [port] = {each.getsockname()[1] for row in rows for each in row}
    for row in rows:
        for each in row:
            each.listen()
    shown = shown_address(TcpAddress(host, 0), rows[0])
    assert shown == f"http://[::1]:{port}" if host == "::1" else f"http://{host}:{port}"
    # The kernel gives each of them some.
    family, place = rows[0][0].family, rows[0][0].getsockname()
    clients = [[socket.socket(family) for _ in range(64)]]
    for each in close(clients)[0]:
        each.connect(place)
    for row in rows:
        row[0].settimeout(5)
        accepted, _ = row[0].accept()
        accepted.close()


@pytest.mark.parametrize("theirs", [1, 2])
@pytest.mark.parametrize("ours", [1, 2])
def test_a_port_in_use_is_refused(close: Close, ours: int, theirs: int) -> None:
    taken = close(bind(TcpAddress("127.0.0.1", 0), theirs))
    for [each] in taken:
        each.listen()
    address = TcpAddress("127.0.0.1", taken[0][0].getsockname()[1])
    with pytest.raises(OSError, match=rf"cannot listen on {address}: .*in use"):
        bind(address, ours)


def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid:1: "):
        bind(TcpAddress("no.such.host.invalid", 1))


def test_a_unix_socket_is_shared(close: Close, tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    [[first], [second]] = close(bind(UnixAddress(path), 2))
    assert first is second
    first.listen()
    with pytest.raises(OSError, match=rf"cannot listen on unix:{path}: .*in use"):
        bind(UnixAddress(path))
    first.close()
    [[third]] = close(bind(UnixAddress(path)))
    assert third.getsockname() == str(path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="in use"):
        bind(UnixAddress(tmp_path / "file"))
    assert (tmp_path / "file").exists()


def test_a_passed_socket_is_shared(close: Close) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        [[first], [second]] = close(bind(FdAddress(passed.fileno()), 2))
        assert first is second
        assert first.getsockname() == passed.getsockname()
        assert shown_address(FdAddress(7), [first]) == "fd:7"
    with pytest.raises(OSError, match="cannot listen on fd:999999: "):
        bind(FdAddress(999_999))


# -- metrics


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for values; the change to the whole process is undone."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def samples(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    pairs = (each.rpartition(" ") for each in lines if not each.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def count(metrics: Metrics, *, parked: int, lag: float) -> None:
    metrics.watch_parked(lambda: {Mode.STREAM: parked})
    metrics.waiting_messages.set_function(lambda: parked)
    metrics.loop_lag.set(lag)
    metrics.feeds.inc()
    metrics.published("http", parked)
    metrics.first_frame(0.001)
    metrics.poll_ended(Mode.STREAM, CloseReason.DEADLINE)
    metrics.refresh()


def test_each_worker_shows_what_all_have_counted(folder: Path) -> None:
    first, second = Metrics.shared(folder, 1), Metrics.shared(folder, 2)
    count(first, parked=3, lag=0.5)
    count(second, parked=4, lag=0.25)
    assert samples(first) == samples(second)
    found = samples(first)
    assert found['messagebusd_parked_polls{mode="stream"}'] == 7
    assert found['messagebusd_parked_polls{mode="long_poll"}'] == 0
    assert found["messagebusd_waiting_messages"] == 7
    assert found["messagebusd_subscriptions"] == 2
    assert found["messagebusd_event_loop_lag_seconds"] == 0.5
    assert found['messagebusd_publishes_total{door="http"}'] == 7
    assert found["messagebusd_first_frame_seconds_count"] == 2
    assert found['messagebusd_first_frame_seconds_bucket{le="0.001"}'] == 2
    assert not any("pid" in each or "worker" in each for each in found)


def test_what_a_dead_worker_counted_stays_and_what_it_held_does_not(folder: Path) -> None:
    first, second = Metrics.shared(folder, 1), Metrics.shared(folder, 2)
    count(first, parked=3, lag=0.5)
    count(second, parked=4, lag=0.25)
    forget_worker(folder, 1)
    found = samples(second)
    assert found['messagebusd_parked_polls{mode="stream"}'] == 4
    assert found["messagebusd_event_loop_lag_seconds"] == 0.25
    assert found['messagebusd_publishes_total{door="http"}'] == 7
    files = len(list(folder.iterdir()))
    count(Metrics.shared(folder, 1), parked=10, lag=0.0)
    found = samples(second)
    assert found['messagebusd_parked_polls{mode="stream"}'] == 14
    assert found['messagebusd_publishes_total{door="http"}'] == 17
    assert found["messagebusd_first_frame_seconds_count"] == 3
    # The next one goes on where the last one stopped; else files would pile up.
    assert len(list(folder.iterdir())) == files + 2


def test_one_process_shows_the_same_as_several(folder: Path) -> None:
    shared = Metrics.shared(folder, 1)
    count(shared, parked=3, lag=0.5)
    values.ValueClass = values.MutexValue
    alone = Metrics()
    count(alone, parked=3, lag=0.5)
    assert samples(alone) == samples(shared)

    def kinds(metrics: Metrics) -> set[str]:
        return {each for each in metrics.render().decode().splitlines() if each.startswith("# ")}

    assert kinds(shared) <= kinds(alone)
