"""Files of ``deploy/`` as tests run them: shipped, with a few places set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from messagebusd.cli import main

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


def check_config(path: Path | None, env: Mapping[str, str]) -> None:
    """`messagebusd check-config` finds nothing, with no other settings in the environment."""
    arguments = ["check-config", *(["--config", str(path)] if path else [])]
    ours = {name: value for name, value in env.items() if name.startswith("MESSAGEBUSD_")}
    others = {n: v for n, v in os.environ.items() if not n.startswith("MESSAGEBUSD_")}
    with mock.patch.dict(os.environ, others | ours, clear=True):
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
