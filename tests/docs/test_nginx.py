"""Lines for nginx are taken by nginx."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.pages import Block, all_pages
from tests.support.program import find_program

BLOCKS = [block for page in all_pages(__name__) for block in page.blocks("nginx")]
# Whom pages forward to.
UPSTREAMS = "".join(
    f"upstream {name} {{ server 127.0.0.1:{port}; }}\n"
    for name, port in (("messagebusd", 8090), ("application", 8000))
)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_nginx_takes_them(block: Block, tmp_path: Path) -> None:
    is_of_a_server = block.text.startswith(("location", "proxy_"))
    lines = f"server {{ listen 127.0.0.1:1; {block.text} }}" if is_of_a_server else block.text
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{UPSTREAMS}{lines}\n}}"
    )
    command = [find_program("nginx", "nginx-light"), "-t", "-p", tmp_path, "-c", "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
