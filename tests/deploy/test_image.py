"""The image and the compose file, as far as they can be tried without an engine.

Hadolint and the compose client are the real ones; what the Dockerfile does is done in a folder;
what the compose file names is looked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemon import Daemon
from tests.support.program import find_program
from tests.support.shipped import DEPLOY, check_config

REPOSITORY = DEPLOY.parent
COMPOSE = DEPLOY / "compose"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
SECRETS = {"MESSAGEBUSD_KEY": "k" * 32, "GRAFANA_PASSWORD": "g", "POSTGRES_PASSWORD": "p"}


def _tool(name: str) -> str:
    return find_program(name, "nothing: make deploy-tests", str(Path(sys.executable).parent))


def _clean_env(**more: str) -> dict[str, str]:
    ours = ("MESSAGEBUSD_", *SECRETS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | more


# -- Dockerfile


def test_hadolint_has_nothing_to_say() -> None:
    path = str(REPOSITORY / "Dockerfile")
    linted = subprocess.run(
        [_tool("hadolint"), "--failure-threshold", "style", path], capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout


def _final_stage() -> str:
    return DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_the_last_stage_has_a_user_and_no_tools() -> None:
    final = _final_stage()
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE) == ["10001"]
    assert "pip uninstall --yes" in final
    assert not re.search(r"apt-get|npm|pip install|COPY (?!--from=build)", final)
    bases = re.findall(r"^(?:ARG PYTHON=|FROM )([\w./-]+:[\w.-]+)", DOCKERFILE, re.MULTILINE)
    assert bases
    assert all(re.search(r":\d+\.\d+\.\d+", base) for base in bases), "not pinned"


def test_its_settings_are_settings() -> None:
    env = dict(re.findall(r"(MESSAGEBUSD_\w+)=(\S+)", _final_stage().partition("USER")[0]))
    assert set(env) >= {"MESSAGEBUSD_SERVER__LISTEN", "MESSAGEBUSD_SERVER__INTERNAL_LISTEN"}
    check_config(None, {**env, "MESSAGEBUSD_API__KEY": "k" * 32})
    ports = {value.rpartition(":")[2] for name, value in env.items() if name.endswith("LISTEN")}
    [exposed] = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    assert set(exposed.split()) == ports


async def test_its_health_is_readiness(tmp_path: Path) -> None:
    """The command itself, against a daemon that is ready, and when it is gone."""
    [quoted] = re.findall(
        r"^HEALTHCHECK .* CMD (\[[^\]]*\])$", DOCKERFILE.replace("\\\n", ""), re.M
    )
    config = {"server": {"internal_listen": "127.0.0.1:0"}}
    async with Daemon(tmp_path, config) as daemon:
        _, *arguments = json.loads(quoted)
        arguments[-1] = arguments[-1].replace("http://127.0.0.1:8091", daemon.internal_url)

        async def healthy() -> bool:
            quiet = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=quiet)
            return await process.wait() == 0

        assert daemon.internal_url in arguments[-1]
        assert await healthy()
        assert await daemon.stop() == 0
        assert not await healthy()


def _dockerignore() -> tuple[list[str], list[str]]:
    """What goes into the context, and what of it does not."""
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    return kept, [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]


def _copy(source: Path, target: Path, left: Sequence[str]) -> None:
    """A file or a folder, without what ``left`` names by path or by name."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(REPOSITORY) if left else Path(folder)
        return [each for each in names if each in left or str(inside / each) in left]

    assert source.exists(), f"{source} is not there"
    if source.is_dir():
        shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _instructions() -> Iterator[tuple[str, str, str]]:
    """Stage, instruction and the rest of each line; "" is the last stage."""
    stage = ""
    for line in DOCKERFILE.replace("\\\n", "").splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            stage = rest.partition(" AS ")[2]
        yield stage, instruction, rest


