"""The snippets of docs/jwt.md make tokens that are taken; so does its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from messagebusd.identity.jwks import FixedKeys
from messagebusd.identity.jwt import JwtLookup
from messagebusd.identity.jwt_keys import one_key, secret_key
from messagebusd.settings import LookupJwt
from tests.support.pages import Page
from tests.support.program import find_program
from tests.support.tokens import SECRET

PAGE = Page("docs/jwt.md", __name__)
PYTHON = PAGE.block("python", "poll_token").text
NODE = PAGE.block("js", "pollToken").text
RUBY = PAGE.block("ruby", "poll_token").text
GO = PAGE.block("go", "pollToken").text
COMMANDS = PAGE.block("console", "messagebusd token").text

PROGRAMS = {
    "python": (sys.executable, "-c", f"{PYTHON}\nprint(poll_token(42, [1]))"),
    "node": ("node", "-e", f"{NODE}\nconsole.log(pollToken(42, [1]))"),
    "ruby": (
        "ruby",
        "-e",
        f"{RUBY}\nUser = Struct.new(:id, :group_ids)\nputs poll_token(User.new(42, [1]))",
    ),
}


async def _taken(token: str) -> None:
    lookup = JwtLookup(FixedKeys(one_key(secret_key(SECRET.encode()))), LookupJwt())
    found = await lookup.verify(token.strip())
    assert (found.user_id, found.group_ids) == (42, {1})


@pytest.mark.parametrize("language", PROGRAMS)
async def test_a_snippet_makes_a_token(language: str) -> None:
    made = subprocess.run(  # noqa: ASYNC221
        PROGRAMS[language],
        env={"MESSAGEBUS_SECRET": SECRET, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    await _taken(made.stdout)


def test_the_snippet_in_go_compiles(tmp_path: Path) -> None:
    """Debian's Go brings the library along, where modules are not looked up on the network."""
    imports = 'import (\n"os"\n"time"\n\n"github.com/golang-jwt/jwt"\n)'
    (tmp_path / "token.go").write_text(f"package token\n{imports}\n{GO}")
    done = subprocess.run(
        [find_program("go", "golang-go"), "vet", "."],
        cwd=tmp_path,
        env={**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


async def test_the_commands_make_tokens(tmp_path: Path) -> None:
    def run(command: str) -> str:
        """What a command prints, which must succeed."""
        return subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env={"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=30,
        ).stdout

    find_program("openssl", "openssl")
    run("openssl genpkey -algorithm ed25519 -out private.pem")
    run("openssl pkey -in private.pem -pubout -out public.pem")
    keys = (f'secret = "{SECRET}"', 'public_key_file = "public.pem"')
    made = []
    for line, key in zip(COMMANDS.splitlines(), keys, strict=True):
        settings = f'[lookup]\nmode = "jwt"\n[lookup.jwt]\n{key}\n'
        (tmp_path / "bus.toml").write_text(settings)
        made.append(run(line.removeprefix("$ ")))
    await _taken(made[0])
    assert made[1].count(".") == 2
