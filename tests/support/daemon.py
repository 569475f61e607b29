"""The real daemon, as a subprocess, for tests that look at it from outside.

::

    async with Daemon(tmp_path, {"poll": {"long_polling_interval": 2.0}}) as daemon:
        await daemon.publish("/foo", {"a": 1})
        ...
        assert await daemon.stop() == 0

Each has its own folder, free ports and its own API key, so that many can run side by side.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from datetime import date, datetime, time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

START_SECONDS = 30.0  # a loaded machine starts a dozen at once
STOP_SECONDS = 15.0
LOG_LINE_BYTES = 1 << 20

Config = Mapping[str, Any]


class DaemonError(Exception):
    """The daemon did not start, or did not stop, as it should."""


class ApiError(Exception):
    """The API refused a request; ``problem`` is its answer."""

    def __init__(self, status: int, problem: Any) -> None:
        super().__init__(f"{status}: {problem}")
        self.status = status
        self.problem = problem


class Daemon:
    """A messagebusd process with its configuration, addresses and logs.

    ``folder`` must exist and is the process' working directory; it keeps the configuration file
    and whatever relative paths the configuration names. With ``env`` variables are added to the
    process' environment, which is the caller's without its own ``MESSAGEBUSD_`` settings;
    ``python`` is where it is installed.
    """

    def __init__(
        self,
        folder: Path,
        config: Config | None = None,
        *,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self.folder = folder
        self._python = python
        self.key = secrets.token_urlsafe(24)
        self.addresses: dict[str, str] = {}
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._config = _with_defaults(config or {}, self.key)
        self._env = {
            name: value for name, value in os.environ.items() if not name.startswith("MESSAGEBUSD_")
        } | dict(env or {})
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    # -- what tests look at --------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the public listener is: ``http://…``, or ``unix:/path``."""
        return self.addresses["public"]

    @property
    def internal_url(self) -> str:
        """Where API, metrics and health are; the public listener unless there is another."""
        return self.addresses.get("internal", self.url)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log so far, one mapping for each line that is JSON."""
        return [record for line in self.stderr if (record := _log_record(line)) is not None]

    # -- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self, within: float = START_SECONDS) -> None:
        """Start the process and wait until it is ready.

        Raises DaemonError, with what it wrote, when it ends or is not ready in time.
        """
        assert not self.running, "already started"
        path = self.configure()
        self._ready.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            self._python,
            "-m",
            "messagebusd",
            "serve",
            "--config",
            str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self._env,
            limit=LOG_LINE_BYTES,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            asyncio.create_task(self._collect(process.stdout, self.stdout)),
            asyncio.create_task(self._collect(process.stderr, self.stderr)),
        ]
        ready = asyncio.create_task(self._ready.wait())
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((ready, ended), timeout=within, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
            if not self._ready.is_set():
                await self.kill()
        if not self._ready.is_set():
            raise DaemonError(
                f"the daemon was not ready within {within} s, exit code {process.returncode}:\n"
                f"{self.output()}"
            )

    def configure(self, config: Config | None = None) -> Path:
        """Write its configuration file, with other settings if there are any."""
        if config is not None:
            self._config = _with_defaults(config, self.key)
        path = self.folder / "bus.toml"
        path.write_text(to_toml(self._config), encoding="utf-8")
        return path

    async def reload(self, config: Config) -> bool:
        """Have it read other settings with SIGHUP; whether they are in force."""
        self.configure(config)
        before = len(self.log)
        self.signal(signal.SIGHUP)
        async with asyncio.timeout(START_SECONDS):
            while True:
                for line in self.log[before:]:
                    if line["message"] == "settings reloaded":
                        return True
                    if line["message"].startswith("settings not reloaded"):
                        return False
                await asyncio.sleep(0.01)

    async def stop(self, within: float = STOP_SECONDS) -> int:
        """Ask it to stop with SIGTERM and return its exit code; -9 when it had to be killed."""
        self.signal(signal.SIGTERM)
        return await self._ended(within)

    async def ended(self, within: float = STOP_SECONDS) -> int:
        """Wait until it ends by itself and return its exit code; -9 when it had to be killed."""
        return await self._ended(within)

    async def kill(self) -> int:
        """End it at once, without any of its own doing, and return its exit code."""
        self.signal(signal.SIGKILL)
        return await self._ended(STOP_SECONDS)

    async def restart(self) -> None:
        """Start it again on the same addresses and with the same folder, stopping it if it runs."""
        if self.running:
            await self.stop()
        for listener, option in (("public", "listen"), ("internal", "internal_listen")):
            if listener in self.addresses:
                self._config["server"][option] = self.addresses[listener].removeprefix("http://")
        await self.start()

    async def close(self) -> None:
        """End what still runs and release everything; closing twice is harmless."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self.running:
            await self.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless it has already ended."""
        assert self._process is not None, "not started"
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _ended(self, within: float) -> int:
        assert self._process is not None, "not started"
        try:
            async with asyncio.timeout(within):
                await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        # The pipes end with the process; reading them to the end closes them.
        await asyncio.gather(*self._readers)
        code = self._process.returncode
        assert code is not None
        return code

    async def _collect(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while raw := await stream.readline():
            line = raw.decode("utf-8", "replace").rstrip("\n")
            lines.append(line)
            record = _log_record(line) or {}
            if record.get("message") == "listening":
                self.addresses[record["listener"]] = record["address"]
            elif record.get("message") == "ready":
                self._ready.set()

    def output(self) -> str:
        """Everything it wrote, for messages of failing tests."""
        return "\n".join([*self.stdout, *self.stderr]) or "(no output)"

    # -- the API -------------------------------------------------------------------------------

    async def publish(self, channel: str, data: Any, **options: Any) -> dict[str, Any]:
        """``POST /api/v1/publish``; ``options`` are its other fields. ApiError when refused."""
        body = {"channel": channel, "data": data, **options}
        answer = await self.api("POST", "publish", body)
        assert isinstance(answer, dict)
        return answer

    async def api(
        self,
        method: str,
        call: str,
        body: Any = None,
        *,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call ``/api/v1/<call>`` with the key and return the decoded answer, None when empty.

        Raises ApiError for any other status than 2xx.
        """
        async with self._client().request(
            method,
            f"{self.internal_url}/api/v1/{call}",
            params=query,
            # As a file: aiohttp warns of large bodies that are bytes.
            data=None if body is None else io.BytesIO(json.dumps(body).encode()),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Content-Type": "application/json",
                **(headers or {}),
            },
        ) as answer:
            text = await answer.text()
            if not answer.ok:
                raise ApiError(answer.status, _decoded(text))
            return json.loads(text) if text else None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        return self._session


