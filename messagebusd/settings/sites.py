"""The kind of value that says which host belongs to which site."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from messagebusd.settings.values import Kind, Text

MAX_SITE_BYTES = 128

_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
# It becomes part of stored names (SPEC 3.1).
_SITE = re.compile(r"[^\x00-\x1f\x7f-\x9f|$]+")


def _sites(sites: Mapping[str, str]) -> Mapping[str, str]:
    for host, site in sites.items():
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"holds {host!r}, which is not a host name in lower case without a port"
            )
        if not _SITE.fullmatch(site) or len(site.encode()) > MAX_SITE_BYTES:
            raise ValueError(
                f"needs a site id for {host}: 1 to {MAX_SITE_BYTES} bytes, without | and $"
            )
    return sites


Sites = Annotated[
    Mapping[str, Text], AfterValidator(_sites), Kind("a table of host names and site ids")
]
