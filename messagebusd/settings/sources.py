"""File and environment as plain data that knows where each key was written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from messagebusd.errors import ConfigurationError
from messagebusd.settings.keys import (
    VARIABLE_PREFIX,
    VARIABLES,
    Key,
    item_in,
    nearest_variable,
    unwrap,
)
from messagebusd.settings.toml_lines import KeyPath, locate_keys

DEFAULT = "default"

_SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written, and its line when that is the file."""

    label: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A sentence about something that was written somewhere."""

    origin: Origin
    sentence: str

    def __str__(self) -> str:
        return f"{self.origin.label}: {self.sentence}" if self.origin.label else self.sentence


@dataclass(slots=True)
class Tree:
    """The data of all sources, merged key by key, and where each key comes from."""

    path: Path | None = None
    data: dict[str, Any] = field(default_factory=dict)
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    _origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def put(self, key: Key, value: object, label: str) -> None:
        """Set a key from outside the file."""
        table = self.data
        for step in key.path[:-1]:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                return  # the file has a plain value where a section belongs; that is refused later
        table[key.path[-1]] = value
        self.place(key.path, Origin(label))

    def place(self, path: KeyPath, origin: Origin) -> None:
        """Say where a value comes from, when it is not where its key stands in the file."""
        self._origins[path] = origin

    def source(self, path: KeyPath) -> str:
        """Where exactly this key was set."""
        if (origin := self._origins.get(path)) is not None:
            return origin.label
        line = self.lines.get(path)
        return DEFAULT if line is None else f"{self.path}:{line}"

    def origin(self, path: KeyPath) -> Origin:
        """Where this was written, or else the innermost thing around it."""
        around = [path[:length] for length in range(len(path), 0, -1)]
        for outer in around:
            if (origin := self._origins.get(outer)) is not None:
                return origin
        for outer in around:
            if (line := self.lines.get(outer)) is not None:
                return Origin(f"{self.path}:{line}", line)
        return Origin("" if self.path is None else str(self.path))


def read_file(path: Path) -> Tree:
    """Read a TOML file. Raises ``ConfigurationError`` when it cannot be read at all."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([f"{path}:{line}: is not UTF-8"]) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"{path}:{_syntax_error(error, text)}"]) from None
    return Tree(path, data, locate_keys(text))


def _syntax_error(error: tomllib.TOMLDecodeError, text: str) -> str:
    # The position is part of the sentence: "Invalid value (at line 3, column 8)".
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
    if match is None:
        return f"1: {error}"
    return f"{match[2] or text.rstrip().count(chr(10)) + 1}: {match[1]}"


def read_environment(
    environ: Mapping[str, str], problems: list[Problem]
) -> Iterator[tuple[Key, object]]:
    """Yield the keys that variables set. Adds a problem for each that cannot be understood."""
    mistaken = {name.replace("__", "_"): name for name in VARIABLES}
    for name, text in environ.items():
        if (key := VARIABLES.get(name)) is not None:
            try:
                yield key, _value(key, text)
            except json.JSONDecodeError as error:
                # Its text says what was expected and where; the value may be secret.
                sentence = f"{key.dotted} must be JSON here: {error}"
                problems.append(Problem(Origin(name), sentence))
        elif name in mistaken:
            problems.append(_unknown(name, mistaken[name]))
        elif name.startswith(VARIABLE_PREFIX) and "__" in name:
            # Anything else is left alone: Kubernetes sets MESSAGEBUSD_PORT and the like by itself
            # for a service of this name, and client commands have variables of their own.
            problems.append(_unknown(name, nearest_variable(name)))


def _unknown(name: str, meant: str | None) -> Problem:
    hint = f"; did you mean {meant}?" if meant else ""
    return Problem(Origin(name), f"is not a known setting{hint}")


def _value(key: Key, text: str) -> object:
    """Read the text as the type of value that the key has.

    What cannot be read stays text, and the check of the key says what it should have been.
    """
    if text == "" and key.optional:
        return None
    bare, _ = unwrap(key.annotation)
    if item_in(bare) is not None:
        return json.loads(text)
    if bare is bool:
        return _SWITCHES.get(text.lower(), text)
    if bare in (int, float):
        try:
            return bare(text)
        except ValueError:
            return text
    return text
