"""A real Redis on a port of its own, and Sentinels that watch one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
import redis.asyncio

from tests.support.program import Program, accepts, find_program, free_port


class RedisServer:
    """A Redis server; nothing is persistent unless ``config`` says so (``appendonly: yes``).

    A context manager, or started and stopped by hand; it keeps its port and folder over restarts.
    With ``tls`` it speaks TLS only, with a certificate of its own (``ca_file``).
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, str] | None = None,
        *,
        tls: bool = False,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "redis.sock"
        self.ca_file = folder / "certificate.pem"
        self._tls = tls
        settings = {
            "bind": "127.0.0.1",
            "dir": str(folder),
            "save": "",
            "appendonly": "no",
            "unixsocket": str(self.socket),
            "port": str(self.port),
            **(config or {}),
        }
        if tls:
            self._make_certificate()
            settings |= {
                "port": "0",
                "tls-port": str(self.port),
                "tls-cert-file": str(self.ca_file),
                "tls-key-file": str(folder / "key.pem"),
                "tls-auth-clients": "no",
            }
        lines = [f"{name} {value or chr(34) * 2}" for name, value in settings.items()]
        path = folder / "redis.conf"
        path.write_text("\n".join(lines) + "\n")
        program = find_program("redis-server", "redis-server")
        self._program = Program(folder, [program, str(path), *arguments], self._answers)

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self._program.pid

    @cached_property
    def control(self) -> redis.Redis:
        """A client for what tests do to the server, not asynchronous, over its socket."""
        return redis.Redis(unix_socket_path=str(self.socket), decode_responses=True)

    def client(self, **options: object) -> redis.asyncio.Redis:
        """A client for the test's loop; to be closed by the test."""
        client: redis.asyncio.Redis = redis.asyncio.Redis(
            unix_socket_path=str(self.socket), **options
        )
        return client

    def start(self) -> None:
        self._program.start()

    def stop(self) -> None:
        """Stop it as an administrator would: what is persistent is written."""
        self._program.stop()

    def kill(self) -> None:
        """As if the power failed."""
        self._program.kill()

    def wipe(self) -> None:
        """Take its data away, while it is stopped."""
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)

    def flush(self) -> None:
        self.control.flushall()

    def replica_of(self, other: RedisServer | None) -> None:
        """Follow another server from now on; None makes it a master."""
        if other is None:
            self.control.execute_command("REPLICAOF", "NO", "ONE")
        else:
            self.control.execute_command("REPLICAOF", "127.0.0.1", str(other.port))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.control.close()
        self.stop()

    def _answers(self) -> bool:
        try:
            self.control.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def _make_certificate(self) -> None:
        subprocess.run(
            [
                *(find_program("openssl", "openssl"), "req", "-x509", "-nodes", "-days", "2"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-keyout", str(self.folder / "key.pem"), "-out", str(self.ca_file)),
                *("-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )


class Sentinel:
    """One Sentinel that watches ``master`` under the name ``mymaster`` and decides alone."""

    def __init__(self, folder: Path, master: RedisServer, *, down_after: float = 1.0) -> None:
        self.port = free_port()
        path = folder / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds mymaster {int(down_after * 1000)}\n"
            "sentinel failover-timeout mymaster 3000\n"
        )
        program = find_program("redis-server", "redis-server")
        arguments = [program, str(path), "--sentinel"]
        self._program = Program(folder, arguments, lambda: accepts(self.port))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._program.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._program.stop()
