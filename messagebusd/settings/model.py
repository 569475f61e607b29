"""Everything that can be set: sections, keys, defaults, units and what each is for.

The text below a key is its documentation: ``docs/configuration.md`` and ``config/bus.toml`` are
made from it. Rules for one value belong to its kind (``values.py``); rules between values are the
``model_validator`` functions here, which name the key at fault so that its line can be found.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from messagebusd.settings.backend import BackendSettings
from messagebusd.settings.delivery import (
    ChannelSettings,
    FilterSettings,
    rules_that_never_match,
)
from messagebusd.settings.ingest import IngestSettings
from messagebusd.settings.lookup import LookupSettings
from messagebusd.settings.origins import Origin
from messagebusd.settings.rates import MaybeRate, Rate
from messagebusd.settings.section import Section, refuse
from messagebusd.settings.sites import Sites
from messagebusd.settings.values import (
    Address,
    BaseRoute,
    Bytes,
    ChannelText,
    Count,
    CountOrZero,
    Expiry,
    ExtraHeaders,
    FilePath,
    HeaderName,
    KeyName,
    Listen,
    Seconds,
    SecondsOrZero,
    Sha256,
    Switch,
    TcpAddress,
    Text,
    Token,
    TrustedProxy,
    WholeSecondsOrZero,
)


class ServerSettings(Section):
    """Where the daemon listens and how it stops."""

    listen: Listen = TcpAddress("127.0.0.1", 8090)
    """Public address: `host:port` (port 0 is any free one), `[v6]:port`, `unix:/path`, or `fd:N`,
    a socket passed by systemd (its first one is `fd:3`)."""

    internal_listen: Listen | None = Field(default=None, examples=["127.0.0.1:8091"])
    """Address of the API, the admin page, metrics and health. Unset: they are served on `listen` as
    well, and the proxy in front must forward only the subscribers' path."""

    base_route: BaseRoute = "/"
    """Path under which `message-bus/` is found. One slash is put at each end, doubled slashes are
    made one."""

    workers: Count = 1
    """Processes that serve together on the same addresses; with as many as there are cores, all of
    them are used. More than one needs a store that they can share."""

    trusted_proxies: tuple[TrustedProxy, ...] = ()
    """Peers whose forwarding and identity headers are believed: addresses, networks, and `unix`
    for every peer of a Unix socket."""

    reuse_port: Switch = False
    """Whether another daemon of the same user may listen on the same TCP addresses (SO_REUSEPORT),
    so that its successor can begin before it stops. A second one that is started by mistake is then
    not noticed: it takes a part of the connections."""

    shutdown_delay: SecondsOrZero = 0.0
    """How long after SIGTERM connections are still accepted and polls served as before, while
    `/readyz` says 503 and every answer ends its connection: for load balancers that need a moment
    to notice. `shutdown_timeout` begins after it."""

    shutdown_timeout: SecondsOrZero = 30.0
    """How long parked polls may stay after SIGTERM until they are ended. Polls that end by
    themselves before it, end at their own deadlines."""

    @model_validator(mode="after")
    def _two_addresses(self) -> Self:
        free_port = isinstance(self.listen, TcpAddress) and self.listen.port == 0
        if self.internal_listen == self.listen and not free_port:
            same = "must differ from listen; leave it out to serve the API on listen"
            refuse([("internal_listen", same)])
        return self


