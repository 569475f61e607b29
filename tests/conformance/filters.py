"""Client message filters of a scenario, as functions that ``[[filters]]`` can name.

A function that the daemon calls takes nothing from the configuration, so each scenario gets a
module of its own, with one function for each of its filters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULE = "scenario_filters"

_HEAD = '''"""Written for one scenario."""

from typing import Any

'''
_FUNCTION = '''
def allow_{number}(message: dict[str, Any], client: dict[str, Any]) -> bool:
    """Withhold objects whose member {key!r} is {equals!r}, of that very type."""
    data = message["data"]
    if not isinstance(data, dict) or {key!r} not in data:
        return True
    value = data[{key!r}]
    return type(value) is not {kind} or value != {equals!r}

'''


def write_module(folder: Path, filters: Sequence[Mapping[str, Any]]) -> None:
    """Write the module for these filters, each ``{"channel_prefix", "deny_when_data"}``."""
    functions = (
        _FUNCTION.format(
            number=number,
            key=rule["deny_when_data"]["key"],
            equals=rule["deny_when_data"]["equals"],
            kind=type(rule["deny_when_data"]["equals"]).__name__,
        )
        for number, rule in enumerate(filters)
    )
    (folder / f"{MODULE}.py").write_text(_HEAD + "".join(functions), encoding="utf-8")


def filter_tables(filters: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The ``[[filters]]`` that name its functions."""
    return [
        {"channel_prefix": rule["channel_prefix"], "callable": f"{MODULE}:allow_{number}"}
        for number, rule in enumerate(filters)
    ]
