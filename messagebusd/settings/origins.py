"""Origins of pages, written as browsers send them: a header of another spelling never matches."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from messagebusd.settings.values import Kind, Text

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s,:\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def _origin(origin: str) -> str:
    if origin == "*":
        return origin
    if origin == "null":
        # Any page can be given that origin, by putting it into a sandboxed frame.
        raise ValueError('would allow every page; if that is meant, write "*"')
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None:
        raise ValueError('must be "*" or scheme://host[:port], without a slash or path at the end')
    scheme, host, port = found[1], found[2], found[3]
    if "*" in host:
        raise ValueError('must name one host; all origins are written "*"')
    if not host.isascii():
        raise ValueError("must have its host in ASCII, as browsers send it: xn--…")
    if port is None:
        return f"{scheme}://{host}"
    if not 0 < int(port) <= 65535:
        raise ValueError("has no valid port")
    if _DEFAULT_PORTS.get(scheme) == int(port):
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{int(port)}"


Origin = Annotated[
    Text, AfterValidator(_origin), Kind('an origin, such as "https://forum.example"')
]
