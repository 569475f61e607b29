"""Floor 1: who is asking. `base.IdentityLookup` is the contract.

`open_lookup` is the only place that knows all of them.
"""

from messagebusd.identity.base import IdentityLookup
from messagebusd.identity.static import AnonymousLookup, HeaderLookup
from messagebusd.identity.webhook import WebhookLookup
from messagebusd.settings import LookupSettings


def open_lookup(settings: LookupSettings) -> IdentityLookup:
    """The configured lookup. Raises ConfigurationError where its keys cannot be used."""
    if settings.mode == "jwt":
        # Imported here, because cryptography takes time and memory in every worker.
        from messagebusd.identity.jwt import JwtLookup

        return JwtLookup.from_settings(settings)
    if settings.mode == "headers":
        names = settings.headers
        return HeaderLookup(names.user, names.groups, names.site, settings.id_type)
    if settings.mode == "webhook":
        webhook = settings.webhook
        return WebhookLookup(
            str(webhook.url),
            timeout=webhook.timeout,
            forward_headers=webhook.forward_headers,
            secret=webhook.secret.get_secret_value() if webhook.secret is not None else None,
            id_type=settings.id_type,
        )
    return AnonymousLookup()
