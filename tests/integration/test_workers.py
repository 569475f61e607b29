"""Several workers as one daemon (SPEC 9): they share the work, and one that dies is replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from messagebusd.settings import LoadedSettings, Settings
from messagebusd.supervisor import supervisor
from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, DaemonError
from tests.support.program import free_port
from tests.support.rawhttp import RawConnection, Response, encode_request
from tests.support.redis_server import RedisServer

WORKERS = 2
# So many connections that each worker gets some.
MANY = 32


Configure = Callable[..., dict[str, Any]]


@pytest.fixture
def store(redis_server: RedisServer) -> dict[str, Any]:
    """A store that workers can share, empty."""
    redis_server.flush()
    return {"kind": "redis", "redis": {"url": redis_server.url}}


@pytest.fixture
def config(store: dict[str, Any]) -> Configure:
    """Settings of a daemon with several workers."""

    def configure(**sections: Mapping[str, Any]) -> dict[str, Any]:
        server = {"workers": WORKERS, **sections.get("server", {})}
        return {**sections, "server": server, "backend": store}

    return configure


def poll(client: str, channel: str = "/a", *, streaming: bool = True) -> bytes:
    body = json.dumps({channel: 0}).encode()
    headers = [("Content-Type", "application/json")]
    if not streaming:
        headers.append(("Dont-Chunk", "1"))
    return encode_request("POST", f"/message-bus/{client}/poll", headers=headers, body=body)


@asynccontextmanager
async def polls(
    daemon: Daemon,
    count: int = MANY,
    channel: str = "/a",
    name: str = "c",
    *,
    streaming: bool = True,
) -> AsyncIterator[list[Response]]:
    """Polls of clients ``c00``, ``c01`` and so on, each on a connection of its own.

    Those that stream have their first bytes already.
    """
    async with AsyncExitStack() as stack:
        responses = []
        for number in range(count):
            connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
            responses.append(
                connection.send(poll(f"{name}{number:02}", channel, streaming=streaming))
            )
        if streaming:
            for response in responses:
                await response.chunk_count(1)
        yield responses


async def get(daemon: Daemon, path: str) -> tuple[int, str]:
    """Ask on a new connection, so that any worker may be the one that answers."""
    headers = {"Authorization": f"Bearer {daemon.key}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session,
        session.get(daemon.internal_url + path, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def publish(daemon: Daemon, channel: str = "/a", data: object = 1) -> None:
    """Publish on a new connection."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as session,
        session.post(
            f"{daemon.internal_url}/api/v1/publish",
            headers={"Authorization": f"Bearer {daemon.key}"},
            json={"channel": channel, "data": data},
        ) as answer,
    ):
        assert answer.status == 200, await answer.text()


