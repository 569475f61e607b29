"""Rules share no file with I/O: what imports what (docstring of each module says why)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "messagebus_client"
MODULES = sorted(PACKAGE.glob("*.py"))

WITH_HTTP = {"_http", "async_poller"}
# What needs neither a network nor a clock of its own.
PURE = {"_calls", "_chunks", "_exchange", "_following", "_json", "_positions", "_schedule"} | {
    "errors",
    "types",
}
IMPURE_MODULES = {"asyncio", "random", "socket", "threading", "time"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_it_may(path: Path) -> None:
    others = imports_of(path) - sys.stdlib_module_names - {"messagebus_client"}
    assert others <= ({"httpx2"} if path.stem in WITH_HTTP else set())
    if path.stem in PURE:
        assert not imports_of(path) & IMPURE_MODULES
    assert len(path.read_text().splitlines()) <= 350
