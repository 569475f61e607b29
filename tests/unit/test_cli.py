"""Commands that run a daemon or prepare to, and what all commands have in common."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from messagebusd import __version__
from messagebusd.cli import main
from messagebusd.settings import LoadedSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "KEY", "CONFIG"):
        monkeypatch.delenv(f"MESSAGEBUSD_{name}", raising=False)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    handlers, level, access_level = root.handlers[:], root.level, access.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    access.setLevel(access_level)


def run(*arguments: str, **environ: str) -> Result:
    result = CliRunner().invoke(main, arguments, env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_command_has_help_with_an_example_or_a_reason() -> None:
    for name, command in main.commands.items():
        result = run(name, "--help")
        assert result.exit_code == 0
        assert command.help, name
        assert len(command.get_short_help_str(limit=1000)) <= 66, name


def test_wrong_usage_exits_with_2() -> None:
    assert run("no-such-command").exit_code == 2
    assert run("serve", "--no-such-option").exit_code == 2
    assert run("publish", "/news").exit_code == 2
    assert run("key", "two words").exit_code == 2


def test_version() -> None:
    assert run("version").output == f"messagebusd {__version__}\n"
    assert run("--version").output == f"messagebusd {__version__}\n"


# -- check-config and config


def test_check_config(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text("[poll]\nmax_body = 7\n")
    result = run("check-config", "--config", str(path))
    assert (result.exit_code, result.output) == (0, f"ok {path}\n")
    result = run("check-config", MESSAGEBUSD_CONFIG=str(path))
    assert (result.exit_code, result.output) == (0, f"ok {path}\n")
    result = run("check-config")
    assert (result.exit_code, result.output) == (0, "ok (no file)\n")


def test_check_config_names_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text("[poll]\nmax_bdy = 7\nenabled = 3\n")
    result = run("check-config", "--config", str(path), MESSAGEBUSD_LOG__LEVEL="loud")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:2: poll.max_bdy is not known; did you mean poll.max_body?",
        f"{path}:3: poll.enabled must be true or false; got 3",
        'MESSAGEBUSD_LOG__LEVEL: log.level must be "debug", "info", "warning" or "error"; '
        'got "loud"',
    ]


def test_check_config_says_what_is_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text("[poll]\nlong_polling_interval = 70\n")
    result = run("check-config", "--config", str(path))
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {path}:2: poll.long_polling_interval is 70 seconds")


def test_config_shows_values_and_sources(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text('[api]\nkey = "hush"\n')
    result = run("config", "--config", str(path), MESSAGEBUSD_POLL__MAX_BODY="7")
    assert result.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in result.output.splitlines()}
    assert lines["poll.max_body"] == "poll.max_body = 7 # MESSAGEBUSD_POLL__MAX_BODY"
    assert lines["api.key"] == f'api.key = "********" # {path}:2'
    assert "hush" not in result.output


# -- key


def test_key_makes_a_key_that_the_configuration_takes(tmp_path: Path) -> None:
    result = run("key", "forum")
    token, _, config = result.output.partition("\n")
    assert token.startswith("mb_")
    assert len(token) >= 46
    assert token not in config
    [key] = tomllib.loads(config)["api"]["keys"]
    assert key["name"] == "forum"
    assert key["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    path = tmp_path / "bus.toml"
    path.write_text(config)
    load_settings(path, {}, {})
    assert run("key", "forum").output != result.output


# -- commands that run something else


class FakeServer(ModuleType):
    """Stands for ``messagebusd.alone``."""

    def __init__(self) -> None:
        super().__init__("messagebusd.alone")
        self.settings: Settings | None = None
        self.exit_code = 0

    def run(self, loaded: LoadedSettings, load: Callable[[], LoadedSettings]) -> int:
        assert load() == loaded
        self.settings = loaded.settings
        logging.getLogger("messagebusd.server").info("ready")
        return self.exit_code


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake = FakeServer()
    monkeypatch.setitem(sys.modules, "messagebusd.alone", fake)
    monkeypatch.setattr("messagebusd.alone", fake, raising=False)
    return fake


def test_serve_runs_the_server_with_the_settings(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text('[server]\nlisten = "127.0.0.1:1"\n[log]\nformat = "json"\n')
    result = run("serve", "--config", str(path), "--listen", "unix:/tmp/x", "--backend", "memory")
    assert result.exit_code == 0
    assert server.settings is not None
    assert str(server.settings.server.listen) == "unix:/tmp/x"
    [line] = result.stderr.splitlines()
    assert json.loads(line)["message"] == "ready"


def test_serve_logs_what_is_doubtful(server: FakeServer) -> None:
    environ = {"MESSAGEBUSD_POLL__LONG_POLLING_INTERVAL": "70", "MESSAGEBUSD_LOG__FORMAT": "json"}
    result = run("serve", **environ)
    first = json.loads(result.stderr.splitlines()[0])
    assert first["level"] == "warning"
    assert first["message"].startswith("MESSAGEBUSD_POLL__LONG_POLLING_INTERVAL: ")


def test_serve_exits_as_the_server_says(server: FakeServer) -> None:
    server.exit_code = 1
    assert run("serve").exit_code == 1


def test_serve_does_not_start_with_wrong_settings(server: FakeServer) -> None:
    result = run("serve", "--listen", "0.0.0.0:8090")
    assert result.exit_code == 1
    assert result.stderr == "api.key is required, because the API listens on 0.0.0.0:8090\n"
    result = run("serve", "--backend", "disk")
    assert (
        result.stderr
        == '--backend: backend.kind must be "memory", "redis" or "postgres"; got "disk"\n'
    )
    assert server.settings is None


def test_demo_listens_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fake = ModuleType("messagebusd.demo")
    monkeypatch.setattr(fake, "run", lambda host, port: calls.append((host, port)) or 3, False)
    monkeypatch.setitem(sys.modules, "messagebusd.demo", fake)
    monkeypatch.setattr("messagebusd.demo", fake, raising=False)
    assert run("demo", "--host", "::1", "--port", "0").exit_code == 3
    assert run("demo").exit_code == 3
    assert calls == [("::1", 0), ("127.0.0.1", 8090)]


def test_openapi_prints_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("messagebusd.http.openapi")
    monkeypatch.setattr(fake, "document", lambda: {"openapi": "3.1.0"}, False)
    monkeypatch.setitem(sys.modules, "messagebusd.http.openapi", fake)
    monkeypatch.setattr("messagebusd.http.openapi", fake, raising=False)
    assert json.loads(run("openapi").output) == {"openapi": "3.1.0"}
