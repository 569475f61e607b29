"""Reading scenario files: where they are, what is in them, and their templates for large values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

VARIABLE = "MESSAGEBUSD_CONFORMANCE"
BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "conformance"
FORMAT = 1

Step = dict[str, Any]


class DataMissing(Exception):
    """The conformance data is not where it should be."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One file. ``quirk`` marks accidents of the recorded implementation; ``interval`` is how long
    a poll is held, in seconds."""

    name: str
    description: str
    quirk: bool
    requires: frozenset[str]
    server: Mapping[str, Any]
    interval: float
    steps: list[Step]
    quirk_on: frozenset[str] = frozenset()

    def on(self, store: str) -> Scenario:
        """The scenario as it was recorded on this store, where it went differently there.

        Our memory store counts as Redis does, and not as that of the recordings.
        """
        if store != "postgres":
            return self
        steps = []
        for step in self.steps:
            variant = step.get("expect_variants", {}).get(store)
            steps.append(
                step if variant is None else {**step, "expect": variant, "on_redis": step["expect"]}
            )
        return replace(self, steps=steps, quirk=self.quirk or store in self.quirk_on)


def data_folder() -> Path:
    """The folder with the scenarios. Raises DataMissing, saying where it was looked for."""
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else BESIDE_THE_CHECKOUT
    if not any((folder / "scenarios").glob("*.json")):
        raise DataMissing(
            f"there are no conformance scenarios in {folder}/scenarios: put the data there, "
            f"or let {VARIABLE} name the folder that holds it"
        )
    return folder


def load_scenarios(intervals: Mapping[str, float]) -> dict[str, Scenario]:
    """All scenarios by name, in the order of their names, some with intervals of the caller's.

    Raises DataMissing.
    """
    files = sorted((data_folder() / "scenarios").glob("*.json"))
    scenarios = [_load(path) for path in files]
    return {
        each.name: replace(each, interval=intervals.get(each.name, each.interval))
        for each in scenarios
    }


def _load(path: Path) -> Scenario:
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["format"] != FORMAT:
        raise ValueError(f"{path.name} has format {document['format']}, not {FORMAT}")
    return Scenario(
        name=document["name"],
        description=document["description"],
        quirk=document["conformance"] == "quirk",
        requires=frozenset(document["requires"]),
        server=document["server"],
        interval=document["server"]["long_polling_interval_ms"] / 1000,
        steps=document["steps"],
        quirk_on=frozenset(document.get("quirk_on", ())),
    )


def expand(value: Any, index: int = 1) -> Any:
    """Put large values in place of their templates; ``index`` is the number of the repetition."""
    match value:
        case {"$repeat": {"text": text, "times": times}}:
            return text * times
        case {"$numbered": {"key": key, "count": count, "value": member}}:
            return {key % number: member for number in range(count)}
        case {"$nested": {"depth": depth}}:
            nested: list[Any] = []
            for _ in range(depth - 1):
                nested = [nested]
            return nested
        case {"$index": True}:
            return index
        case dict():
            return {key: expand(member, index) for key, member in value.items()}
        case list():
            return [expand(member, index) for member in value]
        case _:
            return value
