"""The applications of docs/hosts, put together from the pages' own code and run.

A block of a page whose first line (after ``<?php``) is a comment with a file's name is that file.
What the pages leave to the reader (users, the login, how the server is started) is in ``apps/``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.pages import Page
from tests.support.program import Program, accepts, find_program, free_port

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "hosts"
APPS = Path(__file__).parent / "apps"

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
    "go": Kit(("go",), lambda port: ["./serve", str(port)]),
}


def _files(name: str) -> dict[str, str]:
    """The files that a page shows, by their names."""
    page = Page(f"docs/hosts/{name}.md", __name__)
    found = {}
    for block in page.blocks(pattern=_FILE):
        file = _FILE.match(block.text)
        assert file is not None
        assert file["name"] not in found, f"{name}.md has two files {file['name']}"
        found[file["name"]] = block.text
    assert found, f"{name}.md has no files"
    return found


FILES = {page: _files(page) for kit in KITS.values() for page in kit.pages}


def build(kit: str, folder: Path) -> None:
    """Write an application into an empty folder."""
    shutil.copytree(APPS / kit, folder, dirs_exist_ok=True)
    for page in KITS[kit].pages:
        for name, code in FILES[page].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(code)
    # Node looks for its packages beside the program, and above.
    if kit == "express":
        (folder / "node_modules").symlink_to(ROOT / "node_modules")
    if kit == "go":
        _compile(folder)


def _compile(folder: Path) -> None:
    done = subprocess.run(
        [find_program("go", "golang-go"), "build", "-o", "serve", "."],
        cwd=folder,
        env={**os.environ, "GO111MODULE": "off", "GOFLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


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
