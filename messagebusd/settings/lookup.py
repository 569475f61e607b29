"""The settings of identity lookups."""

from __future__ import annotations

import re
from base64 import b64decode
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from messagebusd.settings.section import Section, refuse
from messagebusd.settings.values import (
    Count,
    FilePath,
    HeaderName,
    HeaderPattern,
    Kind,
    Seconds,
    SecondsOrZero,
    Switch,
    Text,
    Token,
    WebUrl,
)

# RFC 7518, 3.2: a secret is at least as long as the hash.
_MIN_SECRET_BYTES = 32
# RFC 6265, 4.1.1: a cookie's name is a token.
_COOKIE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _signing_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < _MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {_MIN_SECRET_BYTES} characters")
    return secret


def _public_pem(pem: str) -> str:
    if "PRIVATE KEY-----" in pem:
        raise ValueError("must be the public key, and this is a private one")
    return pem


def _cookie_name(name: str) -> str:
    if not _COOKIE_NAME.fullmatch(name):
        raise ValueError("is not a valid cookie name")
    return name


def _claim_name(name: str) -> str:
    if not name:
        raise ValueError("must not be empty")
    return name


SigningSecret = Annotated[
    Token, AfterValidator(_signing_secret), Kind("text in quotes", hidden=True)
]
# No secret, but the place where a private key is pasted by mistake.
PublicPem = Annotated[Text, AfterValidator(_public_pem), Kind("a public key in PEM", hidden=True)]
CookieName = Annotated[Text, AfterValidator(_cookie_name), Kind("a cookie name")]
ClaimName = Annotated[Text, AfterValidator(_claim_name), Kind("the name of a claim")]
# Every poll has its first bytes within two seconds (SPEC 2.4); the store needs its part of them.
MAX_LOOKUP_SECONDS = 1.8
# What somebody is known by can never be ignored where answers are shared.
CREDENTIALS = ("cookie", "authorization")


class LookupHeaders(Section):
    """Headers that name the user, in mode `headers`."""

    user: HeaderName = "X-MessageBus-User"
    """User id. A value that is JSON (`7`, `"7"`) is read as JSON, any other as text; `null` and
    `""` are refused. An anonymous visitor has no such header, or an empty one."""

    groups: HeaderName = "X-MessageBus-Groups"
    """Group ids, as a JSON list."""

    site: HeaderName = "X-MessageBus-Site"
    """Site id."""

    @model_validator(mode="after")
    def _three_headers(self) -> Self:
        if len({name.lower() for name in (self.user, self.groups, self.site)}) < 3:
            raise ValueError("needs three different headers for user, groups and site")
        return self


class LookupWebhook(Section):
    """The host application that is asked, in mode `webhook`."""

    url: WebUrl | None = Field(default=None, examples=["http://127.0.0.1:8000/messagebus/lookup"])
    """Where each poll's request is described by `POST`; required in mode `webhook`."""

    timeout: Seconds = 1.5
    """How long one lookup may take altogether, waiting for its turn and a second try included; at
    most 1.8. Then an older answer is used, or the subscriber is told to come back later."""

    forward_headers: tuple[HeaderPattern, ...] = (
        "cookie",
        "authorization",
        "user-agent",
        "accept-language",
        "x-forwarded-*",
    )
    """Request headers that are passed on; `*` stands for anything. `x-forwarded-*`, `forwarded` and
    `x-real-ip` are passed on from trusted proxies only."""

    cache_ttl: SecondsOrZero = 30.0
    """How long an answer that names no `cache_ttl` is used for further polls of the same visitor.
    0: each poll asks, nothing is kept or shared, also not for `stale_if_error`."""

    cache_ignore_headers: tuple[HeaderPattern, ...] = (
        "user-agent",
        "accept-language",
        "x-forwarded-for",
        "x-forwarded-port",
        "x-forwarded-proto",
    )
    """Headers that are passed on, but tell no visitors apart: an answer is shared by all polls to
    the same host that differ only in these. `cookie` and `authorization` cannot be among them."""

    bypass_cache_headers: tuple[HeaderName, ...] = Field(
        default=(), examples=[["discourse-present", "discourse-deferred-track-view"]]
    )
    """Polls that carry one of these always reach the application, because it does more with them
    than tell who polls. They are passed on as well. One that says who polls must also be in
    `forward_headers`: otherwise the answer is used for polls without it."""

    stale_if_error: SecondsOrZero = 300.0
    """How long after its time an answer is still used while the application cannot be asked."""

    max_concurrency: Count = 32
    """Lookups that are under way at the same time, for each worker; others wait for their turn."""

    secret: Token | None = None
    """Secret that requests are signed with (standardwebhooks.com); `whsec_` and base64, or text."""

    secret_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/webhook.secret"])
    """File that holds this secret."""

    @model_validator(mode="after")
    def _usable(self) -> Self:
        problems = []
        if self.timeout > MAX_LOOKUP_SECONDS:
            late = f"must be {MAX_LOOKUP_SECONDS} at most: polls are answered within two seconds"
            problems.append(("timeout", late))
        for pattern in self.cache_ignore_headers:
            for name in CREDENTIALS:
                if fnmatchcase(name, pattern):
                    shared = (
                        f"holds {pattern}: visitors with different {name} would be taken for one"
                    )
                    problems.append(("cache_ignore_headers", shared))
        if self.secret is not None and not _is_secret(self.secret.get_secret_value()):
            problems.append(("secret", "needs base64 after whsec_"))
        refuse(problems)
        return self


