"""The peers that are measured, each a process of its own on a core of its own.

All speak the same protocol on the same paths, so that one load generator serves them: what differs
is only how it is done.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.dialects import BUS, Dialect
from bench.errors import BenchError
from bench.machine import Memory, on_cores

START_SECONDS = 30.0
STOP_SECONDS = 15.0
LOOK_SECONDS = 0.02

# What a site has switched on. The deadline is out of the way: it would end polls while others are
# counted. Polls are counted for each client as usual, but one client here stands for many.
_CONFIG = """
[server]
listen = "127.0.0.1:0"
trusted_proxies = ["127.0.0.1"]
workers = {workers}
[poll]
long_polling_interval = 3600.0
client_rate = "100000000/s"
extra_response_headers = {{ x-discourse-route = "message-bus" }}
[cors]
allow_origins = ["https://forum.example"]
[api]
key = "{key}"
{lookup}
[log]
format = "json"
"""


_BY_HEADERS = '[lookup]\nmode = "headers"'


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started, and its port; None if its log says which it chose."""

    command: Sequence[str | Path]
    port: int | None = None


def config(key: str, workers: int = 1, lookup: str = _BY_HEADERS) -> str:
    """Settings of the daemon, in TOML."""
    return _CONFIG.format(key=key, workers=workers, lookup=lookup)


def _messagebusd(
    folder: Path, key: str, more: str = "", workers: int = 1, lookup: str = _BY_HEADERS
) -> Launch:
    file = folder / "bus.toml"
    file.write_text(config(key, workers, lookup) + more)
    return Launch([sys.executable, "-m", "messagebusd", "serve", "--config", file])


def _plain(folder: Path, key: str) -> Launch:
    return Launch([sys.executable, "-m", "bench.plain_aiohttp", key])


def _bare(folder: Path, key: str) -> Launch:
    return Launch([sys.executable, "-m", "bench.bare"])


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of server: how to start it in a folder of its own and with a key, and which scenarios
    it can go through; None for all."""

    name: str
    launch: Callable[[Path, str], Launch]
    scenarios: frozenset[str] | None = None
    dialect: Dialect = BUS


def daemon(backend: str, workers: int = 1) -> Peer:
    """messagebusd on a store: ``backend`` are its settings in TOML."""
    return Peer("messagebusd", partial(_messagebusd, more=backend, workers=workers))


def daemon_asking(lookup: str) -> Peer:
    """messagebusd that finds out who polls in this way, settings in TOML."""
    return Peer("messagebusd", partial(_messagebusd, lookup=lookup))


MESSAGEBUSD = Peer("messagebusd", _messagebusd)
PLAIN = Peer("plain", _plain)
BARE = Peer(
    "bare",
    _bare,
    frozenset({"park", "fan-out", "saturated", "steady", "polls", "publish"}),
)
PEERS = (MESSAGEBUSD, PLAIN, BARE)


@dataclass(frozen=True, slots=True)
class Server:
    """A running peer, on a port of 127.0.0.1."""

    pid: int
    port: int
    key: str
    dialect: Dialect = BUS

    def memory(self) -> Memory:
        return Memory.of_family(self.pid)


@asynccontextmanager
async def running(peer: Peer, *cores: int) -> AsyncIterator[Server]:
    """Start a peer on these cores, and end it. Raises BenchError when it does not start."""
    key = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="messagebusd-bench-") as name:
        folder = Path(name)
        log = folder / "log"
        launch = peer.launch(folder, key)
        with log.open("wb") as stderr, on_cores(*cores):
            process = await asyncio.create_subprocess_exec(
                *launch.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                env=_environment(),
                start_new_session=True,
            )
        try:
            port = await _ready(process, launch.port, log)
            yield Server(process.pid, port, key, peer.dialect)
        finally:
            with suppress(ProcessLookupError):  # its processes; they have nothing to drain
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait_for(process.wait(), STOP_SECONDS)


def _environment() -> dict[str, str]:
    """Ours, without settings for a daemon."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("MESSAGEBUSD_")
    }


async def _ready(process: asyncio.subprocess.Process, port: int | None, log: Path) -> int:
    """Wait until it serves; its port."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.returncode is None:
        await asyncio.sleep(LOOK_SECONDS)
        if port is None:
            messages = {record["message"]: record for record in _records(log)}
            if "ready" in messages:
                return int(messages["listening"]["address"].rsplit(":", 1)[1])
        elif _is_listening(port):
            return port
    raise _not_ready(log)


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _records(log: Path) -> list[dict[str, str]]:
    whole_lines = log.read_text().rpartition("\n")[0]
    try:
        return [json.loads(line) for line in whole_lines.splitlines()]
    except ValueError:
        raise _not_ready(log) from None


def _not_ready(log: Path) -> BenchError:
    return BenchError(f"a server was not ready within {START_SECONDS:g} s:\n{log.read_text()}")
