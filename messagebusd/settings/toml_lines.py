"""Where in a TOML file each key stands.

``tomllib`` gives values without positions, and so does tomlkit, which keeps the text of items but
not their lines. So the file is walked a second time here, for positions alone. The walk relies on
``tomllib`` having accepted the text before: it has to find where keys and values begin and end,
not whether they are right.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]+")
# Longest delimiters first. A multi-line string may end in up to two more quotes of its own kind.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\]|\\.)*"'
    r"|'[^']*'",
    re.DOTALL,
)


def locate_keys(text: str) -> Mapping[KeyPath, int]:
    """Map the path of every table, key and array item to its line, counted from 1.

    ``text`` must be valid TOML.
    """
    return _Walk(text.replace("\r\n", "\n")).run()


class _Walk:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._array_sizes: dict[KeyPath, int] = {}

    def run(self) -> Mapping[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._peek("[["):
                table = self._array_header()
            elif self._peek("["):
                table = self._table_header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    # -- statements

    def _table_header(self) -> KeyPath:
        line = self._line()
        self._at += 1
        path = self._resolve(self._key())
        self._expect("]")
        self._note(path, line)
        return path

    def _array_header(self) -> KeyPath:
        line = self._line()
        self._at += 2
        *parents, name = self._key()
        self._expect("]]")
        array = (*self._resolve(parents), name)
        index = self._array_sizes.get(array, 0)
        self._array_sizes[array] = index + 1
        self._note((*array, index), line)
        return (*array, index)

    def _resolve(self, names: list[str]) -> KeyPath:
        """The path meant by a header: names of arrays of tables stand for their last table."""
        path: KeyPath = ()
        for name in names:
            path = (*path, name)
            if path in self._array_sizes:
                path = (*path, self._array_sizes[path] - 1)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = (*table, *self._key())
        self._expect("=")
        self._note(path, line)
        self._value(path)

    # -- parts

    def _key(self) -> list[str]:
        names = []
        while True:
            self._skip(_SPACE)
            if self._text[self._at] in "\"'":
                quoted = self._take(_STRING)
                names.append(next(iter(tomllib.loads(f"{quoted} = 0"))))
            else:
                names.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if not self._peek("."):
                return names
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        elif self._text[self._at] in "\"'":
            self._take(_STRING)
        else:
            self._take(_BARE_VALUE)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        self._skip(_BLANK)
        while not self._peek("]"):
            self._note((*path, index), self._line())
            self._value((*path, index))
            index += 1
            self._separator()
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        while not self._peek("}"):
            self._pair(path)
            self._separator()
        self._at += 1

    def _separator(self) -> None:
        self._skip(_BLANK)
        if self._peek(","):
            self._at += 1
            self._skip(_BLANK)

    def _note(self, path: KeyPath, line: int) -> None:
        """Remember the line, also for tables on the way that have no line of their own."""
        for length in range(1, len(path)):
            self._lines.setdefault(path[:length], line)
        self._lines[path] = line

    # -- characters

    def _peek(self, characters: str) -> bool:
        return self._text.startswith(characters, self._at)

    def _expect(self, characters: str) -> None:
        if not self._peek(characters):
            raise ValueError(f"{characters} expected in line {self._line()}")
        self._at += len(characters)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None  # both patterns match the empty string
        self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"nothing known begins in line {self._line()}")
        self._at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_left(self._newlines, self._at) + 1
