"""The snippets of docs/jwt.md make tokens that are taken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from messagebusd.identity.jwks import FixedKeys
from messagebusd.identity.jwt import JwtLookup
from messagebusd.identity.jwt_keys import one_key, secret_key
from messagebusd.settings import LookupJwt
from tests.support.program import find_program
from tests.support.tokens import SECRET

PAGE = (Path(__file__).parents[2] / "docs/jwt.md").read_text()


def snippet(language: str, word: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (found,) = [each for each in blocks if word in each]
    return found


@pytest.mark.parametrize("language", ["python", "node"])
async def test_a_snippet_makes_a_token(language: str) -> None:
    if language == "python":
        code = snippet("python", "poll_token") + "\nprint(poll_token(42, [1]))"
        command = [sys.executable, "-c", code]
    else:
        code = snippet("js", "pollToken") + "\nconsole.log(pollToken(42, [1]))"
        command = [find_program("node", "nodejs"), "-e", code]
    made = subprocess.run(  # noqa: ASYNC221
        command,
        env={"MESSAGEBUS_SECRET": SECRET},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    lookup = JwtLookup(FixedKeys(one_key(secret_key(SECRET.encode()))), LookupJwt())
    found = await lookup.verify(made.stdout.strip())
    assert (found.user_id, found.group_ids) == (42, {1})
