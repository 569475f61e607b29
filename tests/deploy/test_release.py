"""What is released: built twice from one commit, looked into, installed and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

import messagebus_client
import messagebusd
from tests.support.daemon import Daemon
from tests.support.program import find_program

REPOSITORY = Path(__file__).parents[2]
VERSION = messagebusd.__version__
PACKAGES = {"messagebusd": REPOSITORY, "messagebus-client": REPOSITORY / "clients" / "python"}
# A day long ago: no build may take its times from anywhere else.
EPOCH = "1700000000"


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _copy(target: Path) -> Path:
    """What is in git, as it is here, with times and a place of its own."""
    names = _run("git", "ls-files", "-z", cwd=REPOSITORY).split("\0")
    for name in filter(None, names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, target / name)
        shutil.copymode(REPOSITORY / name, target / name)
    return target


def _digests(folder: Path) -> dict[str, str]:
    return {each.name: sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release, made from a copy whose browser client is built anew."""
    copy = _copy(tmp_path_factory.mktemp("release") / "checkout")
    client = copy / "clients" / "typescript"
    (client / "node_modules").symlink_to(REPOSITORY / "clients" / "typescript" / "node_modules")
    npm = find_program("npm", "npm")
    _run(npm, "run", "--silent", "build", cwd=client)
    _run(npm, "run", "--silent", "vendor", cwd=client)
    script = copy / "deploy" / "build-release.sh"
    _run(script, sys.executable, "dist", cwd=copy, SOURCE_DATE_EPOCH=EPOCH)
    return copy / "dist"


@pytest.mark.timeout(400)
def test_a_build_elsewhere_is_the_same(released: Path, tmp_path: Path) -> None:
    """With the browser client that lies here, from a folder of another name, without the SBOM."""
    copy = _copy(tmp_path / "somewhere else")
    shutil.copytree(REPOSITORY / "messagebusd" / "browser", copy / "messagebusd" / "browser")
    for folder in (copy, copy / "clients" / "python"):
        build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist")
        _run(*build, folder, cwd=copy, SOURCE_DATE_EPOCH=EPOCH)
    first = _digests(released)
    for name, digest in _digests(tmp_path / "dist").items():
        assert first[name] == digest, name


@pytest.mark.timeout(400)
def test_what_is_released(released: Path) -> None:
    stems = [f"{name.replace('-', '_')}-{VERSION}" for name in PACKAGES]
    kinds = ("-py3-none-any.whl", ".tar.gz", ".cdx.json")
    files = {stem + kind for stem in stems for kind in kinds}
    digests = _digests(released)
    assert set(digests) == files | {"SHA256SUMS"}
    noted = dict(
        line.split("  ")[::-1] for line in (released / "SHA256SUMS").read_text().splitlines()
    )
    assert noted == {name: digests[name] for name in files}


@pytest.mark.timeout(400)
def test_the_wheel_has_all_that_is_served(released: Path) -> None:
    wheel = zipfile.ZipFile(released / f"messagebusd-{VERSION}-py3-none-any.whl")
    names = set(wheel.namelist())
    assert {
        f"messagebusd/{name}" for name in ("py.typed", "browser/client.js", "browser/worker.js")
    } <= names
    in_git = _run("git", "ls-files", "messagebusd", cwd=REPOSITORY).split()
    assert set(in_git) <= names
    assert {each.date_time[:3] for each in wheel.infolist()} == {(2023, 11, 14)}
    with tarfile.open(released / f"messagebusd-{VERSION}.tar.gz") as sdist:
        inside = {each.partition("/")[2] for each in sdist.getnames()}
    assert {*in_git, "messagebusd/browser/client.js", "CHANGELOG.md", "LICENSE"} <= inside


@pytest.mark.timeout(400)
def test_the_bill_of_materials(released: Path) -> None:
    """Everything that an installation has, and no path of the machine that made it."""
    text = (released / f"messagebusd-{VERSION}.cdx.json").read_text()
    assert "file://" not in text
    found = {each["name"].lower(): each for each in json.loads(text)["components"]}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for dependency in ["messagebusd", *project["dependencies"]]:
        name = re.split(r"[\[<>=]", dependency)[0].replace("-", "_")
        assert name in {each.replace("-", "_") for each in found}, name
    assert found["messagebusd"]["version"] == VERSION
    assert not set(found) & {"pip", "pytest"}


@pytest.mark.timeout(400)
async def test_the_wheel_is_installed_and_serves(released: Path, tmp_path: Path) -> None:
    """Where nothing else is."""
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    wheel = released / f"messagebusd-{VERSION}-py3-none-any.whl"
    pip = (sys.executable, "-m", "pip", "--quiet", "--python", python)
    _run(*pip, "install", wheel, cwd=tmp_path)
    program = environment / "bin" / "messagebusd"
    assert VERSION in _run(program, "version", cwd=tmp_path, PYTHONPATH="")
    async with Daemon(tmp_path, python=str(python), env={"PYTHONPATH": ""}) as daemon:
        assert (await daemon.publish("/a", 1))["message_id"] == 1
        assert await daemon.stop() == 0


# -- one version, wherever it stands


def test_the_version_is_the_same_everywhere() -> None:
    assert messagebus_client.__version__ == VERSION
    for name in ("package.json", "package-lock.json"):
        document = json.loads((REPOSITORY / "clients" / "typescript" / name).read_text())
        assert document["version"] == VERSION
    chart = yaml.safe_load((REPOSITORY / "deploy/helm/messagebusd/Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION


def test_the_changes_are_those_of_this_version() -> None:
    """The uppermost heading is the version that is being made, or has been."""
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", changes, re.MULTILINE)
    dated = re.compile(r"(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)")
    assert headings[0] == f"Unreleased ({VERSION})" or dated.fullmatch(headings[0])[1] == VERSION  # type: ignore[index]
    assert all(dated.fullmatch(each) for each in headings[1:])