def test_the_build_works(tmp_path: Path) -> None:
    """The steps of the stages `client` and `build`, on what the context really has."""
    context, environment = tmp_path / "context", tmp_path / "env"
    context.mkdir()
    kept, left = _dockerignore()
    for name in kept:
        _copy(REPOSITORY / name, context / name, left)
    stages = {name: tmp_path / name for name in ("client", "build")}
    for stage, instruction, rest in _instructions():
        if stage not in stages:
            continue
        if instruction == "WORKDIR":
            work = stages[stage] / rest.removeprefix("/")
            work.mkdir(parents=True)
        elif instruction == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            for name in names:
                inside = len(names) > 1 or (target == "./" and (context / name).is_file())
                place = work / target / Path(name).name if inside else work / target
                _copy(context / name, place, [])
        elif instruction == "COPY":
            # What npm builds in the first stage was built here by `make install`.
            source, target = rest.removeprefix("--from=client ").split()
            _copy(REPOSITORY / source.removeprefix("/build/"), work / target, [])
    script = json.loads((stages["client"] / "build/clients/typescript/package.json").read_text())
    assert "../../messagebusd/browser" in script["scripts"]["vendor"]

    # Built with what is installed here, and installed without dependencies: both would be fetched.
    pip = [sys.executable, "-m", "pip", "--quiet"]
    built = ["wheel", "--no-build-isolation", "--no-deps", f"--wheel-dir={tmp_path}", "."]
    subprocess.run([*pip, *built], cwd=work, check=True)
    [wheel] = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [f"--python={python}", "install", "--no-compile", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    [borrowed] = [each for each in sys.path if each.endswith("site-packages")]
    program = environment / "bin" / "messagebusd"
    ran = subprocess.run(
        [program, "check-config"],
        env=_clean_env(PYTHONPATH=borrowed),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    [package] = environment.glob("lib/python*/site-packages/messagebusd")
    assert (package / "browser/client.js").is_file()
    assert (package / "backends/redis/publish.lua").is_file()
    assert not (environment / "bin" / "pip").exists()


# -- Compose


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The compose file as the client understands it."""
    ran = _compose(SECRETS)
    assert ran.returncode == 0, ran.stderr
    assert "warning" not in ran.stderr.lower(), ran.stderr
    understood: dict[str, Any] = json.loads(ran.stdout)
    return understood


def _compose(env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    arguments = ["-f", str(COMPOSE / "compose.yml"), "--profile", "*", "config", "--format", "json"]
    return subprocess.run(
        [_tool("docker-compose"), *arguments],
        env=_clean_env(**env),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("secret", ["MESSAGEBUSD_KEY", "GRAFANA_PASSWORD"])
def test_nothing_starts_without_secrets(secret: str) -> None:
    ran = _compose({**SECRETS, secret: ""})
    assert ran.returncode != 0
    assert secret in ran.stderr


def test_what_is_mounted_exists(composed: dict[str, Any]) -> None:
    mounted = [
        volume
        for service in composed["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert len(mounted) >= 7
    for volume in mounted:
        assert Path(volume["source"]).is_file(), volume["source"]
        assert volume["read_only"]


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_the_nodes_settings_are_settings(composed: dict[str, Any], kind: str) -> None:
    for name in ("bus1", "bus2"):
        env = composed["services"][name]["environment"]
        assert env["MESSAGEBUSD_BACKEND__KIND"] == "redis"
        check_config(COMPOSE / "bus.toml", {**env, "MESSAGEBUSD_BACKEND__KIND": kind})


def test_the_parts_find_each_other(composed: dict[str, Any]) -> None:
    services = composed["services"]
    bus = tomllib.loads((COMPOSE / "bus.toml").read_text())
    nodes = {name for name, each in services.items() if each["image"].startswith("messagebusd")}
    public, internal = (
        bus["server"][key].rpartition(":")[2] for key in ("listen", "internal_listen")
    )

    nginx = (COMPOSE / "nginx.conf").read_text()
    assert set(re.findall(r"server (\S+) resolve\b", nginx)) == {
        f"{each}:{public}" for each in nodes
    }

    prometheus = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    [group] = job["static_configs"]
    assert set(group["targets"]) == {f"{each}:{internal}" for each in nodes}
    targets = _targets(services["prometheus"])
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= targets

    [source] = yaml.safe_load((COMPOSE / "grafana/datasource.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((COMPOSE / "grafana/dashboards.yml").read_text())["providers"]
    boards = {str(Path(each).parent) for each in _targets(services["grafana"])}
    assert provider["options"]["path"] in boards

    for kind in ("redis", "postgres"):
        host = re.search(r"://(?:\w+@)?(\w+):", bus["backend"][kind]["url"])
        assert host is not None
        assert host[1] in services
    user = services["postgres"]["environment"]["POSTGRES_USER"]
    assert f"://{user}@" in bus["backend"]["postgres"]["url"]

    [subnet] = composed["networks"]["default"]["ipam"]["config"]
    assert bus["server"]["trusted_proxies"] == [subnet["subnet"]]


def _targets(service: dict[str, Any]) -> set[str]:
    return {volume["target"] for volume in service["volumes"]}


def test_the_nodes_can_do_little_and_stop_in_time(composed: dict[str, Any]) -> None:
    for name in ("bus1", "bus2"):
        node = composed["services"][name]
        assert node["read_only"]
        assert node["cap_drop"] == ["ALL"]
        assert int(node["stop_grace_period"].removesuffix("s")) > 30  # server.shutdown_timeout
        assert "ports" not in node
    published = [
        port for service in composed["services"].values() for port in service.get("ports", [])
    ]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
