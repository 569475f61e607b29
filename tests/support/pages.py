"""The documentation's fenced blocks, and who runs which.

A test that runs blocks takes them from a `Page` of its own when its module is imported::

    PAGE = Page("docs/jwt.md", __name__)
    SNIPPET = PAGE.block("python", "poll_token")

That notes who takes what. ``tests/docs/test_every_block.py`` imports all such modules and fails for
a block that nobody takes, so one that is added to a page, or that a test lets go, is found.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, and what it holds. ``heading`` is the last one above it."""

    page: str
    line: int
    language: str
    heading: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


TAKEN: defaultdict[Block, set[str]] = defaultdict(set)
"""Each block that some module has taken, and the names of these modules."""


def page_names() -> list[str]:
    """All pages that show blocks to users, by their path from the root."""
    places = ("README.md", "docs/**/*.md", "clients/*/README.md")
    return sorted(str(path.relative_to(ROOT)) for each in places for path in ROOT.glob(each))


@cache
def blocks_of(name: str) -> tuple[Block, ...]:
    """All blocks of a page, in order."""
    text = (ROOT / name).read_text()
    # A heading inside a block is a comment of a shell or of Python.
    prose = _FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(prose)]
    blocks = []
    for found in _FENCE.finditer(text):
        above = [heading for start, heading in headings if start < found.start()]
        indent = found["indent"]
        code = "".join(line.removeprefix(indent) for line in found["text"].splitlines(True))
        line = text.count("\n", 0, found.start()) + 1
        blocks.append(Block(name, line, found["language"], above[-1] if above else "", code))
    # An odd fence would hide what follows it.
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks), name
    return tuple(blocks)


class Page:
    """A page as one test module reads it; what it hands out is noted as taken by this module."""

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text()
        self._module = module

    def blocks(
        self, *languages: str, having: str = "", pattern: re.Pattern[str] | None = None
    ) -> list[Block]:
        """Take the blocks in one of these languages, or all, that contain these words and begin
        with this pattern."""
        found = [
            each
            for each in blocks_of(self.name)
            if (not languages or each.language in languages)
            and having in each.text
            and (pattern is None or pattern.match(each.text))
        ]
        for each in found:
            TAKEN[each].add(self._module)
        return found

    def block(self, language: str, having: str = "") -> Block:
        """Take the only one."""
        found = [
            each
            for each in blocks_of(self.name)
            if each.language == language and having in each.text
        ]
        assert len(found) == 1, f"{self.name} has {len(found)} {language} blocks with {having!r}"
        return self.blocks(language, having=having)[0]


def all_pages(module: str) -> Iterator[Page]:
    """Every page, for tests of one language on all of them."""
    return (Page(name, module) for name in page_names())
