"""The recorded storage vectors (the data's README says what is in them)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.conformance.scenarios import DataMissing, data_folder

Case = dict[str, Any]

# Above this the recordings have the length and a digest in place of a text.
LONG_BYTES = 100_000


def load(file: str) -> Any:
    """A file of the storage vectors. Raises DataMissing."""
    path = data_folder() / "storage" / file
    if not path.is_file():
        raise DataMissing(f"there are no storage vectors: {path} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def cases(file: str) -> dict[str, Case]:
    """The cases of a file by name; none, if it is not there: a test of its own says so."""
    try:
        return {each["name"]: each for each in load(file)["cases"]}
    except DataMissing:
        return {}


def recorded(value: bytes) -> object:
    """A text as the recordings write it."""
    if len(value) <= LONG_BYTES:
        return value.decode()
    return {"$long_bytes": {"length": len(value), "sha256": hashlib.sha256(value).hexdigest()}}
