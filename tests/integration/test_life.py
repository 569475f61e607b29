"""Start, listeners, drain, restart: the daemon as an operator meets it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import StartDaemon
from tests.support.daemon import Daemon, DaemonError
from tests.support.rawhttp import RawConnection, Response, encode_request

JSON = [("Content-Type", "application/json")]


def poll(body: object = None, *, client: str = "c", headers: object = ()) -> bytes:
    return encode_request(
        "POST",
        f"/message-bus/{client}/poll",
        headers=[*JSON, *headers],
        body=json.dumps(body or {"/a": 0}).encode(),
    )


async def get(url: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url + path) as answer:
        return answer.status, await answer.text()


def told(response: Response) -> list[int]:
    arrays = response.body.split(b"\r\n|\r\n")
    return [each["message_id"] for array in arrays if array for each in json.loads(array)]


# -- listeners


async def test_two_listeners(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"server": {"internal_listen": "127.0.0.1:0"}})
    assert daemon.url != daemon.internal_url
    await daemon.publish("/a", 1)
    for path in ("/metrics", "/livez", "/readyz", "/api/v1/openapi.json"):
        assert (await get(daemon.internal_url, path))[0] == 200
        assert (await get(daemon.url, path))[0] == 404
    async with await RawConnection.open(daemon.internal_url) as connection:
        assert (await connection.request(poll())).status == 404


async def test_unix_sockets(start_daemon: StartDaemon, tmp_path: Path) -> None:
    path = tmp_path / "bus.sock"
    config = {"server": {"listen": f"unix:{path}", "internal_listen": "127.0.0.1:0"}}
    daemon = await start_daemon(config)
    await daemon.publish("/a", 1)
    async with await RawConnection.open(f"unix:{path}") as connection:
        response = connection.send(poll())
        await response.chunk_count(1)
        assert told(response) == [1]
    assert await daemon.stop() == 0
    # what a crash left behind is no obstacle, a living daemon is
    daemon = await start_daemon(config)
    await daemon.kill()
    assert path.is_socket()
    daemon = await start_daemon(config)
    with pytest.raises(DaemonError, match="in use"):
        await start_daemon(config)
    assert daemon.running


async def test_a_socket_that_was_passed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "messagebusd",
            "serve",
            env={
                "MESSAGEBUSD_SERVER__LISTEN": f"fd:{listener.fileno()}",
                "MESSAGEBUSD_API__KEY": "x",
            },
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b" ready " not in await process.stderr.readline():
                pass
        assert (await get(f"http://127.0.0.1:{port}", "/livez"))[0] == 200
        process.send_signal(signal.SIGTERM)
        await process.stderr.read()
        assert await process.wait() == 0


async def test_a_port_in_use(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    address = daemon.url.removeprefix("http://")
    with pytest.raises(
        DaemonError, match=r"(?s)exit code 1.*error: cannot listen on .*in use"
    ) as caught:
        await start_daemon({"server": {"listen": address}})
    assert "Traceback" not in str(caught.value)


async def test_a_port_in_use_is_all_that_is_told(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    address = daemon.url.removeprefix("http://")
    lookup = {"mode": "webhook", "webhook": {"url": f"{daemon.url}/who", "secret": "s" * 32}}
    with pytest.raises(DaemonError, match="cannot listen on") as caught:
        await start_daemon({"server": {"listen": address}, "lookup": lookup})
    assert "Unclosed" not in str(caught.value)


# -- keys


async def test_a_key_is_made_for_newcomers_and_stays_out_of_the_log(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "messagebusd",
        "serve",
        "--listen",
        "127.0.0.1:0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    introduction = b""
    async with asyncio.timeout(20):
        while b"/api/v1/publish" not in introduction:
            introduction += await process.stdout.readline()
    text = introduction.decode()
    key = re.search(r"MESSAGEBUSD_KEY=(mb_\S+)", text)
    assert key is not None
    url = re.search(r"listening on (http://\S+)", text)
    assert url is not None
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key[1]}"}) as session,
        session.post(url[1] + "/api/v1/publish", json={"channel": "/a", "data": 1}) as answer,
    ):
        assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    _, log = await process.communicate()
    assert process.returncode == 0
    assert key[1] not in log.decode()


# -- drain (SPEC 9)


async def test_draining_lets_polls_end_by_themselves(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(
        {
            "server": {"internal_listen": "127.0.0.1:0"},
            "poll": {"long_polling_interval": 2.0},
        }
    )
    async with (
        await RawConnection.open(daemon.url) as streaming,
        await RawConnection.open(daemon.url) as waiting,
        await RawConnection.open(daemon.url) as idle,
    ):
        stream = streaming.send(poll(client="s"))
        await stream.chunk_count(1)
        long_poll = waiting.send(poll(client="l", headers=[("Dont-Chunk", "1")]))
        await idle.request(poll({"/a": -1}, headers=[("Dont-Chunk", "1")]))
        await parked(daemon, 2)
        daemon.signal(signal.SIGTERM)
        await logged(daemon, "draining")
        # A connection that a proxy keeps is not cut off: its next request is answered, and says so.
        answer = await idle.request(poll(client="late"))
        assert answer.status == 200
        assert answer.values("connection") == ["close"]
        assert await idle.closed_by_peer()
        status, text = await get(daemon.internal_url, "/readyz")
        assert (status, json.loads(text)["checks"]["accepting"]) == (503, "draining")
        assert (await get(daemon.internal_url, "/livez"))[0] == 200
        # whoever publishes meanwhile is heard
        await daemon.publish("/a", "late")
        with pytest.raises(OSError):  # noqa: PT011 - refused, whatever the kernel calls it
            await RawConnection.open(daemon.url)
        await stream.finished()
        await long_poll.finished()
        assert told(stream) == [1]
        assert told(long_poll) == [1]
        assert stream.terminated
    assert await daemon.ended() == 0
    assert "polls ended before their deadline" not in daemon.output()


async def test_a_second_signal_ends_polls_with_their_last_frame(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(poll())
        await stream.chunk_count(1)
        await parked(daemon, 1)
        daemon.signal(signal.SIGTERM)
        await logged(daemon, "draining")
        assert not stream.over
        daemon.signal(signal.SIGTERM)
        await stream.finished()
        assert stream.terminated
        assert stream.chunks[-1].data == b"[]\r\n|\r\n"
    assert await daemon.ended() == 0


async def test_draining_ends_after_its_timeout(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"server": {"shutdown_timeout": 0.3}})
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(poll())
        await stream.chunk_count(1)
        daemon.signal(signal.SIGTERM)
        await stream.finished()
        assert stream.terminated
    assert await daemon.ended() == 0


async def test_nothing_is_lost_over_a_restart(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(
        {
            "backend": {"memory": {"snapshot_file": "bus.snapshot"}},
            "server": {"shutdown_timeout": 0.0},
        }
    )
    for number in range(5):
        await daemon.publish("/a", number)
    await daemon.restart()
    assert (await daemon.publish("/a", 5))["message_id"] == 6
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(poll({"/a": 3}))
        await stream.chunk_count(1)
        assert told(stream) == [4, 5, 6]


async def test_a_snapshot_that_cannot_be_written_is_said(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"backend": {"memory": {"snapshot_file": "bus.snapshot"}}})
    (daemon.folder / "bus.snapshot.new").mkdir()
    assert await daemon.stop() == 1
    assert "bus.snapshot cannot be written" in daemon.output()
    assert "Traceback" not in daemon.output()


# -- what operators look at


async def test_metrics_tell_what_happened(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    await daemon.publish("/a", 1)
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(poll({"/a": 0, "/b": []}))
        await stream.chunk_count(1)
        await parked(daemon, 1)
        await daemon.publish("/a", 2)
        await daemon.publish("/a", 3, user_ids=[1])
        await stream.chunk_count(2)
        _, text = await get(daemon.url, "/metrics")
    for sample in (
        'messagebusd_parked_polls{mode="stream"} 1.0',
        'messagebusd_publishes_total{door="http"} 3.0',
        "messagebusd_deliveries_total 1.0",
        "messagebusd_withheld_total 1.0",
        "messagebusd_ignored_keys_total 1.0",
        "messagebusd_delivery_seconds_count 1.0",
        "messagebusd_first_frame_seconds_count 1.0",
        'messagebusd_store_seconds_count{operation="publish"} 3.0',
    ):
        assert sample in text.splitlines()
    assert re.search(r"^messagebusd_backlog_bytes [1-9]", text, re.MULTILINE)


async def parked(daemon: Daemon, count: int) -> None:
    async with asyncio.timeout(10):
        while True:
            _, text = await get(daemon.internal_url, "/metrics")
            counts = re.findall(r"^messagebusd_parked_polls\{.*\} (\S+)$", text, re.MULTILINE)
            if sum(map(float, counts)) == count:
                return
            await asyncio.sleep(0.02)


async def logged(daemon: Daemon, message: str) -> None:
    async with asyncio.timeout(10):
        while not any(each["message"] == message for each in daemon.log):
            await asyncio.sleep(0.01)