async def sample(daemon: Daemon, name: str) -> float:
    """The sum of a metric over its labels."""
    _, text = await get(daemon, "/metrics")
    found = re.findall(rf"^messagebusd_{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


async def until(condition: Callable[[], bool], within: float = 40.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


async def until_sample(daemon: Daemon, name: str, value: float) -> None:
    async with asyncio.timeout(10):
        while await sample(daemon, name) != value:
            await asyncio.sleep(0.05)


def logged(daemon: Daemon, message: str, **fields: object) -> list[dict[str, Any]]:
    return [
        each for each in daemon.log if each["message"] == message and fields.items() <= each.items()
    ]


def pids(daemon: Daemon) -> dict[int, int]:
    """The process of each worker; the latest one."""
    return {each["worker"]: each["pid"] for each in logged(daemon, "worker ready")}


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may have asked how it ended


def content(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# -- they are one daemon


async def test_the_work_is_shared(start_daemon: StartDaemon, config: Configure) -> None:
    daemon = await start_daemon(config(poll={"long_polling_interval": 1.0}))
    assert set(pids(daemon)) == set(range(1, WORKERS + 1))
    assert daemon.pid not in pids(daemon).values()
    for once in ("listening", "ready"):
        assert len(logged(daemon, once)) == 1
    async with polls(daemon) as responses:
        assert await daemon.stop() == 0
        assert all(each.terminated for each in responses)
    assert not logged(daemon, "polls ended before their deadline")
    held = {each["worker"]: each["parked"] for each in logged(daemon, "draining")}
    assert set(held) == set(range(1, WORKERS + 1))
    assert sum(held.values()) == MANY
    assert all(held.values())


async def test_metrics_are_those_of_all_workers(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config())
    async with polls(daemon) as responses:
        await until_sample(daemon, "parked_polls", MANY)
        for _ in range(MANY):
            await publish(daemon)
        for response in responses:
            assert await response.until(lambda each: each.body.count(b'"message_id"') == MANY)
        for _ in range(8):  # whoever is asked
            assert await sample(daemon, "publishes_total") == MANY
            assert await sample(daemon, "deliveries_total") == MANY * MANY
            assert await sample(daemon, "first_frame_seconds_count") == MANY
    await until_sample(daemon, "parked_polls", 0)


async def test_clients_channels_and_numbers_are_those_of_all_workers(
    start_daemon: StartDaemon,
    config: Configure,
) -> None:
    daemon = await start_daemon(config())
    await publish(daemon, "/b")
    async with polls(daemon, MANY, "/b"), polls(daemon, 3, "/a", "other"):
        for limit in (1, 5, MANY, 100):
            found, after = [], {}
            while True:
                query = {"limit": limit, "channel": "/b", **after}
                page = await daemon.api("GET", "clients", query=query)
                assert len(page["clients"]) <= limit
                found += [each["client_id"] for each in page["clients"]]
                if page["next"] is None:
                    break
                after = {"after": page["next"]}
            assert found == [f"c{number:02}" for number in range(MANY)]
        stats = await daemon.api("GET", "stats")
        assert stats["clients"] == {"long_poll": 0, "stream": MANY + 3}
        assert "unavailable_workers" not in stats
        [channel] = (await daemon.api("GET", "channels"))["channels"]
        assert (channel["channel"], channel["subscribers"]) == ("/b", MANY)


async def test_what_is_explained_is_of_all_workers(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config())
    async with polls(daemon, MANY) as responses:
        await publish(daemon)
        for each in responses:
            await each.chunk_count(2)
        workers = set()
        for number in range(MANY):
            query = {"channel": "/a", "message_id": 1, "client_id": f"c{number:02}"}
            found = await daemon.api("GET", "explain", query=query)
            assert found["conclusion"] == "given"
            [written] = [each for each in found["facts"] if each["about"] == "poll"]
            workers.add(written["worker"])
            heard = [each for each in found["facts"] if each["code"] == "delivered"]
            assert [each["worker"] for each in heard] == [1, 2]
        assert workers == {1, 2}


async def test_a_probe_is_known_to_all_workers(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config())
    for _ in range(8):  # each of these may reach any worker
        _, text = await get(daemon, "/api/v1/probes?client_id=none")
        assert json.loads(text) == {"arrival": None}
        client_id = (await daemon.api("POST", "probes"))["client_id"]
        async with await RawConnection.open(daemon.url) as connection:
            await connection.send(poll(client_id)).chunk_count(1)
        _, text = await get(daemon, f"/api/v1/probes?client_id={client_id}")
        assert json.loads(text)["arrival"]["peer"] == "127.0.0.1"


async def test_each_worker_holds_its_part_of_the_polls(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config(poll={"max_active_clients": WORKERS + 1}))
    async with polls(daemon) as responses:
        parts = 2 * WORKERS  # rounded up
        await until(lambda: sum(not each.over for each in responses) == parts)
        await until_sample(daemon, "parked_polls", parts)


async def test_the_same_client_on_two_workers_is_found_twice(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config())
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
            await connection.send(poll("same")).chunk_count(1)
        # On each worker the latest one stays; all have the same seq.
        found, after = 0, {}
        while after is not None:
            page = await daemon.api("GET", "clients", query={"limit": 1, **after})
            found += len(page["clients"])
            after = None if page["next"] is None else {"after": page["next"]}
        assert found == WORKERS


async def test_who_does_not_answer_is_named(start_daemon: StartDaemon, config: Configure) -> None:
    daemon = await start_daemon(config())
    stopped = 2
    os.kill(pids(daemon)[stopped], signal.SIGSTOP)
    try:
        # Some of these are for the worker that is stopped.
        asked = [asyncio.create_task(get(daemon, "/api/v1/stats")) for _ in range(16)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        [first, *_] = [each for each in asked if each.done()]
        status, text = first.result()
        assert status == 200
        assert json.loads(text)["unavailable_workers"] == [stopped]
    finally:
        os.kill(pids(daemon)[stopped], signal.SIGCONT)
    assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 16


async def test_the_generated_key_is_the_same_for_all(tmp_path: Path, store: dict[str, Any]) -> None:
    async with _process(tmp_path, store, api_key=None) as (process, log):
        assert process.stdout is not None
        introduction = b""
        async with asyncio.timeout(20):
            while b"/api/v1/publish" not in introduction:
                introduction += await process.stdout.readline()
        [key] = re.findall(r"MESSAGEBUSD_KEY=(mb_\S+)", introduction.decode())
        [url] = re.findall(r"listening on (http://\S+)", introduction.decode())
        for _ in range(MANY):
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
                session.get(f"{url}/api/v1/stats") as answer,
            ):
                assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await process.stdout.read() == b"\n"  # said once
        assert not any(key in each for each in log)


# -- addresses


async def test_a_port_in_use(start_daemon: StartDaemon, config: Configure) -> None:
    daemon = await start_daemon(config())
    address = daemon.url.removeprefix("http://")
    for workers in (1, 2):
        with pytest.raises(
            DaemonError, match=r"(?s)exit code 1.*error: cannot listen on .*in use"
        ) as caught:
            await start_daemon(config(server={"listen": address, "workers": workers}))
        assert "Traceback" not in str(caught.value)
        assert str(caught.value).count("error:") == 1
    single = await start_daemon()
    with pytest.raises(DaemonError, match=r"error: .*in use"):
        await start_daemon(config(server={"listen": single.url.removeprefix("http://")}))
    assert (await get(daemon, "/livez"))[0] == 200


async def test_two_listeners_one_a_unix_socket(
    start_daemon: StartDaemon, config: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "bus.sock"
    settings = config(server={"listen": f"unix:{path}", "internal_listen": "127.0.0.1:0"})
    daemon = await start_daemon(settings)
    async with polls(daemon) as responses:
        await until_sample(daemon, "parked_polls", MANY)
        await publish(daemon)
        for response in responses:
            await response.chunk_count(2)
        with pytest.raises(DaemonError, match="in use"):
            await start_daemon(settings)
    # what a crash leaves behind is no obstacle
    await daemon.kill()
    daemon = await start_daemon(settings)
    async with polls(daemon, 1):
        pass
    assert await daemon.stop() == 0


async def test_a_socket_that_was_passed(tmp_path: Path, store: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with _process(tmp_path, store, passed=listener) as (process, log):
            for _ in range(MANY):
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://127.0.0.1:{port}/livez") as answer,
                ):
                    assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert any("stopped" in each for each in log)


# -- workers die


async def test_a_worker_that_is_killed_is_replaced(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config())
    for _ in range(MANY):
        await publish(daemon)
    published = await sample(daemon, "publishes_total")
    assert published == MANY
    async with polls(daemon) as responses:
        await until_sample(daemon, "parked_polls", MANY)
        before = pids(daemon)
        stream = asyncio.create_task(_keep_asking(daemon))
        os.kill(before[1], signal.SIGKILL)
        # Connections that come now are served, by the other one or when the new one is there.
        assert [
            status
            for status, _ in await asyncio.gather(*(get(daemon, "/livez") for _ in range(MANY)))
        ] == [200] * MANY
        await until(lambda: pids(daemon)[1] != before[1])
        [line] = logged(daemon, "worker ended, starting another one")
        assert (line["level"], line["worker"], line["pid"]) == ("error", 1, before[1])
        assert line["ended"] == "signal SIGKILL"
        assert pids(daemon)[2] == before[2]
        await until(lambda: any(each.over for each in responses))
        left = [each for each in responses if not each.over]
        assert 0 < len(left) < MANY
        # Those counted at the other one are parked still, and those of the dead one no more.
        await until_sample(daemon, "parked_polls", len(left))
        for _ in range(8):
            assert await sample(daemon, "publishes_total") == published
        await publish(daemon)
        assert await sample(daemon, "publishes_total") == published + 1
        for response in left:
            await response.chunk_count(2)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
    assert await daemon.stop() == 0


async def _keep_asking(daemon: Daemon) -> None:
    """Ask all the time; an answer may be cut off by a death, but is never wrong."""
    while True:
        try:
            status, _ = await get(daemon, "/readyz")
        except aiohttp.ClientError:
            continue
        assert status == 200


async def test_a_worker_that_does_not_turn_is_killed_and_replaced(
    store: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    settings = Settings.model_validate(
        {"server": {"listen": "127.0.0.1:0", "workers": WORKERS}, "backend": store}
    )

    def ready() -> dict[int, int]:
        return {each.worker: each.pid for each in caplog.records if each.msg == "worker ready"}

    def errors() -> list[str]:
        return [each.msg for each in caplog.records if each.levelname == "ERROR"]

    loaded = LoadedSettings(settings, {}, ())
    boss = supervisor.Supervisor(loaded, lambda: loaded, tmp_path)
    running = asyncio.create_task(boss.run())
    await until(lambda: len(ready()) == WORKERS)
    before = ready()
    with monkeypatch.context() as patience:
        patience.setattr(supervisor, "SILENT_BEATS", 5)
        os.kill(before[2], signal.SIGSTOP)
        await until(lambda: len(errors()) == 2)
    assert errors() == ["worker does not respond, killing it", "worker ended, starting another one"]
    await until(lambda: ready()[2] != before[2])
    assert ready()[1] == before[1]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert not any(map(is_running, ready().values()))


async def test_a_worker_that_does_not_begin_is_killed_and_replaced(
    store: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    slow = tmp_path / "slow"
    (tmp_path / "sluggish.py").write_text(
        "import pathlib, time\n"
        f"while pathlib.Path({str(slow)!r}).exists(): time.sleep(0.1)\n"
        "def allow(message, client): return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = Settings.model_validate(
        {
            "server": {"listen": "127.0.0.1:0", "workers": WORKERS},
            "backend": store,
            "filters": [{"channel_prefix": "/x/", "callable": "sluggish:allow"}],
        }
    )
    loaded = LoadedSettings(settings, {}, ())
    folder = tmp_path / "meeting"
    folder.mkdir()
    running = asyncio.create_task(supervisor.Supervisor(loaded, lambda: loaded, folder).run())

    def said(message: str) -> list[logging.LogRecord]:
        return [each for each in caplog.records if each.getMessage() == message]

    await until(lambda: len(said("worker ready")) == WORKERS)
    slow.touch()
    with monkeypatch.context() as patience:
        patience.setattr(supervisor, "BEGIN_BEATS", 2)
        os.kill(next(each.pid for each in said("worker ready") if each.worker == 2), signal.SIGKILL)
        await until(lambda: len(said("worker ended, starting another one")) == 3)
    assert len(said("worker does not begin, killing it")) == 2
    endings = [(each.ended, each.pause) for each in said("worker ended, starting another one")]
    assert endings == [("signal SIGKILL", pause) for pause in (0.0, 0.5, 1.0)]
    assert (
        said("worker ended, starting another one")[1].reason == "it was not ready within 2 seconds"
    )
    slow.unlink()
    await until(lambda: len(said("worker ready")) == WORKERS + 1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


# A filter that cannot be loaded, or ends its process, while there is a file of this name.
_FILTER = """
import os, pathlib
if pathlib.Path("broken").exists():
    raise ImportError("it is broken")
if pathlib.Path("deadly").exists():
    os._exit(7)
def allow(message, user):
    return True
"""


@pytest.fixture
async def with_filter(
    start_daemon: StartDaemon, config: Configure, tmp_path: Path
) -> Callable[..., Any]:
    """Start a daemon with this filter; the named file is in its folder."""

    async def start(name: str | None = None) -> Daemon:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / "capricious.py").write_text(_FILTER.replace('Path("', f'Path("{folder}/'))
        if name is not None:
            (folder / name).touch()
        filters = [{"channel_prefix": "/x/", "callable": "capricious:allow"}]
        return await start_daemon({**config(), "filters": filters}, env={"PYTHONPATH": str(folder)})

    return start


@pytest.mark.parametrize(
    ("cause", "told"), [("broken", "it is broken"), ("deadly", "did not start: exit status 7")]
)
async def test_workers_that_cannot_begin_end_the_daemon(
    with_filter: Callable[..., Any], cause: str, told: str
) -> None:
    with pytest.raises(DaemonError, match=r"exit code 1") as caught:
        await with_filter(cause)
    errors = [each for each in str(caught.value).splitlines() if each.startswith("error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert "Traceback" not in str(caught.value)


async def test_a_store_that_is_away_ends_the_daemon(
    start_daemon: StartDaemon, config: Configure
) -> None:
    away = {"kind": "redis", "redis": {"url": f"redis://127.0.0.1:{free_port()}/0"}}
    with pytest.raises(DaemonError, match=r"exit code 1") as caught:
        await start_daemon(config() | {"backend": away})
    assert str(caught.value).count("error: ") == 1
    assert "Traceback" not in str(caught.value)


async def test_a_worker_that_keeps_dying_is_started_again_and_again(
    with_filter: Callable[..., Any], tmp_path: Path
) -> None:
    daemon = await with_filter()
    cause = tmp_path / "modules" / "broken"
    cause.touch()
    before = pids(daemon)[1]
    os.kill(before, signal.SIGKILL)
    message = "worker ended, starting another one"
    await until(lambda: len(logged(daemon, message)) == 3)
    first, *others = logged(daemon, message)
    assert (first["ended"], first["pause"]) == ("signal SIGKILL", 0.0)
    assert [each["pause"] for each in others] == [0.5, 1.0]
    assert all("it is broken" in each["reason"] for each in others)
    cause.unlink()
    await until(lambda: pids(daemon)[1] != before)
    for _ in range(8):
        assert (await get(daemon, "/readyz"))[0] == 200
    assert await daemon.stop() == 0


# -- the end


async def test_draining_and_hurrying(start_daemon: StartDaemon, config: Configure) -> None:
    daemon = await start_daemon(config(server={"internal_listen": "127.0.0.1:0"}))
    async with polls(daemon) as responses:
        daemon.signal(signal.SIGTERM)
        await until(lambda: len(logged(daemon, "draining")) == WORKERS)
        with pytest.raises(OSError):  # noqa: PT011 - refused, whatever the kernel calls it
            await RawConnection.open(daemon.url)
        status, text = await get(daemon, "/readyz")
        assert (status, json.loads(text)["checks"]["accepting"]) == (503, "draining")
        # whoever publishes meanwhile is heard
        await publish(daemon, data="late")
        for response in responses:
            await response.chunk_count(2)
            assert b'"late"' in response.chunks[1].data
            assert not response.over
        # a second signal ends polls with their last frame
        daemon.signal(signal.SIGTERM)
        for response in responses:
            await response.finished()
            assert response.terminated
    assert await daemon.ended() == 0
    assert daemon.log[-1]["message"] == "stopped"


async def test_a_signal_to_the_whole_group_counts_once(
    tmp_path: Path, store: dict[str, Any]
) -> None:
    async with _process(tmp_path, store, interval=2.0) as (process, log):
        [url] = [json.loads(each)["address"] for each in log if '"listening"' in each]
        async with AsyncExitStack() as stack:
            responses = []
            for number in range(MANY):
                connection = await stack.enter_async_context(await RawConnection.open(url))
                responses.append(connection.send(poll(f"c{number}")))
                await responses[-1].chunk_count(1)
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
            await until(lambda: sum('"draining"' in each for each in log) == WORKERS)
            os.kill(_worker_pids(log)[1], signal.SIGTERM)  # as service managers may do
            for response in responses:
                await response.finished()
                assert response.terminated
        assert await process.wait() == 0
        await until(lambda: any('"stopped"' in each for each in log))
        assert not any("polls ended before their deadline" in each for each in log)


async def test_workers_without_their_supervisor_end_as_well(
    start_daemon: StartDaemon, config: Configure
) -> None:
    daemon = await start_daemon(config(server={"internal_listen": "127.0.0.1:0"}))
    workers = pids(daemon).values()
    async with polls(daemon, streaming=False) as responses:
        await until_sample(daemon, "parked_polls", MANY)
        daemon.signal(signal.SIGKILL)
        await until(lambda: len(logged(daemon, "draining")) == WORKERS)
        # A new daemon need not wait for them.
        listen = {
            "listen": daemon.url.removeprefix("http://"),
            "internal_listen": daemon.internal_url.removeprefix("http://"),
        }
        successor = await start_daemon(config(server=listen))
        assert not any(each.over for each in responses)
        await publish(successor, data="late")
        for response in responses:
            await response.finished()
            assert b'"late"' in response.body
    await until(lambda: not any(map(is_running, workers)))
    assert await daemon.ended() == -signal.SIGKILL


async def test_nothing_is_left_behind(start_daemon: StartDaemon, config: Configure) -> None:
    with tempfile.TemporaryDirectory() as name:
        # As systemd gives a service a folder of its own.
        parent, env = Path(name), {"RUNTIME_DIRECTORY": f"{name}:/no/such/folder"}
        daemon = await start_daemon(config(), env=env)
        [folder] = content(parent)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert await daemon.stop() == 0
        assert not content(parent)
        daemon = await start_daemon(config(), env=env)
        assert await daemon.kill() == -signal.SIGKILL
        await until(lambda: not content(parent))


# -- a daemon whose process group, environment and output are ours


@asynccontextmanager
async def _process(
    folder: Path,
    store: dict[str, Any],
    *,
    passed: socket.socket | None = None,
    api_key: str | None = "x",
    interval: float = 25.0,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """Start a daemon with several workers; its log goes on being read."""
    settings = {
        "SERVER__LISTEN": "127.0.0.1:0" if passed is None else f"fd:{passed.fileno()}",
        "SERVER__WORKERS": str(WORKERS),
        "BACKEND__KIND": store["kind"],
        "BACKEND__REDIS__URL": store["redis"]["url"],
        "LOG__FORMAT": "json",
        "POLL__LONG_POLLING_INTERVAL": str(interval),
    }
    if api_key is not None:
        settings["API__KEY"] = api_key
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "messagebusd",
        "serve",
        cwd=folder,
        env={**os.environ, **{f"MESSAGEBUSD_{name}": value for name, value in settings.items()}},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=() if passed is None else (passed.fileno(),),
        start_new_session=True,
    )
    assert process.stderr is not None
    log: list[str] = []
    reading = asyncio.create_task(_collect(process.stderr, log))
    try:
        await until(
            lambda: process.returncode is not None or any('"ready"' in each for each in log)
        )
        assert process.returncode is None, log
        yield process, log
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await reading


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while raw := await stream.readline():
        lines.append(raw.decode())


def _worker_pids(log: list[str]) -> dict[int, int]:
    lines = [json.loads(each) for each in log if '"worker ready"' in each]
    return {each["worker"]: each["pid"] for each in lines}
