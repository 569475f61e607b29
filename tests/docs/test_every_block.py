"""Every fenced block of every page is run by a test, or is in the table of those that cannot be."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess

import pytest

from messagebusd.cli import main
from tests.docs.not_run import NOT_RUN
from tests.support.pages import ROOT, TAKEN, Block, blocks_of, page_names
from tests.support.program import find_program

READERS = re.compile(r"^from tests\.support\.pages import .*\b(Page|all_pages)\b", re.MULTILINE)


def _blocks() -> list[Block]:
    return [each for name in page_names() for each in blocks_of(name)]


def _excused(page: str, words: str) -> Block:
    found = [each for each in blocks_of(page) if words in each.text]
    assert len(found) == 1, f"{page} has {len(found)} blocks with {words!r}"
    return found[0]


def test_somebody_runs_each() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if READERS.search(path.read_text()):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert TAKEN
    excused = {_excused(page, words) for page, words in NOT_RUN}
    nobody = [str(each) for each in _blocks() if each not in TAKEN and each not in excused]
    assert not nobody, f"no test runs: {', '.join(nobody)}"
    both = [str(each) for each in excused if each in TAKEN]
    assert not both, f"run, and said to be impossible to run: {', '.join(both)}"


@pytest.mark.parametrize(("page", "words"), NOT_RUN, ids=[" ".join(each) for each in NOT_RUN])
def test_what_is_not_run_can_be_read(page: str, words: str) -> None:
    block = _excused(page, words)
    match block.language:
        case "sh":
            command, text = ["bash", "-n"], block.text
        case "php":
            code = block.text.removeprefix("<?php\n")
            # A method call is the middle of an expression.
            code = f"$app{code};" if code.startswith("->") else code
            command, text = [find_program("php", "php-cli"), "-l"], f"<?php\n{code}"
        case "blade":
            code = block.text.replace("{!!", "<?php echo ").replace("!!}", "; ?>")
            command, text = [find_program("php", "php-cli"), "-l"], code
        case other:
            pytest.fail(f"nothing here reads {other}")
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in block.text.splitlines():
        if line.startswith("messagebusd "):
            _parse(shlex.split(line, comments=True)[1:])


def _parse(arguments: list[str]) -> None:
    """Have our command line read these, and do nothing. Raises click.UsageError."""
    name, command, rest = main.resolve_command(
        main.make_context("messagebusd", ["version"]), arguments
    )
    assert command is not None
    command.make_context(name, rest)


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name
