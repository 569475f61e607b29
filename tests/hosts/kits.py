"""The applications of docs/hosts, put together from the pages' own code and run.

A block of a page whose first line (after ``<?php``) is a comment with a file's name is that file.
What the pages leave to the reader (users, the login, how the server is started) is in ``apps/``.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.program import Program, accepts, find_program, free_port

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "hosts"
APPS = Path(__file__).parent / "apps"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:<\?php\n)?(?:#|//|<!--) (?P<name>[\w./-]+\.[a-z]+)(?: -->)?\n")


@dataclass(frozen=True)
class Kit:
    """An application: the pages it is made of, and the command that serves it on a port."""

    pages: tuple[str, ...]
    command: Callable[[int], list[str]]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-X", "faulthandler", *arguments]


def _ruby() -> list[str]:
    ruby = find_program("ruby", "ruby")
    return [ruby, "-I", "lib"]


KITS: Mapping[str, Kit] = {
    "django": Kit(("python", "django"), lambda port: _python("serve.py", str(port))),
    "flask": Kit(("python", "flask"), lambda port: _python("serve.py", str(port))),
    "fastapi": Kit(("python", "fastapi"), lambda port: _python("serve.py", str(port))),
    "express": Kit(
        ("express",), lambda port: [find_program("node", "nodejs"), "serve.js", str(port)]
    ),
    "rails": Kit(("rails",), lambda port: [*_ruby(), "serve.rb", str(port)]),
    "laravel": Kit(
        ("laravel",),
        lambda port: [find_program("php", "php-cli"), "-S", f"127.0.0.1:{port}", "serve.php"],
    ),
}


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by their names."""
    found = {}
    for _, code in _BLOCK.findall((DOCS / f"{page}.md").read_text()):
        if (name := _FILE.match(code)) is not None:
            assert name["name"] not in found, f"{page}.md has two files {name['name']}"
            found[name["name"]] = code
    assert found, f"{page}.md has no files"
    return found


def build(kit: str, folder: Path) -> None:
    """Write an application into an empty folder."""
    shutil.copytree(APPS / kit, folder, dirs_exist_ok=True)
    for page in KITS[kit].pages:
        for name, code in files(page).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(code)
    # Node looks for its packages beside the program, and above.
    if kit == "express":
        (folder / "node_modules").symlink_to(ROOT / "node_modules")


class Application(Program):
    """A running application; its port is known before it runs, for the daemon's settings."""

    def __init__(self, kit: str, folder: Path) -> None:
        self.kit = kit
        self.port = free_port()
        self.env: dict[str, str] = {"SECRET_KEY": "of-the-sessions-" + "x" * 64}
        super().__init__(
            folder,
            KITS[kit].command(self.port),
            lambda: accepts(self.port),
            env=self.env,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"
