"""The settings: one frozen tree, read once, checked whole.

``model.py`` is the list of everything that can be set; its parts about lookups, stores, the Redis
door, channel rules and filters are in ``lookup.py``, ``backend.py``, ``ingest.py`` and
``delivery.py``. ``section.py`` is what sections have in common, ``values.py``, ``rates.py`` and
``origins.py`` the kinds of values in it, ``loading.py`` how defaults, file, environment and command
line become one tree, ``reload.py`` what changes when they are read again, ``toml_lines.py`` where
in the file a key stands, ``reference.py`` the tree as text (sample file, documentation).

This package imports the standard library, pydantic, ``messagebusd.errors`` and what checks channel
patterns and expressions, and does no I/O but reading the configuration file and the files that
secrets come from.
"""

from messagebusd.settings.backend import (
    BackendSettings,
    MemorySettings,
    PostgresSettings,
    RedisConnection,
    RedisSettings,
)
from messagebusd.settings.delivery import ChannelSettings, FilterSettings
from messagebusd.settings.ingest import IngestSettings, RedisInbox
from messagebusd.settings.loading import LoadedSettings, Sources, load_settings
from messagebusd.settings.lookup import LookupHeaders, LookupJwt, LookupSettings, LookupWebhook
from messagebusd.settings.model import (
    ApiKey,
    ApiSettings,
    CorsSettings,
    LogSettings,
    MetricsSettings,
    PollSettings,
    Scope,
    ServerSettings,
    Settings,
)
from messagebusd.settings.rates import Rate
from messagebusd.settings.reload import Reload, merge
from messagebusd.settings.values import (
    Address,
    FdAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
)

__all__ = [
    "Address",
    "ApiKey",
    "ApiSettings",
    "BackendSettings",
    "ChannelSettings",
    "CorsSettings",
    "FdAddress",
    "FilterSettings",
    "IngestSettings",
    "LoadedSettings",
    "LogSettings",
    "LookupHeaders",
    "LookupJwt",
    "LookupSettings",
    "LookupWebhook",
    "MemorySettings",
    "MetricsSettings",
    "PollSettings",
    "PostgresSettings",
    "Rate",
    "RedisConnection",
    "RedisInbox",
    "RedisSettings",
    "Reload",
    "Scope",
    "ServerSettings",
    "Settings",
    "Sources",
    "TcpAddress",
    "UnixAddress",
    "load_settings",
    "merge",
    "parse_address",
]
