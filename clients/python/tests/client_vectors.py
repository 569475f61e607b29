"""The cases that all clients agree on: clients/vectors, described there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "vectors"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def cases(name: str) -> list[Any]:
    """The cases of a file, as parameters of a test."""
    return [pytest.param(each, id=each["name"]) for each in load(name)["cases"]]