def _with_defaults(config: Config, key: str) -> dict[str, Any]:
    merged: dict[str, Any] = {"server": {}, "log": {}, "api": {}, **deepcopy(dict(config))}
    merged["server"] = {"listen": "127.0.0.1:0", **merged["server"]}
    merged["log"] = {**merged["log"], "format": "json"}
    merged["api"] = {**merged["api"], "key": key}
    return merged


def _log_record(line: str) -> dict[str, Any] | None:
    record = _decoded(line)
    return record if isinstance(record, dict) else None


def _decoded(text: str) -> Any:
    """JSON decoded; text that is none, as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def to_toml(config: Config) -> str:
    """Write a nested mapping as TOML. None is not representable and refused."""
    return "\n".join(_table(config, ())) + "\n"


def _table(table: Config, path: tuple[str, ...]) -> list[str]:
    """A table's values, then its tables: a value after a sub-table's header would belong there."""
    lines = [
        f"{_quoted(key)} = {_value(value)}"
        for key, value in table.items()
        if not isinstance(value, Mapping) and not _is_table_array(value)
    ]
    for key, value in table.items():
        name = ".".join(map(_quoted, (*path, key)))
        if isinstance(value, Mapping):
            lines += [f"[{name}]", *_table(value, (*path, key))]
        elif _is_table_array(value):
            for element in value:
                lines += [f"[[{name}]]", *_table(element, (*path, key))]
    return lines


def _is_table_array(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(element, Mapping) for element in value)
    )


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            pairs = (f"{_quoted(key)} = {_value(inner)}" for key, inner in value.items())
            return f"{{{', '.join(pairs)}}}"
        case _:
            raise TypeError(f"TOML has no {type(value).__name__}: {value!r}")


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's as well; DEL is the one character that only TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
