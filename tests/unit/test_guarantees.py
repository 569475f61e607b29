"""Every promise of docs/guarantees.md names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "guarantees.md"


def test_the_tests_that_are_named_exist():
    sources = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    named = set(re.findall(r"`(?:test_\w+\.py::)?(test_\w+)`", PAGE.read_text()))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_fault_that_is_tested_is_on_the_page():
    tested = {
        name
        for path in (TESTS / "faults").glob("test_*.py")
        if path.name != "test_daemon.py"
        for name in re.findall(r"^async def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert {name for name in tested if name not in PAGE.read_text()} == set()
