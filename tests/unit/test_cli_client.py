"""Commands that talk to a daemon, against a small server that answers as told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from messagebusd.cli import main
from messagebusd.cli.tail import delay

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    key: str | None


@dataclass
class FakeApi:
    """Gives its answers in turn, the last one for ever, and keeps what it was asked."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.asked.append(
            Asked(
                request.method,
                request.path,
                dict(request.query),
                json.loads(text) if text else None,
                request.headers.get("Authorization"),
            )
        )
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)

    def says(self, *answers: Any, status: int = 200, **headers: str) -> None:
        self.answers += [_json_answer(answer, status, headers) for answer in answers]

    def refuses(self, status: int, code: str, detail: str, **headers: str) -> None:
        self.says({"status": status, "code": code, "detail": detail}, status=status, **headers)

    def streams(self, *lines: bytes, then_waits: bool = False) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            for line in lines:
                await response.write(line)
            if then_waits:
                await asyncio.sleep(60)
            return response

        self.answers.append(answer)


def _json_answer(content: Any, status: int, headers: dict[str, str]) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=names)

    return answer


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """The server, in a thread of its own: commands bring their own event loop."""
    fake, started, loop = FakeApi(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> web.AppRunner:
        app = web.Application(client_max_size=10**7)
        app.router.add_route("*", "/{tail:.*}", fake.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def work() -> None:
        runner = loop.run_until_complete(serve())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    yield fake
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture
def run(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command against the fake, with a key."""
    monkeypatch.setenv("MESSAGEBUSD_URL", api.url)
    monkeypatch.setenv("MESSAGEBUSD_KEY", "hush")

    def invoke(*arguments: str, **options: Any) -> Result:
        result = CliRunner().invoke(main, arguments, **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


Run = Callable[..., Result]


# -- publish


def test_publish(api: FakeApi, run: Run) -> None:
    api.says({"channel": "/news", "message_id": 1, "global_id": 2})
    result = run("publish", "/news", '"hello"')
    assert result.exit_code == 0
    assert json.loads(result.output) == {"channel": "/news", "message_id": 1, "global_id": 2}
    [asked] = api.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/publish")
    assert asked.body == {"channel": "/news", "data": "hello"}
    assert asked.key == "Bearer hush"


def test_publish_with_everything(api: FakeApi, run: Run) -> None:
    api.says({})
    arguments = ["publish", "/news", "{}", "--user", "7", "--user", "-1", "--user", "007"]
    arguments += ["--user", "anna", "--group", "0", "--group", "7.0", "--client", "12"]
    arguments += ["--site", "forum", "--max-backlog-size", "3", "--max-backlog-age", "60"]
    assert run(*arguments).exit_code == 0
    assert api.asked[0].body == {
        "channel": "/news",
        "data": {},
        "user_ids": [7, -1, "007", "anna"],
        "group_ids": [0, "7.0"],
        "client_ids": ["12"],
        "site_id": "forum",
        "max_backlog_size": 3,
        "max_backlog_age": 60,
    }


def test_publish_reads_stdin(api: FakeApi, run: Run) -> None:
    api.says({})
    assert run("publish", "/news", "-", input='{"a":\n [1]}\n').exit_code == 0
    assert api.asked[0].body["data"] == {"a": [1]}


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "1.0", "1e-7", "-0.0"])
def test_publish_sends_numbers_as_they_are(api: FakeApi, run: Run, number: str) -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(await request.text())
        return web.json_response({})

    api.answers.append(answer)
    run("publish", "/news", "--", number)
    assert f'"data":{number}' in seen[0]


@pytest.mark.parametrize("text", ["hello", "", "{", "NaN", "'a'", "1 2"])
def test_publish_wants_json(api: FakeApi, run: Run, text: str) -> None:
    result = run("publish", "/news", text)
    assert result.exit_code == 2
    assert "is not JSON" in result.stderr
    assert ("Text needs quotes" in result.stderr) == (text not in ("", "{"))
    assert api.asked == []


# -- backlog, last-id, channels, clients


def message(number: int, channel: str = "/news", **more: Any) -> dict[str, Any]:
    return {"global_id": number + 100, "message_id": number, "channel": channel, **more}


def test_backlog(api: FakeApi, run: Run) -> None:
    api.says(b'{"messages":[{"message_id":1,"data":1.0},{"message_id":2}],"more":false}')
    result = run("backlog", "/news", "--site", "forum")
    assert result.output == '{"message_id":1,"data":1.0}\n{"message_id":2}\n'
    assert api.asked[0].path == "/api/v1/backlog"
    assert api.asked[0].query == {
        "channel": "/news",
        "last_id": "0",
        "limit": "1000",
        "site_id": "forum",
    }


def test_backlog_reads_all_pages(api: FakeApi, run: Run) -> None:
    api.says(
        {"messages": [message(4), message(6)], "more": True},
        {"messages": [message(7)], "more": False},
    )
    result = run("backlog", "/news", "--last-id", "3")
    assert [json.loads(line)["message_id"] for line in result.output.splitlines()] == [4, 6, 7]
    assert [asked.query["last_id"] for asked in api.asked] == ["3", "6"]


def test_backlog_stops_at_the_limit(api: FakeApi, run: Run) -> None:
    api.says(
        {"messages": [message(1), message(2)], "more": True},
        {"messages": [message(3)], "more": True},
    )
    result = run("backlog", "/news", "--limit", "3")
    assert len(result.output.splitlines()) == 3
    assert [asked.query["limit"] for asked in api.asked] == ["3", "1"]


def test_backlog_asks_for_no_more_than_the_api_gives(api: FakeApi, run: Run) -> None:
    api.says({"messages": [message(1)], "more": False})
    run("backlog", "/news", "--limit", "5000")
    assert api.asked[0].query["limit"] == "1000"


def test_backlog_of_nothing(api: FakeApi, run: Run) -> None:
    api.says({"messages": [], "more": True})
    result = run("backlog", "/news")
    assert (result.exit_code, result.output) == (0, "")


def test_last_id(api: FakeApi, run: Run) -> None:
    api.says({"last_ids": {"/b": 0, "/news": 12}})
    assert run("last-id", "/news", "/b", "--site", "forum").output == "/news  12\n/b     0\n"
    assert api.asked[0].path == "/api/v1/last_ids"
    assert api.asked[0].body == {"channels": ["/news", "/b"], "site_id": "forum"}


def test_channels(api: FakeApi, run: Run) -> None:
    def channel(name: str, site: str | None) -> dict[str, Any]:
        numbers = {"last_id": 12, "backlog_size": 3, "backlog_bytes": 400, "subscribers": 5}
        return {"channel": name, "site_id": site, **numbers}

    api.says(
        {"channels": [channel("/news", "forum")], "next": "/news"},
        {"channels": [channel("/evil\x1b[2J", None)], "next": None},
    )
    result = run("channels")
    assert result.output.splitlines() == [
        "CHANNEL    SITE ID  LAST ID  BACKLOG SIZE  BACKLOG BYTES  SUBSCRIBERS",
        "/news      forum    12       3             400            5",
        "/evil�[2J  -        12       3             400            5",
    ]
    assert [asked.query for asked in api.asked] == [
        {"limit": "1000"},
        {"limit": "1000", "after": "/news"},
    ]


def test_clients(api: FakeApi, run: Run) -> None:
    client = {"client_id": "3314…", "user_id": 42, "site_id": None, "mode": "stream"}
    api.says({"clients": [{**client, "channels": 3, "age": 12.34}], "next": None})
    assert run("clients").output.splitlines() == [
        "CLIENT ID  USER ID  SITE ID  MODE    CHANNELS  AGE",
        "3314…      42       -        stream  3         12",
    ]


@pytest.mark.parametrize(("user_id", "shown"), [("42", '"42"'), ("ada", "ada"), (None, "-")])
def test_a_client_whose_id_is_text(api: FakeApi, run: Run, user_id: str | None, shown: str) -> None:
    client = {"client_id": "c", "user_id": user_id, "site_id": None, "mode": "stream"}
    api.says({"clients": [{**client, "channels": 3, "age": 12.34}], "next": None})
    assert run("clients").output.splitlines()[1].split()[1] == shown


def test_an_empty_list_has_a_head(api: FakeApi, run: Run) -> None:
    api.says({"clients": [], "next": None})
    assert run("clients").output.startswith("CLIENT ID")


# -- the address, the key, refusals


def test_refusals_are_shown_with_their_code(api: FakeApi, run: Run) -> None:
    api.refuses(422, "reserved_channel", "the channel /__status is\nreserved\x1b[2J")
    result = run("publish", "/__status", "1")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: the channel /__status is�reserved�[2J (reserved_channel)\n"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'{"detail": "x"}', b"\xff"])
def test_answers_from_something_else(api: FakeApi, run: Run, body: bytes) -> None:
    api.says(body, status=502)
    result = run("last-id", "/news")
    assert result.exit_code == 1
    assert result.stderr == f"error: {api.url} answered 502 Bad Gateway\n"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"{}", b'{"last_ids": [1]}'])
def test_answers_that_are_not_understood(api: FakeApi, run: Run, body: bytes) -> None:
    api.says(body)
    result = run("last-id", "/news")
    assert result.exit_code == 1
    assert "is not understood" in result.stderr


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
def test_an_explanation_that_is_none(api: FakeApi, run: Run, body: bytes) -> None:
    api.says(body)
    result = run("explain", "--channel", "/news", "--message", "1", "--user", "7")
    assert result.exit_code == 1
    assert "is not understood" in result.stderr


def test_redirects_are_not_followed_with_the_key(api: FakeApi, run: Run) -> None:
    api.says(b"", status=302, Location="http://192.0.2.1/")
    result = run("last-id", "/news")
    assert result.stderr == f"error: {api.url} answered 302 Found\n"
    assert len(api.asked) == 1


def test_a_missing_key_is_explained(
    api: FakeApi, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.refuses(401, "unauthorized", "a key is needed")
    assert run("last-id", "/news").stderr == "error: a key is needed (unauthorized)\n"
    monkeypatch.delenv("MESSAGEBUSD_KEY")
    result = run("last-id", "/news")
    assert result.stderr.splitlines()[1:] == [
        "No key was sent: set MESSAGEBUSD_KEY, or use --key-file."
    ]
    assert [asked.key for asked in api.asked] == ["Bearer hush", None]


def test_asking_the_public_listener_is_explained(api: FakeApi, run: Run) -> None:
    api.refuses(404, "not_found", "there is nothing at this path")
    result = run("last-id", "/news")
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == "error: there is nothing at this path (not_found)"
    assert hint.startswith(f"Is {api.url} the public listener? ")
    assert "server.internal_listen" in hint


def test_the_key_can_be_in_a_file(api: FakeApi, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    api.says({"last_ids": {"/news": 1}})
    assert run("last-id", "/news", "--key-file", str(file)).exit_code == 0
    assert api.asked[0].key == "Bearer from-file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b"\xff", "cannot be read: it is not text"),
        (b"hush hush", "does not hold a key"),
    ],
)
def test_key_files_that_hold_no_key(
    api: FakeApi, run: Run, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    result = run("last-id", "/news", "--key-file", str(file))
    assert result.exit_code == 1
    assert f"error: {file} {reason}" in result.stderr
    assert "hush" not in result.stderr


def test_nobody_listens(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = run("last-id", "/news", "--url", url)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot connect to {url}: Connection refused\n")
    assert "--url or MESSAGEBUSD_URL" in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8090",
        "ftp://a",
        "http://",
        "http://a:x",
        "unix:/a",
        "http://a?key=hush",
        "http://[a",
        "http://anna:hush@forum.example",
    ],
)
def test_wrong_urls(run: Run, url: str) -> None:
    result = run("last-id", "/news", "--url", url)
    assert result.exit_code == 2
    assert "hush" not in result.stderr


def test_a_path_in_the_url_is_kept(api: FakeApi, run: Run) -> None:
    api.says({"last_ids": {"/news": 1}})
    run("last-id", "/news", "--url", f"{api.url}/bus/")
    assert api.asked[0].path == "/bus/api/v1/last_ids"


# -- tail


def line(number: int, channel: str = "/news", data: Any = None) -> bytes:
    return json.dumps(message(number, channel, data=data)).encode() + b"\n"


@pytest.fixture
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagebusd.cli.tail.delay", lambda attempt: 0.0)


def status(global_id: int = -1, **channels: int) -> bytes:
    positions = {f"/{name}": last_id for name, last_id in channels.items()}
    content = {"global_id": global_id, "message_id": -1, "channel": "/__status", "data": positions}
    return json.dumps(content).encode() + b"\n"


@pytest.mark.usefixtures("_no_delay")
def test_tail_resumes_each_channel(api: FakeApi, run: Run) -> None:
    first = line(5) + line(6)
    api.streams(b"\n", status(news=4, chat=0))
    api.streams(first[:20], first[20:], b"\n", line(9, "/chat"))
    api.refuses(429, "rate_limited", "later")
    api.streams(line(7), b'{"end": {"code": "draining", "detail": "the daemon is\\nstopping"}}\n')
    api.streams(b'{"global_id": 1')
    api.refuses(401, "unauthorized", "the key has ended")
    result = run("tail", "/news", "/chat", "--site", "forum")
    assert result.exit_code == 1
    assert result.stdout.encode() == first + line(9, "/chat") + line(7)
    assert [asked.body["channels"] for asked in api.asked] == [
        {"/news": -1, "/chat": -1},
        {"/news": 4, "/chat": 0},
        {"/news": 6, "/chat": 9},
        {"/news": 6, "/chat": 9},
        {"/news": 7, "/chat": 9},
        {"/news": 7, "/chat": 9},
    ]
    assert {asked.body["site_id"] for asked in api.asked} == {"forum"}
    assert result.stderr.splitlines() == [
        f"{api.url} ended the stream; reconnecting in 0.0 seconds",
        f"{api.url} ended the stream; reconnecting in 0.0 seconds",
        "later (rate_limited); reconnecting in 0.0 seconds",
        "the daemon is�stopping; reconnecting in 0.0 seconds",
        f"{api.url} ended the stream; reconnecting in 0.0 seconds",
        "error: the key has ended (unauthorized)",
    ]


@pytest.mark.usefixtures("_no_delay")
def test_tail_of_all_channels_resumes_by_global_id(api: FakeApi, run: Run) -> None:
    api.streams(status(global_id=100))
    api.streams(line(1), line(2, "/chat"))
    api.refuses(403, "forbidden", "no")
    result = run("tail")
    assert len(result.stdout.splitlines()) == 2
    assert [(asked.method, asked.query) for asked in api.asked] == [
        ("GET", {"last_id": "-1"}),
        ("GET", {"last_id": "100"}),
        ("GET", {"last_id": "102"}),
    ]


@pytest.mark.usefixtures("_no_delay")
def test_tail_begins_where_it_is_told(api: FakeApi, run: Run) -> None:
    api.refuses(403, "forbidden", "no")
    run("tail", "/news", "--last-id", "-11")
    run("tail", "--last-id", "0", "--site", "forum")
    assert api.asked[0].body == {"channels": {"/news": -11}}
    assert api.asked[1].query == {"last_id": "0", "site_id": "forum"}


@pytest.mark.usefixtures("_no_delay")
def test_tail_follows_the_status_and_does_not_print_it(api: FakeApi, run: Run) -> None:
    api.streams(status(news=3))
    api.refuses(403, "forbidden", "no")
    assert run("tail", "/news", "--last-id", "900").stdout == ""
    assert api.asked[1].body == {"channels": {"/news": 3}}


def test_tail_prints_large_messages(api: FakeApi, run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr("messagebusd.cli.tail.delay", lambda attempt: 0.0)
    large = line(1, data="x" * 3_000_000)
    api.streams(large)
    api.refuses(403, "forbidden", "no")
    assert run("tail", "/news", "--last-id", "0").stdout.encode() == large


def test_tail_does_not_wait_for_a_daemon_that_never_was_there(api: FakeApi, run: Run) -> None:
    api.refuses(503, "store_unavailable", "not now")
    result = run("tail")
    assert result.exit_code == 1
    assert result.stderr == "error: not now (store_unavailable)\n"


def test_tail_of_something_else(api: FakeApi, run: Run) -> None:
    api.streams(b"<html>\n")
    result = run("tail")
    assert result.exit_code == 1
    assert "is not understood" in result.stderr


@pytest.mark.parametrize(
    ("works_for_a_while", "expected"), [(False, [0.0, 7.0, 2.0, 3.0]), (True, [0.0, 7.0, 0.0, 0.0])]
)
def test_tail_waits_longer_each_time_or_as_it_is_told(
    api: FakeApi,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    works_for_a_while: bool,
    expected: list[float],
) -> None:
    if works_for_a_while:
        monkeypatch.setattr("messagebusd.cli.tail._MAX_DELAY_SECONDS", -1.0)
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("messagebusd.cli.tail.asyncio.sleep", sleep)
    monkeypatch.setattr("messagebusd.cli.tail.delay", float)
    api.streams()
    api.refuses(429, "rate_limited", "later", Retry_After="7")
    api.refuses(503, "store_unavailable", "later", Retry_After="soon")
    api.streams(line(1))
    api.refuses(403, "forbidden", "no")
    run("tail")
    assert waits == expected


def test_delays_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messagebusd.cli.tail.random.uniform", lambda low, high: high)
    assert [delay(attempt) for attempt in (0, 1, 2, 6, 1000)] == [0.5, 1.0, 2.0, 30.0, 30.0]


def start_tail(api: FakeApi, **options: Any) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "MESSAGEBUSD_URL": api.url}
    return subprocess.Popen(
        [sys.executable, "-m", "messagebusd", "tail"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_ctrl_c_ends_tail_quietly(api: FakeApi) -> None:
    api.streams(line(1), then_waits=True)
    with start_tail(api) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == line(1)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, rest, errors) == (0, b"", b"")


def test_tail_ends_quietly_when_nobody_reads(api: FakeApi) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(1000):
            await response.write(line(number))
            await asyncio.sleep(0.01)
        return response

    api.answers.append(answer)
    with start_tail(api) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == line(0)
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=10)
    assert (process.returncode, errors) == (0, b"")