class PollSettings(Section):
    """What subscribers may do, and how long and how much."""

    enabled: Switch = True
    """Whether subscribers are served here; a node may only publish."""

    long_polling_enabled: Switch = True
    """Whether polls may wait for messages. When false, every poll is answered at once."""

    long_polling_interval: Seconds = 25.0
    """How long a poll waits at most. Keep it below the read timeouts of everything in front, which
    are often 30 or 60 seconds."""

    chunked_encoding_enabled: Switch = True
    """Whether subscribers that can read a stream get one."""

    max_active_clients: CountOrZero = 50_000
    """How many polls may wait at the same time; those above are answered at once. With several
    workers each has its part of them, rounded up."""

    max_channels: Count = 500
    """Channels in one poll."""

    max_body: Bytes = 262_144
    """Size of a poll's request body."""

    max_client_id: Bytes = 128
    """Length of a client id."""

    max_channel: Bytes = 512
    """Length of a channel name."""

    max_client_buffer: Bytes = 262_144
    """Unsent data of one subscriber, above which its response is ended; the backlog holds what it
    missed."""

    max_backlog_bytes: Bytes = 4_194_304
    """Size of the backlog in one answer; the rest follows with the subscriber's next poll."""

    client_rate: MaybeRate = Rate(100, 20)
    """Polls of one client that bring it nothing new: `"100/20s"` is 100 at once, and then as many
    in each 20 seconds. Those above are answered with 429. It catches broken clients, which can poll
    ten times a second for hours; one that polls often because there is news is not counted. Each
    worker counts for itself, here and below."""

    user_rate: MaybeRate = Field(default=None, examples=[Rate(600, 60)])
    """Polls of one user, all their tabs and devices together, whatever they bring. Unset: no
    limit."""

    address_rate: MaybeRate = Field(default=None, examples=[Rate(6000, 60)])
    """Polls from one address, whatever they bring; of IPv6 addresses the first 64 bits count.
    Hundreds of people can share an address, and each polls up to ten times a second. Unset: no
    limit."""

    body_timeout: Seconds = 10.0
    """How long a request body may take to arrive."""

    extra_response_headers: ExtraHeaders = Field(default={})
    """Headers added to every answer to a subscriber."""

    allow_broadcast: Switch = False
    """Whether anybody may publish by `POST message-bus/broadcast`. For debugging only."""


class CorsSettings(Section):
    """Which other origins' pages may subscribe. Cookies are never accepted from them: such pages
    say who they are with a header, for example a token in `Authorization`."""

    allow_origins: tuple[Origin, ...] = ()
    """Origins such as `https://forum.example`, or `*` for all. Where this is set, it alone decides:
    `poll.extra_response_headers` and the application cannot allow others."""

    allow_headers: tuple[HeaderName, ...] = (
        "Content-Type",
        "Authorization",
        "Dont-Chunk",
        "X-SILENCE-LOGGER",
        "X-Shared-Session-Key",
        "Discourse-Present",
        "Discourse-Deferred-Track-View",
        "Discourse-Deferred-Track-View-Topic-Id",
        "Discourse-Deferred-Track-View-Path",
        "Discourse-Deferred-Track-View-Query-String",
        "Discourse-Deferred-Track-View-Referrer",
        "Discourse-Deferred-Track-View-Session-Id",
    )
    """Request headers that pages may send: those of message-bus.js and of Discourse, and the one
    for tokens."""

    expose_headers: tuple[HeaderName, ...] = ("Retry-After",)
    """Response headers that pages may read. message-bus.js slows down only if it can read
    `Retry-After`."""

    max_age: WholeSecondsOrZero = 7200
    """How long browsers may keep the answer to a preflight; Chromium keeps none longer than
    7200."""


Scope = Literal["publish", "read", "admin"]


