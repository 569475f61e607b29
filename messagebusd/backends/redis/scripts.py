"""The scripts that run inside Redis; their text is in the ``.lua`` files beside this."""

from __future__ import annotations

import hashlib
from importlib.resources import files


class Script:
    """A script, and the name by which a server that has it knows it."""

    def __init__(self, name: str) -> None:
        self.text = (files(__package__) / f"{name}.lua").read_bytes()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


PUBLISH = Script("publish")
CLAIM = Script("claim")
BACKLOG = Script("backlog")
LOOKBACK = Script("lookback")
MISSED = Script("missed")
