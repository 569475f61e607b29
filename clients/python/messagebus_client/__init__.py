"""Publish to messagebusd, follow its channels, and receive as a page does."""

from messagebus_client._poller import PollerOptions, PollerStats, PollerStatus
from messagebus_client.async_client import AsyncClient, AsyncSubscription
from messagebus_client.async_poller import AsyncPoller
from messagebus_client.caches import (
    AsyncDistributedCache,
    AsyncDistributedCaches,
    DistributedCache,
    DistributedCaches,
)
from messagebus_client.client import Client, Subscription
from messagebus_client.errors import (
    ConnectionFailed,
    InvalidRequest,
    InvalidWebhook,
    MessageBusError,
    NotAllowed,
    RequestRefused,
    TemporarilyRefused,
    UnexpectedAnswer,
    WebhookFault,
)
from messagebus_client.poller import Poller
from messagebus_client.tokens import mint_token
from messagebus_client.types import (
    Gap,
    Interrupted,
    Message,
    Notice,
    Publication,
    Published,
    PublishOptions,
    Restarted,
)
from messagebus_client.webhooks import VerifiedWebhook, WebhookVerifier

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncDistributedCache",
    "AsyncDistributedCaches",
    "AsyncPoller",
    "AsyncSubscription",
    "Client",
    "ConnectionFailed",
    "DistributedCache",
    "DistributedCaches",
    "Gap",
    "Interrupted",
    "InvalidRequest",
    "InvalidWebhook",
    "Message",
    "MessageBusError",
    "NotAllowed",
    "Notice",
    "Poller",
    "PollerOptions",
    "PollerStats",
    "PollerStatus",
    "Publication",
    "PublishOptions",
    "Published",
    "RequestRefused",
    "Restarted",
    "Subscription",
    "TemporarilyRefused",
    "UnexpectedAnswer",
    "VerifiedWebhook",
    "WebhookFault",
    "WebhookVerifier",
    "mint_token",
]