class ApiKey(Section):
    """A key for the API, with its own rights. It needs exactly one of `token`, `token_file` and
    `sha256`."""

    name: KeyName = Field(examples=["forum"])
    """What the key is called in logs; unique."""

    token: Token | None = None
    """The key itself."""

    token_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/forum.key"])
    """File that holds the key."""

    sha256: Sha256 | None = None
    """SHA-256 of the key in hexadecimal, as `messagebusd key` prints it."""

    scopes: tuple[Scope, ...] = Field(min_length=1, examples=[["publish", "read"]])
    """What the key may do: `publish`, `read`, `admin`."""

    channels: tuple[ChannelText, ...] | None = Field(
        default=None, min_length=1, examples=[["/chat/*"]]
    )
    """Patterns of the channels that it may be used for, such as `/chat/*`. Unset: all."""

    sites: tuple[Text, ...] | None = Field(default=None, min_length=1, examples=[["forum"]])
    """Sites that it may be used for. Unset: all."""

    expires: Expiry | None = Field(default=None, examples=[datetime(2030, 1, 1, tzinfo=UTC)])
    """When it stops being valid. Unset: never."""

    rate: MaybeRate = Field(default=None, examples=[Rate(1000, 1)])
    """How many messages may be published with it, those of batches included. Each worker counts for
    itself. Unset: no limit."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        # token_file counts as token: its content has become the token when it was loaded.
        has_token = self.token is not None or self.token_file is not None
        if has_token == (self.sha256 is not None):
            raise ValueError("needs exactly one of token, token_file and sha256")
        return self


class ApiSettings(Section):
    """The HTTP API for publishers and operators. Without any key, a random one is made and printed
    at start if the API listens on a loopback address or a Unix socket; otherwise the daemon refuses
    to start."""

    enabled: Switch = True
    """Whether the API is served here; a node may only serve polls."""

    key: Token | None = None
    """One key that may do everything."""

    key_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/api.key"])
    """File that holds this key."""

    key_rate: MaybeRate = Field(default=None, examples=[Rate(1000, 1)])
    """How many messages may be published with this key, see `rate` below. Unset: no limit."""

    keys: tuple[ApiKey, ...] = ()
    """Further keys, each with its own rights."""

    @model_validator(mode="after")
    def _different_keys(self) -> Self:
        problems: list[tuple[str, str]] = []
        names: set[str] = set()
        tokens = {self.key}
        for index, key in enumerate(self.keys):
            if key.name in names:
                problems.append((f"keys.{index}.name", f"is used twice: {key.name}"))
            if key.token is not None and key.token in tokens:
                problems.append((f"keys.{index}", "has the same token as another key"))
            names.add(key.name)
            tokens.add(key.token)
        refuse(problems)
        return self

    @property
    def has_key(self) -> bool:
        """Whether any key is configured."""
        return self.key is not None or self.key_file is not None or bool(self.keys)


class LogSettings(Section):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""

    format: Literal["text", "json"] = "text"
    """`text` for people, `json` for one object a line."""


class MetricsSettings(Section):
    """Prometheus metrics."""

    enabled: Switch = True
    """Whether `/metrics` is served."""


class AdminSettings(Section):
    """The admin page, at `/admin/` wherever the API is; see `docs/admin.md`."""

    enabled: Switch = True
    """Whether it is served. It needs the API, whose keys are what people log in with."""


class Settings(Section):
    """All of it."""

    server: ServerSettings = ServerSettings()
    poll: PollSettings = PollSettings()
    cors: CorsSettings = CorsSettings()
    backend: BackendSettings = BackendSettings()
    api: ApiSettings = ApiSettings()
    admin: AdminSettings = AdminSettings()
    ingest: IngestSettings = IngestSettings()
    lookup: LookupSettings = LookupSettings()
    channels: tuple[ChannelSettings, ...] = ()
    """Rules for channels."""
    sites: Sites = Field(default={}, examples=[{"forum.example": "forum", "*.example": "blogs"}])
    """Site of each host, where the lookup names none: host names in lower case, without port;
    `*.` before one stands for all names below it. Other hosts belong to the default site. Only the
    `Host` that a request carries counts, never `X-Forwarded-Host`."""
    filters: tuple[FilterSettings, ...] = ()
    """Filters on delivery."""
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def api_listen(self) -> Address:
        """Where the API is served."""
        return self.server.internal_listen or self.server.listen

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(self.contradictions())
        return self

    def contradictions(self) -> list[tuple[str, str]]:
        """Pairs of a key and what is wrong with it beside the others."""
        problems: list[tuple[str, str]] = []
        address = self.api_listen
        exposed = isinstance(address, TcpAddress) and not address.is_local
        if self.api.enabled and not self.api.has_key and exposed:
            open_api = f"is required, because the API listens on {address}"
            problems.append(("api.key", open_api))
        if self.lookup.mode == "headers" and not self.server.trusted_proxies:
            nobody = 'is "headers", which needs server.trusted_proxies: nobody else is believed'
            problems.append(("lookup.mode", nobody))
        if self.server.workers > 1 and self.backend.kind == "memory":
            alone = 'must be 1 where backend.kind is "memory", which processes cannot share'
            problems.append(("server.workers", alone))
        return problems + rules_that_never_match(self.channels)
