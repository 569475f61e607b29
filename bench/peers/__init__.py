"""What else there is: nginx with nchan, and the Ruby library under Puma.

Debian has nchan and Puma; of the library a checkout is needed, which `GEM_CHECKOUT` names. Each is
set up as its authors advise, without logs, and with room for as many clients as there are.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from bench.dialects import NCHAN
from bench.errors import BenchError
from bench.servers import MESSAGEBUSD, Launch, Peer

GEM_CHECKOUT = "MESSAGEBUS_GEM"
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_HERE = Path(__file__).parent


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def _nchan(folder: Path, key: str) -> Launch:
    nginx, port = _nginx(), _free_port()
    assert nginx is not None, "looked for before"
    config = folder / "nginx.conf"
    text = (_HERE / "nchan.conf").read_text()
    config.write_text(text.replace("MODULE", str(NCHAN_MODULE)).replace("PORT", str(port)))
    return Launch([nginx, "-e", "stderr", "-p", f"{folder}/", "-c", config], port)


def _gem(folder: Path, key: str) -> Launch:
    port = _free_port()
    library = Path(os.environ[GEM_CHECKOUT]) / "lib"
    return Launch(
        [
            *("puma", "--config", _HERE / "puma.rb", "--include", library),
            *("--bind", f"tcp://127.0.0.1:{port}?backlog=4096", _HERE / "gem.ru"),
        ],
        port,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


NGINX = Peer(
    "nchan",
    _nchan,
    frozenset({"park", "fan-out", "unheard", "saturated", "steady", "publish"}),
    NCHAN,
)
GEM = Peer(
    "gem",
    _gem,
    frozenset(
        {
            *("park", "fan-out", "targeted", "chosen", "unheard", "saturated", "steady"),
            *("polls", "news", "long-polls", "publish"),
        }
    ),
)


def found() -> tuple[Peer, ...]:
    """messagebusd, and those peers that are there. Raises BenchError if none is."""
    peers = [MESSAGEBUSD]
    if _nginx() and NCHAN_MODULE.exists():
        peers.append(NGINX)
    if shutil.which("puma") and (Path(os.environ.get(GEM_CHECKOUT) or "/nowhere") / "lib").is_dir():
        peers.append(GEM)
    if len(peers) == 1:
        raise BenchError(
            "no peer is installed: apt-get install nginx libnginx-mod-nchan, or puma, with "
            f"{GEM_CHECKOUT} naming a checkout of discourse/message_bus"
        )
    return tuple(peers)


def versions() -> dict[str, str]:
    """Of what is measured, as far as it is there."""
    found = []
    if nginx := _nginx():
        done = subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True)
        found.append(done.stderr.strip().removeprefix("nginx version: "))
        module = subprocess.run(
            ["dpkg-query", "--show", "libnginx-mod-nchan"],  # a module does not say its version
            check=False,
            capture_output=True,
            text=True,
        )
        found.append(" ".join(module.stdout.split()))
    if puma := shutil.which("puma"):
        done = subprocess.run([puma, "--version"], check=True, capture_output=True, text=True)
        found.append(done.stdout.strip())
        ruby = subprocess.run(["ruby", "--version"], check=True, capture_output=True, text=True)
        found.append(" ".join(ruby.stdout.split()[:2]))
    if checkout := os.environ.get(GEM_CHECKOUT):
        text = (Path(checkout) / "lib/message_bus/version.rb").read_text()
        found += [f"message_bus {version}" for version in re.findall('VERSION = "(.+)"', text)]
    return {"peers": ", ".join(each for each in found if each)}
