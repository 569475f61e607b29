"""Files of ``deploy/`` as tests run them: shipped, with a few places set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def adapted(name: str, places: Mapping[str, str]) -> str:
    """The text of a shipped file with these pieces replaced.

    Each must stand there exactly once, so that what the tests run stays what is shipped.
    """
    text = (DEPLOY / name).read_text()
    for shipped, mine in places.items():
        assert text.count(shipped) == 1, f"{name} has {text.count(shipped)} times {shipped!r}"
        text = text.replace(shipped, mine)
    return text
