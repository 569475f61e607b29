"""docs/quickstart.md from its beginning to its end, with the daemon that it starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.shell import Command, Shell, check, commands
from tests.docs.started import Started
from tests.support.pages import ROOT, Page
from tests.support.program import find_program

PAGE = Page("docs/quickstart.md", __name__)
SETTINGS = PAGE.block("toml")
INSTALL, SERVE, EXPORT, *SHELL = PAGE.blocks("sh", "console")
PROGRAMS = PAGE.blocks("python", "js", "ruby")
SHOWN = {"python": "2\n", "js": "3\n", "ruby": "4\n"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Started]:
    (tmp_path / "bus.toml").write_text(SETTINGS.text)
    program, *arguments = SERVE.text.split()
    assert program == "messagebusd"
    started = Started(tmp_path, arguments)
    started.start()
    yield started
    started.stop()


async def test_all_of_it(tmp_path: Path, daemon: Started) -> None:
    assert re.search(r"^export MESSAGEBUSD_KEY=mb_…", EXPORT.text, re.MULTILINE)
    interpreters = {
        "python": sys.executable,
        "js": find_program("node", "nodejs"),
        "ruby": find_program("ruby", "ruby"),
    }
    publish, *rest = (command for block in SHELL for command in commands(block))
    asked = [publish]
    for block in PROGRAMS:
        program = tmp_path / f"program.{block.language}"
        program.write_text(block.text.replace("http://127.0.0.1:8090", daemon.url))
        run = f"{interpreters[block.language]} {program}"
        asked.append(Command(block, run, SHOWN[block.language]))
    for ran in await Shell(tmp_path, daemon).run([*asked, *rest]):
        check(ran)


def test_its_targets_exist() -> None:
    [target] = re.findall(r"^make (\w+)$", INSTALL.text, re.MULTILINE)
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
