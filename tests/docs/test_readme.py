"""README.md: its minute goes as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.shell import Command, Shell, is_shown
from tests.support.pages import ROOT, Page, page_names
from tests.support.program import Program, free_port

PAGE = Page("README.md", __name__)
MAKE, LISTEN, PUBLISH = PAGE.blocks("sh")
PICTURE = PAGE.block("text").text
KEY = re.compile(r"export MESSAGEBUSD_KEY=(mb_\S+)\n")
STREAMED = """[]
|
[{"global_id":1,"message_id":1,"channel":"/hello","data":{"text":"Hello!"}}]
|
"""


class Started:
    """What the first command serves, on another port."""

    def __init__(self, folder: Path) -> None:
        recipe = subprocess.run(
            ["make", "-n", *MAKE.text.split()[1:]], cwd=ROOT, capture_output=True, text=True
        )
        *_, command = recipe.stdout.splitlines()
        program, *arguments = command.split()
        assert Path(program).name == "messagebusd"
        port = free_port()
        self.url = self.internal_url = f"http://127.0.0.1:{port}"
        (folder / "config").symlink_to(ROOT / "config")
        self.program = Program(
            folder,
            [sys.executable, "-m", "messagebusd", *arguments, "--listen", f"127.0.0.1:{port}"],
            lambda: KEY.search(self.program.output) is not None,
        )

    @property
    def key(self) -> str:
        found = KEY.search(self.program.output)
        assert found is not None, self.program.output
        return found[1]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Started]:
    started = Started(tmp_path)
    started.program.start()
    yield started
    started.program.stop()


async def test_its_minute(tmp_path: Path, daemon: Started) -> None:
    """Three shells: what is published stands in the stream at once."""
    first, *rest = PUBLISH.text.splitlines(keepends=True)
    assert first.startswith("export MESSAGEBUSD_KEY=mb_…")
    waiting = (
        f"{LISTEN.text.rstrip()} > streamed &\nuntil grep -q '|' streamed; do sleep 0.02; done"
    )
    arrived = "until grep -q Hello! streamed; do sleep 0.02; done; kill $!; cat streamed"
    ran = await Shell(tmp_path, daemon).run(
        [
            Command(LISTEN, waiting, None),
            Command(PUBLISH, "".join(rest), None),
            Command(LISTEN, arrived, None),
        ]
    )
    assert ran[1].printed == '{"channel":"/hello","message_id":1,"global_id":1}'
    assert is_shown(STREAMED, ran[2].printed), ran[2].printed
    assert "POST /api/v1/publish" in PICTURE


def test_what_is_made_can_be_made() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in page_names():
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named <= targets, (name, named - targets)
