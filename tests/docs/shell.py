"""Commands of the pages, run in one shell of their own, as somebody would who reads the page.

In a ``console`` block lines after ``$ `` are commands (continued after a backslash), and what
follows is what they print; there, ``…`` stands for anything, also for several lines. An ``sh``
block is commands that must succeed.

Pages say 127.0.0.1:8090 for the public listener, 127.0.0.1:8091 for the internal one, and
forum.example for a site; the commands are told the real addresses, and what they print is told
back.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.pages import Block

RUN_SECONDS = 50.0
PUBLIC = "127.0.0.1:8090"
INTERNAL = "127.0.0.1:8091"
SITE = "https://forum.example/message-bus/"


class Running(Protocol):
    """A daemon, as far as the commands know it."""

    @property
    def url(self) -> str: ...
    @property
    def internal_url(self) -> str: ...
    @property
    def key(self) -> str: ...


@dataclass(frozen=True)
class Command:
    """A command of a page; ``shown`` is what the page says that it prints, None if nothing."""

    block: Block
    text: str
    shown: str | None


@dataclass(frozen=True)
class Ran:
    """What became of a command."""

    command: Command
    status: int
    printed: str


def commands(block: Block) -> list[Command]:
    """The commands of a block, in order."""
    if block.language == "sh":
        return [Command(block, block.text, None)]
    assert block.language == "console", block
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
            continue
        assert found, f"{block} begins with an output"
        said, shown = found[-1]
        (said if not shown and said[-1].endswith("\\") else shown).append(line)
    assert found, f"{block} is empty"
    return [
        Command(block, "\n".join(said), "\n".join(shown) if shown else None)
        for said, shown in found
    ]


class Shell:
    """A shell in a folder of its own, beside a daemon whose key it has. ``site`` is who answers
    for a site that the pages name."""

    def __init__(self, folder: Path, daemon: Running, site: Running | None = None) -> None:
        self._folder = folder
        self._places = {
            PUBLIC: daemon.url.removeprefix("http://"),
            INTERNAL: daemon.internal_url.removeprefix("http://"),
            **({SITE: f"{site.url}/message-bus/"} if site else {}),
        }
        # Without a terminal, curl would draw its progress among what it prints.
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        self._env = {
            **{name: value for name, value in os.environ.items() if "MESSAGEBUSD" not in name},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "CURL_HOME": str(folder),
            "MESSAGEBUSD_URL": daemon.internal_url,
            "MESSAGEBUSD_KEY": daemon.key,
        }

    async def run(self, asked: Sequence[Command]) -> list[Ran]:
        """Run commands one after the other; variables that one sets, the next one has."""
        mark = f"--{secrets.token_hex(8)}--"
        script = "".join(
            f"{{ {self._with(self._places, each.text)}\n}} 2>&1\necho {mark} $?\n" for each in asked
        )
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            script,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._folder,
            env=self._env,
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        back = {real: page for page, real in self._places.items()}
        printed = self._with(back, output.decode())
        *pieces, rest = re.split(rf"{mark} (\d+)\n", printed)
        assert rest == "", rest
        assert len(pieces) == 2 * len(asked), printed
        return [
            Ran(each, int(status), piece)
            for each, piece, status in zip(asked, pieces[::2], pieces[1::2], strict=True)
        ]

    @staticmethod
    def _with(places: Mapping[str, str], text: str) -> str:
        for place, other in places.items():
            text = text.replace(place, other)
        return text


def is_shown(shown: str, printed: str) -> bool:
    """Whether a command printed what the page shows. Ends of lines do not matter."""
    pattern = ".*?".join(map(re.escape, _stripped(shown).split("…")))
    return re.fullmatch(pattern, _stripped(printed), re.DOTALL) is not None


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace("\r", "").splitlines()).strip("\n")


def check(ran: Ran) -> None:
    """A command did what the page says."""
    said = f"{ran.command.block}: {ran.command.text}\nprinted ({ran.status}):\n{ran.printed}"
    if ran.command.shown is None:
        assert ran.status == 0, said
    else:
        assert is_shown(ran.command.shown, ran.printed), f"{said}\nshown:\n{ran.command.shown}"
