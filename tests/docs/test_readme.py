"""README.md: its minute goes as it says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.shell import Command, Shell, is_shown
from tests.docs.started import Started
from tests.support.pages import ROOT, Page, page_names

PAGE = Page("README.md", __name__)
MAKE, LISTEN, PUBLISH = PAGE.blocks("sh")
PICTURE = PAGE.block("text").text
STREAMED = """[]
|
[{"global_id":1,"message_id":1,"channel":"/hello","data":{"text":"Hello!"}}]
|
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Started]:
    """What the first command serves."""
    make = ["make", "-n", "--no-print-directory", *MAKE.text.split()[1:]]
    recipe = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    program, *arguments = recipe.stdout.splitlines()[-1].split()
    assert Path(program).name == "messagebusd"
    (tmp_path / "config").symlink_to(ROOT / "config")
    started = Started(tmp_path, arguments)
    started.start()
    yield started
    started.stop()


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
