"""A real PostgreSQL on a port of its own, a database for each test, and PgBouncer before it."""

from __future__ import annotations

import itertools
import os
import pwd
import select
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg

from tests.support.program import STOP_SECONDS, Program, find_program, free_port

_FOLDERS = tuple(
    str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
)
# Nothing of a test needs to survive a power failure.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _program(name: str) -> str:
    return find_program(name, "postgresql", *_FOLDERS)


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs servers that refuse to be run by root; None if that is not us."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def give_away(folder: Path) -> None:
    """Let the unprivileged user have a folder. It must be able to reach it: pytest's own temporary
    folders are closed to everybody else, so use those of `tempfile`."""
    if (user := _unprivileged()) is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)


class PostgresServer:
    """A PostgreSQL server with the superuser ``postgres``, who needs no password.

    A context manager, or started and stopped by hand; it keeps port and data over restarts.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, str] | None = None,
        *,
        initdb: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._numbers = itertools.count(1)
        give_away(folder)
        user = _unprivileged()
        self._user = None if user is None else user.pw_uid
        data = folder / "data"
        subprocess.run(
            [
                *(_program("initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8"),
                *("--auth=trust", "--no-sync", "--locale=C", *initdb),
            ],
            check=True,
            capture_output=True,
            user=self._user,
            cwd=folder,
        )
        settings = {
            **_FAST,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(folder),
            "max_connections": "300",
            **(config or {}),
        }
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self._program = Program(
            folder,
            [_program("postgres"), "-D", str(data)],
            self._answers,
            user=self._user,
            stop_signal=signal.SIGINT,  # "fast": clients are sent away
        )

    @property
    def pid(self) -> int:
        return self._program.pid

    def url(self, database: str = "postgres", user: str = "postgres", port: int = 0) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        self._program.start()

    def stop(self) -> None:
        self._program.stop()

    def kill(self) -> None:
        """As if the power failed: nothing of it runs afterwards, its backends included."""
        if not self._program.running:
            return
        os.kill(self.pid, signal.SIGSTOP)  # it starts no more of them, and tidies nothing up
        with ExitStack() as stack:
            backends = []
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                backends.append(os.pidfd_open(int(child)))
                stack.callback(os.close, backends[-1])
            for backend in backends:
                signal.pidfd_send_signal(backend, signal.SIGKILL)
            self._program.kill()
            for backend in backends:  # readable when it has ended
                ended = select.poll()  # not select: a test may have thousands of descriptors
                ended.register(backend, select.POLLIN)
                if not ended.poll(STOP_SECONDS * 1000):
                    raise RuntimeError("a backend of PostgreSQL did not end")

    def limit_files(self, size: int | None) -> None:
        """Let no file of the server grow beyond this size; None takes the limit away."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        soft = "unlimited" if size is None else size
        for pid in (str(self.pid), *children):
            # Only the server's own user may; a backend may have ended just now.
            command = [find_program("prlimit", "util-linux"), "--pid", pid, f"--fsize={soft}:"]
            subprocess.run(command, user=self._user, capture_output=True, check=False)

    def create_database(self) -> str:
        """A new, empty database; its name."""
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def terminate(self, database: str, query: str = "%") -> int:
        """Terminate the backends of a database, or those whose last query was like this."""
        found = self.sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid() AND query LIKE '{query}'"
        )
        return int(found)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser; what it answers, as text."""
        done = subprocess.run(
            [
                _program("psql"),
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                statement,
                self.url(database),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    async def connect(self, database: str, **options: Any) -> asyncpg.Connection:
        """A connection for the test's loop; to be closed by the test."""
        connection: asyncpg.Connection = await asyncpg.connect(self.url(database), **options)
        return connection

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        done = subprocess.run(
            [_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return done.returncode == 0


class PgBouncer:
    """PgBouncer in transaction mode before a server, for all of its databases."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self.port = free_port()
        self._server = server
        give_away(folder)
        users = folder / "users.txt"
        users.write_text('"postgres" ""\n')
        path = folder / "pgbouncer.ini"
        path.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
            "max_client_conn = 500\ndefault_pool_size = 5\n"
        )
        user = _unprivileged()
        self._program = Program(
            folder,
            [find_program("pgbouncer", "pgbouncer"), str(path)],
            self._answers,
            user=None if user is None else user.pw_uid,
            stop_signal=signal.SIGTERM,
        )

    def url(self, database: str) -> str:
        return self._server.url(database, port=self.port)

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

    def _answers(self) -> bool:
        done = subprocess.run(
            [_program("psql"), "-XAtqc", "SELECT 1", self.url("postgres")],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0
