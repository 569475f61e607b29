"""A daemon that a page's own command starts, on another port, with the key that it prints."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.program import Program

_URL = re.compile(r"is listening on (http://\S+)\n")
_KEY = re.compile(r"export MESSAGEBUSD_KEY=(mb_\S+)\n")


class Started(Program):
    """``messagebusd`` with these arguments; ready when it has printed its key."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "messagebusd", *arguments, "--listen", "127.0.0.1:0"]
        super().__init__(folder, command, lambda: _KEY.search(self.output) is not None)

    @property
    def url(self) -> str:
        return self._printed(_URL)

    @property
    def internal_url(self) -> str:
        return self.url

    @property
    def key(self) -> str:
        return self._printed(_KEY)

    def _printed(self, pattern: re.Pattern[str]) -> str:
        found = pattern.search(self.output)
        assert found is not None, self.output
        return found[1]
