"""Floor 1: who is asking. `base.IdentityLookup` is the contract.

`open_lookup` is the only place that knows all of them.
"""

from messagebusd.identity.base import IdentityLookup
from messagebusd.identity.static import AnonymousLookup, HeaderLookup
from messagebusd.settings import LookupSettings


def open_lookup(settings: LookupSettings) -> IdentityLookup:
    """The configured lookup."""
    if settings.mode == "headers":
        names = settings.headers
        return HeaderLookup(names.user, names.groups, names.site, settings.id_type)
    return AnonymousLookup()
