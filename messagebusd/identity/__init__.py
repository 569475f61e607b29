"""Floor 1: who is asking. `base.IdentityLookup` is the contract.

`open_lookup` is the only place that knows all of them.
"""

from messagebusd.identity.answer import AnswerReader
from messagebusd.identity.application import Application
from messagebusd.identity.base import IdentityLookup, LookupObserver
from messagebusd.identity.question import Questions
from messagebusd.identity.static import AnonymousLookup, HeaderLookup
from messagebusd.identity.webhook import WebhookLookup
from messagebusd.settings import LookupSettings

__all__ = ["IdentityLookup", "open_lookup"]


def open_lookup(settings: LookupSettings, observer: LookupObserver) -> IdentityLookup:
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
        secret = webhook.secret.get_secret_value() if webhook.secret is not None else None
        return WebhookLookup(
            Application(str(webhook.url), secret),
            Questions(
                webhook.forward_headers,
                webhook.cache_ignore_headers,
                webhook.bypass_cache_headers,
            ),
            AnswerReader(settings.id_type, webhook.cache_ttl),
            observer,
            timeout=webhook.timeout,
            stale_if_error=webhook.stale_if_error,
            max_concurrency=webhook.max_concurrency,
        )
    return AnonymousLookup()
