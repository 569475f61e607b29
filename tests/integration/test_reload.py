"""Settings that are read again while the daemon serves (SPEC 8): all or nothing, at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from messagebusd import server
from tests.conftest import StartDaemon
from tests.support.admin import AdminPage
from tests.support.daemon import ApiError, Daemon
from tests.support.host_application import application, config
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response, encode_request
from tests.support.redis_server import RedisServer

FORUM = {"name": "forum", "token": "of-the-forum", "scopes": ["publish", "read", "admin"]}


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[HostedDaemon]:
    async with HostedDaemon(tmp_path, {"api": {"keys": [FORUM]}}) as daemon:
        yield daemon


async def poll(daemon: Daemon, body: Any = None, *headers: tuple[str, str]) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        request = encode_request(
            "POST",
            "/message-bus/me/poll?dlp=t",
            headers=[("Content-Type", "application/json"), *headers],
            body=json.dumps(body or {"/a": 0}).encode(),
        )
        return await connection.request(request)


def told(response: Response) -> list[Any]:
    assert response.status == 200, response.body
    return [each["data"] for each in json.loads(response.body)]


async def asks(daemon: Daemon, key: str, call: str = "stats") -> int:
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{daemon.internal_url}/api/v1/{call}") as answer,
    ):
        return answer.status


async def sample(daemon: Daemon, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(daemon.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    [value] = [each.rpartition(" ")[2] for each in lines if each.startswith(f"messagebusd_{name} ")]
    return float(value)


# -- what changes at once


async def test_keys_come_and_go(daemon: HostedDaemon) -> None:
    new = {**FORUM, "name": "new", "token": "of-another"}
    assert await daemon.reload({"api": {"keys": [new]}})
    assert await asks(daemon, "of-the-forum") == 401
    assert await asks(daemon, "of-another") == 200
    await daemon.publish("/a", 1)  # with the key that stays


async def test_what_follows_with_a_key_that_is_taken_away_ends(daemon: HostedDaemon) -> None:
    headers = {"Authorization": "Bearer of-the-forum"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{daemon.url}/api/v1/subscribe", params={"channel": "/a"}) as leaving,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {daemon.key}"}) as other,
        other.get(f"{daemon.url}/api/v1/subscribe", params={"channel": "/a"}) as staying,
    ):
        for each in (leaving, staying):
            assert await each.content.readline() == b"\n"
        assert await daemon.reload({})
        ending = json.loads(await leaving.content.readline())
        assert ending["end"]["code"] == "unauthorized"
        assert await leaving.content.readline() == b""
        await daemon.publish("/a", 1)
        assert json.loads(await staying.content.readline())["data"] == 1


async def test_who_is_logged_in_with_a_key_that_is_taken_away_is_no_longer(
    daemon: HostedDaemon,
) -> None:
    async with AdminPage(daemon.url) as page:
        assert (await page.log_in("of-the-forum")).status == 200
        assert await daemon.reload({"api": {"keys": [FORUM]}, "poll": {"max_body": 777}})
        # what is shown is what is in force, and where it stands
        rows = (await page.get("api/settings")).json["settings"]
        [row] = [each for each in rows if each["key"] == "poll.max_body"]
        assert row["value"] == "777"
        assert "bus.toml:" in row["source"]
        assert await daemon.reload({})
        assert (await page.get("api/settings")).status == 401


async def test_rules_and_limits(daemon: HostedDaemon) -> None:
    await daemon.publish("/a", 1)
    await daemon.publish("/b", 2)
    rules = {
        "channels": [{"pattern": "/a", "subscribe": "none", "require_audience": True}],
        "filters": [{"channel_prefix": "/b", "allow": "message.data != 2"}],
        "cors": {"allow_origins": ["https://forum.example"]},
        "poll": {"max_channels": 2, "extra_response_headers": {"X-Extra": "e"}},
    }
    async with await RawConnection.open(daemon.url) as connection:
        stream = connection.send(
            encode_request(
                "POST",
                "/message-bus/parked/poll",
                headers=[("Content-Type", "application/json")],
                body=b'{"/a": 1, "/b": 1}',
            )
        )
        await stream.chunk_count(1)
        assert await daemon.reload(rules)
        assert not stream.over  # it goes on as it began
        await daemon.publish("/b", 3)
        await stream.chunk_count(2)
        await daemon.publish("/b", 2)  # but filters are asked at delivery
        await daemon.publish("/b", 4)
        await stream.chunk_count(3)
        assert [b'"data":%d' % n in stream.body for n in (2, 3, 4)] == [False, True, True]
    answer = await poll(daemon, {"/a": 0, "/b": 0}, ("Origin", "https://forum.example"))
    assert [each for each in told(answer) if type(each) is int] == [3, 4]
    assert answer.values("access-control-allow-origin") == ["https://forum.example"]
    assert answer.values("x-extra") == ["e"]
    assert (await poll(daemon, dict.fromkeys(("/a", "/b", "/c"), 0))).status == 400
    with pytest.raises(ApiError, match="audience_required"):
        await daemon.publish("/a", 1)
    assert await daemon.reload({})
    assert told(await poll(daemon, {"/a": 0})) == [1]


async def test_a_publisher_that_keeps_its_connection_meets_the_new_rules(
    daemon: HostedDaemon,
) -> None:
    request = encode_request(
        "POST",
        "/api/v1/publish",
        headers=[("Authorization", "Bearer of-the-forum"), ("Content-Type", "application/json")],
        body=b'{"channel": "/a", "data": 1}',
    )
    rules = {"channels": [{"pattern": "/a", "require_audience": True}]}
    async with await RawConnection.open(daemon.url) as connection:
        for _ in range(2):
            assert (await connection.request(request)).status == 200
        assert await daemon.reload({"api": {"keys": [FORUM]}, **rules})
        assert (await connection.request(request)).status == 422
        assert await daemon.reload(rules)
        assert (await connection.request(request)).status == 401


async def test_nobody_gets_a_fresh_allowance(tmp_path: Path) -> None:
    settings = {"poll": {"client_rate": "3/h"}, "api": {"key_rate": "3/h"}}
    async with HostedDaemon(tmp_path, settings) as daemon:
        for _ in range(3):
            assert (await poll(daemon)).status == 200
        for _ in range(3):
            await daemon.publish("/b", 1)
        for _ in range(2):
            assert await daemon.reload({**settings, "log": {"level": "warning"}})
            assert (await poll(daemon)).status == 429
            with pytest.raises(ApiError, match="rate_limited"):
                await daemon.publish("/b", 1)


async def test_what_the_application_said_is_kept_until_it_is_asked_otherwise(
    tmp_path: Path,
) -> None:
    asked = []

    def answer(request: Any) -> Any:
        asked.append(request.headers)
        return {"user_id": 7}

    async with application(answer) as url, HostedDaemon(tmp_path, config(url)) as daemon:
        await daemon.publish("/a", "for 7", user_ids=[7])
        assert told(await poll(daemon)) == ["for 7"]
        assert await daemon.reload({**config(url), "log": {"level": "warning"}})
        assert told(await poll(daemon)) == ["for 7"]
        assert len(asked) == 1
        assert await daemon.reload(config(url, cache_ttl=7.0))
        assert told(await poll(daemon)) == ["for 7"]
        assert len(asked) == 2
        # forgetting reaches the one that is asked now
        await daemon.api("POST", "lookups/invalidate", {"all": True})
        assert told(await poll(daemon)) == ["for 7"]
        assert len(asked) == 3
        assert await daemon.reload({})
        assert told(await poll(daemon)) == [{"/a": 1}]


async def test_a_poll_that_waits_for_the_application_is_answered_by_what_it_met(
    tmp_path: Path,
) -> None:
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Any) -> Any:
        waits.set()
        await goes_on.wait()
        return {"user_id": 7}

    async with application(answer) as url, HostedDaemon(tmp_path, config(url)) as daemon:
        await daemon.publish("/a", "for 7", user_ids=[7])
        polling = asyncio.create_task(poll(daemon))
        await waits.wait()
        assert await daemon.reload({"channels": [{"pattern": "/a", "subscribe": "none"}]})
        goes_on.set()
        assert told(await polling) == ["for 7"]
        assert told(await poll(daemon)) == []


async def test_a_poll_whose_body_comes_slowly_is_answered_by_what_it_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RETIREMENT_SECONDS", 0.05)
    user_ids = [7, 8, 8]

    def answer(request: Any) -> Any:
        return {"user_id": user_ids.pop(0)}

    async with application(answer) as url, HostedDaemon(tmp_path, config(url)) as daemon:
        for each in user_ids[:2]:
            await daemon.publish("/a", f"for {each}", user_ids=[each])
        assert told(await poll(daemon)) == ["for 7", {"/a": 2}]
        slow = encode_request(
            "POST",
            "/message-bus/me/poll?dlp=t",
            headers=[("Content-Type", "application/json")],
            body=b'{"/a": 0}',
        )
        async with await RawConnection.open(daemon.url) as connection:
            answering = connection.send(slow[:-1])
            await asyncio.sleep(0.4)  # its head has been read
            assert await daemon.reload(config(url, cache_ttl=7.0))
            await asyncio.sleep(0.2)
            # Who it was before has logged out meanwhile.
            await daemon.api("POST", "lookups/invalidate", {"user_id": 7})
            connection.send_more(slow[-1:])
            assert told(await answering.finished()) == ["for 8", {"/a": 2}]


async def test_an_application_that_is_asked_no_longer_is_not_said_to_be_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "RETIREMENT_SECONDS", 0.5)
    asked, goes_on = asyncio.Semaphore(0), asyncio.Event()

    async def fail(request: Any) -> Any:
        asked.release()
        await goes_on.wait()
        raise aiohttp.web.HTTPBadGateway

    def with_application(url: str) -> Any:
        return {**config(url), "poll": {"body_timeout": 0.5}}

    async with (
        application(fail) as broken,
        application(lambda request: {"user_id": 7}) as url,
        HostedDaemon(tmp_path, with_application(broken)) as daemon,
    ):
        polls = [asyncio.create_task(poll(daemon, None, ("Cookie", f"_t={n}"))) for n in range(10)]
        for _ in polls:
            await asked.acquire()
        assert await daemon.reload(with_application(url))
        goes_on.set()
        assert {each.status for each in await asyncio.gather(*polls)} == {429}
        assert await sample(daemon, "lookup_paused") == 1
        async with asyncio.timeout(10):
            while await sample(daemon, "lookup_paused"):
                await asyncio.sleep(0.05)


# -- nothing changes


async def test_settings_with_a_mistake_change_nothing(daemon: HostedDaemon) -> None:
    for wrong in (
        {"poll": {"max_channels": 0}},
        {"filters": [{"channel_prefix": "/", "callable": "no.such.module:f"}]},
        {"lookup": {"mode": "jwt", "jwt": {"public_key": "no key at all"}}},
        {"api": {"keys": [FORUM, {**FORUM, "name": "b"}]}},
    ):
        settings = {"poll": {"max_body": 2}, "cors": {"allow_origins": ["*"]}, **wrong}
        assert not await daemon.reload(settings)
        answer = await poll(daemon, None, ("Origin", "https://forum.example"))
        assert answer.status == 200
        assert answer.values("access-control-allow-origin") == []
        assert await asks(daemon, "of-the-forum") == 200
    assert await daemon.reload({"cors": {"allow_origins": ["*"]}})


async def test_the_last_key_stays(tmp_path: Path) -> None:
    async with HostedDaemon(tmp_path) as daemon:
        daemon.configure({})
        daemon._config["api"] = {"enabled": True}
        path = daemon.folder / "bus.toml"
        text = path.read_text()
        path.write_text("\n".join(each for each in text.splitlines() if '"key"' not in each))
        assert await daemon._reloader.reload() == "refused"
        await daemon.publish("/a", 1)


# -- by signal


async def test_a_signal_has_the_settings_read(start_daemon: StartDaemon, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        heard: list[str] = []

        async def listen() -> None:
            while True:
                line = await asyncio.get_running_loop().sock_recv(manager, 1000)
                heard.append(line.decode().partition("\n")[0])

        listening = asyncio.create_task(listen())
        daemon = await start_daemon(
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "40000"}
        )
        read_at = await sample(daemon, "config_last_reload_success_timestamp_seconds")
        assert await daemon.reload({"poll": {"max_channels": 1}, "log": {"level": "debug"}})
        assert (await poll(daemon, {"/a": 0, "/b": 0})).status == 400
        assert not await daemon.reload({"poll": {"max_channels": "hush"}})
        [problem] = [each["problem"] for each in daemon.log if "problem" in each]
        assert "poll.max_channels" in problem
        assert (await poll(daemon, {"/a": 0, "/b": 0})).status == 400
        for outcome in ("done", "refused"):
            assert await sample(daemon, f'config_reloads_total{{outcome="{outcome}"}}') == 1
        later = await sample(daemon, "config_last_reload_success_timestamp_seconds")
        assert later > read_at
        assert await daemon.stop() == 0
        listening.cancel()
    assert heard.count("WATCHDOG=1") > 1
    states = [each for each in heard if each != "WATCHDOG=1"]
    assert states == ["READY=1", *(["RELOADING=1", "READY=1"] * 2), "STOPPING=1"]


async def test_a_signal_that_comes_during_the_start_is_acted_on_after_it(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "early.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "def allow(message, client): return True\n"
    )
    filters = [{"channel_prefix": "/", "callable": "early:allow"}]
    daemon = await start_daemon({"filters": filters}, env={"PYTHONPATH": str(tmp_path)})
    async with asyncio.timeout(10):
        while all(each["message"] != "settings reloaded" for each in daemon.log):
            await asyncio.sleep(0.02)
    await daemon.publish("/a", 1)
    assert told(await poll(daemon)) == [1]
    assert await daemon.stop() == 0


async def test_settings_that_are_never_read_keep_nobody_from_stopping(
    start_daemon: StartDaemon,
) -> None:
    daemon = await start_daemon()
    path = daemon.folder / "bus.toml"
    path.unlink()
    os.mkfifo(path)  # as a file on a machine that has gone
    daemon.signal(signal.SIGHUP)
    await asyncio.sleep(0.5)
    await daemon.publish("/a", 1)
    assert await daemon.stop(within=5) == 0


async def test_all_workers_change_or_none(
    start_daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_server.flush()
    folder = tmp_path / "modules"
    folder.mkdir()
    # A filter that only the first worker to load it can have.
    (folder / "capricious.py").write_text(
        "import os\n"
        f"os.close(os.open({str(folder / 'taken')!r}, os.O_CREAT | os.O_EXCL))\n"
        "def allow(message, client): return True\n"
    )
    base = {
        "server": {"workers": 2},
        "backend": {"kind": "redis", "redis": {"url": redis_server.url}},
    }
    daemon = await start_daemon(base, env={"PYTHONPATH": str(folder)})

    async def statuses() -> set[int]:
        """What both workers say: each of these is a new connection."""
        answers = [await poll(daemon, {"/a": 0, "/b": 0}) for _ in range(16)]
        return {each.status for each in answers}

    one_channel = {**base, "poll": {"max_channels": 1, "client_rate": "0"}}
    filters = [{"channel_prefix": "/", "callable": "capricious:allow"}]
    assert not await daemon.reload({**one_channel, "filters": filters})
    assert await statuses() == {200}
    assert any("capricious" in each.get("problem", "") for each in daemon.log)
    assert await daemon.reload(one_channel)
    assert await statuses() == {400}
    # Whoever takes the place of one that dies begins with the same.
    ready = [each["pid"] for each in daemon.log if each["message"] == "worker ready"]
    os.kill(ready[0], signal.SIGKILL)
    async with asyncio.timeout(30):
        while sum(each["message"] == "worker ready" for each in daemon.log) < 3:
            await asyncio.sleep(0.02)
    assert await statuses() == {400}
    for outcome in ("done", "refused"):
        assert await sample(daemon, f'config_reloads_total{{outcome="{outcome}"}}') == 1
    assert await daemon.stop() == 0


async def test_a_worker_that_cannot_change_is_replaced_on_the_same_sockets(
    start_daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_server.flush()
    # A filter with which the first worker that loads it breaks.
    (tmp_path / "breaking.py").write_text(
        "import os\n"
        "from messagebusd.server import Server\n"
        "def allow(message, client): return True\n"
        "try:\n"
        f"    os.close(os.open({str(tmp_path / 'taken')!r}, os.O_CREAT | os.O_EXCL))\n"
        "    Server.adopt = lambda self: 1 / 0\n"
        "except FileExistsError:\n"
        "    pass\n"
    )
    base = {
        "server": {"workers": 2},
        "backend": {"kind": "redis", "redis": {"url": redis_server.url}},
    }
    daemon = await start_daemon(base, env={"PYTHONPATH": str(tmp_path)})
    async with await RawConnection.open(daemon.url) as connection:
        connection.send(encode_request("POST", "/message-bus/me/poll", body=b"/a=0"))
        await asyncio.sleep(0.5)  # parked, at one of the two
        filters = [{"channel_prefix": "/", "callable": "breaking:allow"}]
        assert await daemon.reload({**base, "filters": filters})
        async with asyncio.timeout(10):
            while sum(each["message"] == "worker ready" for each in daemon.log) < 3:
                await asyncio.sleep(0.02)
    for _ in range(32):  # both serve
        async with asyncio.timeout(0.9):  # a connection that is ignored is tried again after 1 s
            assert (await poll(daemon)).status == 200


async def test_workers_are_not_said_to_be_ready_by_a_reload_before_they_are(
    start_daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_server.flush()
    # While the workers begin, somebody makes a mistake in the settings and has them read.
    (tmp_path / "early.py").write_text(
        "import os, signal, time\n"
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'daemon-1' / 'bus.toml')!r}).write_text('nonsense')\n"
        "os.kill(os.getppid(), signal.SIGHUP)\n"
        "time.sleep(0.5)\n"
        "def allow(message, client): return True\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        daemon = await start_daemon(
            {
                "server": {"workers": 2},
                "backend": {"kind": "redis", "redis": {"url": redis_server.url}},
                "filters": [{"channel_prefix": "/", "callable": "early:allow"}],
            },
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": str(tmp_path)},
        )
        heard = [(await asyncio.to_thread(manager.recv, 1000)).split(b"\n")[0] for _ in range(3)]
        assert heard == [b"READY=1", b"RELOADING=1", b"READY=1"]
        assert await daemon.stop() == 0