def _is_secret(secret: str) -> bool:
    if not secret.startswith("whsec_"):
        return True
    try:
        return bool(b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        return False


class LookupJwt(Section):
    """Signed tokens (JWT) that the host application makes, in mode `jwt`. Tokens are verified with
    exactly one of `secret`, `public_key`, `jwks_file` and `jwks_url`. The key decides how: a secret
    HS256, an RSA key RS256, a P-256 key ES256, an Ed25519 key EdDSA."""

    secret: SigningSecret | None = None
    """Secret shared with the application, of at least 32 characters."""

    secret_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/jwt.secret"])
    """File that holds the secret. It is read again when it changes, as are the other files."""

    public_key: PublicPem | None = None
    """Public key of the application in PEM."""

    public_key_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/jwt.pem"])
    """File that holds the public key."""

    jwks_file: FilePath | None = Field(default=None, examples=["/etc/messagebusd/jwks.json"])
    """File with a JWK set, from which a token's `kid` chooses; it may hold secrets (`oct`)."""

    jwks_url: WebUrl | None = Field(
        default=None, examples=["https://forum.example/.well-known/jwks.json"]
    )
    """URL of a JWK set. While it does not answer, the keys fetched last stay valid; before any were
    fetched, subscribers with a token are told to come back later."""

    jwks_max_age: Seconds = 300.0
    """How long fetched keys are used until they are fetched again. A token with an unknown `kid`
    has them fetched at once, but not more than every ten seconds."""

    header: HeaderName = "Authorization"
    """Header that holds the token: in `Authorization` after the word `Bearer`, in any other alone.
    An `Authorization` of another scheme is no token."""

    cookie: CookieName | None = Field(default=None, examples=["poll_token"])
    """Cookie that holds the token. Two different tokens in one request are refused."""

    required: Switch = False
    """Whether a subscriber without a token is refused, rather than an anonymous visitor. One whose
    token is not valid is always refused."""

    issuer: Text | None = Field(default=None, examples=["https://forum.example"])
    """What `iss` must be. Unset: it may be anything."""

    audience: Text | None = Field(default=None, examples=["messagebusd"])
    """What must be in `aud`. Unset: a token with an `aud` is for somebody else, and refused."""

    leeway: SecondsOrZero = 10.0
    """How far the application's clock may be wrong: a token is still taken so long after its `exp`,
    and already so long before its `nbf`. A poll waits no longer than until `exp`."""

    user_claim: ClaimName = "sub"
    """Claim with the user id. Dots lead into objects (`realm.user`), unless there is a claim of the
    whole name. A token without it is an anonymous visitor's."""

    groups_claim: ClaimName = "groups"
    """Claim with the list of group ids."""

    site_claim: ClaimName = "site"
    """Claim with the site id."""

    channels_claim: ClaimName = "channels"
    """Claim with a list of patterns, such as `/chat/*`, of the only channels that may be polled."""

    @property
    def key_names(self) -> list[str]:
        """The settings that say what tokens are verified with."""
        names = []
        for name in ("secret", "public_key", "jwks_file", "jwks_url"):
            # A file's content has become the value when it was loaded.
            if getattr(self, f"{name}_file", None) is not None:
                names.append(f"{name}_file")
            elif getattr(self, name) is not None:
                names.append(name)
        return names

    @model_validator(mode="after")
    def _one_place_for_cookies(self) -> Self:
        if self.header.lower() == "cookie":
            refuse([("header", "cannot be Cookie; cookie names the cookie")])
        return self


class LookupSettings(Section):
    """How the daemon learns who is polling."""

    mode: Literal["none", "headers", "webhook", "jwt"] = "none"
    """`none`: everybody is anonymous. `headers`: a trusted proxy sends the headers below.
    `webhook`: the host application is asked. `jwt`: subscribers bring a signed token."""

    id_type: Literal["as_is", "integer", "string"] = "as_is"
    """What user and group ids are turned into; an audience matches by type, `7` is not `"7"`."""

    headers: LookupHeaders = LookupHeaders()
    webhook: LookupWebhook = LookupWebhook()
    jwt: LookupJwt = LookupJwt()

    @model_validator(mode="after")
    def _somebody_to_ask(self) -> Self:
        if self.mode == "webhook" and self.webhook.url is None:
            refuse([("webhook.url", 'is required, because lookup.mode is "webhook"')])
        if self.mode == "jwt":
            names = self.jwt.key_names
            if not names:
                needed = "needs one of secret, public_key, jwks_file and jwks_url"
                refuse([("jwt", f'{needed}, because lookup.mode is "jwt"')])
            both = f"cannot be given together with lookup.jwt.{names[0]}"
            refuse([(f"jwt.{name}", both) for name in names[1:]])
        return self
