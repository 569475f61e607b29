"""Which site a Host stands for, where the lookup names none (SPEC 5, ``[sites]``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from messagebusd.identity.base import Identity

WILDCARD = "*."
# RFC 1035, 2.3.4, as it is written.
MAX_HOST = 253


class SiteMap:
    """Hosts in lower case and without ports, ``*.`` before one for all names below it.

    Only the Host of the request itself counts. ``X-Forwarded-Host`` does not, not even a trusted
    proxy's: most proxies hand on what the client wrote there.
    """

    def __init__(self, sites: Mapping[str, str]) -> None:
        self._sites = dict(sites)

    def site_of(self, host: str) -> str | None:
        """The site of a Host header's value; None if none is configured."""
        name = _without_port(host).lower().removesuffix(".")
        if (site := self._sites.get(name)) is not None:
            return site
        if len(name) > MAX_HOST:  # each dot costs: clients write there what they like
            return None
        while "." in name:  # the longest wildcard wins
            name = name.partition(".")[2]
            if (site := self._sites.get(WILDCARD + name)) is not None:
                return site
        return None

    def place(self, identity: Identity, host: str) -> Identity:
        """The identity at the site of this host, unless its lookup has named one."""
        if not self._sites or identity.site_id is not None:
            return identity
        site_id = self.site_of(host)
        return identity if site_id is None else replace(identity, site_id=site_id)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
