"""``messagebusd token``: make a token that `lookup.mode = "jwt"` takes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from messagebusd.cli.client import identifier
from messagebusd.cli.daemon import config_option, exit_on_problems, load_or_exit
from messagebusd.errors import ConfigurationError, InvalidToken
from messagebusd.settings import LookupSettings

if TYPE_CHECKING:
    from messagebusd.identity.jwt_keys import Algorithm, PrivateKey

_TTL = re.compile(r"([1-9][0-9]{0,8})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(context: click.Context, parameter: click.Parameter, text: str) -> int:
    if (match := _TTL.fullmatch(text)) is None:
        raise click.BadParameter("must be a number of seconds, or such as 90s, 15m, 1h or 7d")
    return int(match[1]) * _UNITS[match[2]]


@click.command()
@config_option
@click.option("--user", metavar="ID", help="Whose token it is. None: an anonymous visitor's.")
@click.option("--group", "groups", multiple=True, metavar="ID", help="A group of the user.")
@click.option("--site", metavar="SITE", help="The user's site.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="PATTERN",
    help="Only these channels may be polled, such as '/chat/*'.",
)
@click.option(
    "--ttl",
    callback=_seconds,
    default="1h",
    show_default=True,
    metavar="TIME",
    help="How long it is valid: 90s, 15m, 1h, 7d.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Private key (PEM) to sign with, in place of lookup.jwt.secret.",
)
@click.option("--kid", metavar="ID", help="What the key is called in the JWK set.")
def token(
    path: Path | None,
    user: str | None,
    groups: Sequence[str],
    site: str | None,
    channels: Sequence[str],
    ttl: int,
    key_file: Path | None,
    kid: str | None,
) -> None:
    """Make a token for a subscriber.

    Prints the token, signed with the secret of the settings or with a private key, which are never
    given on the command line. Names of claims, issuer and audience are those of lookup.jwt, and
    what the daemon would refuse is not printed. An ID that is written like an integer is one,
    unless lookup.id_type says otherwise.

    \b
    Examples:
      messagebusd token --config bus.toml --user 42 --group 1 --site forum
      messagebusd token --config bus.toml --user 42 --channel '/chat/*' --ttl 15m
      messagebusd token --config bus.toml --user 42 --key-file private.pem --kid 2030-01
    """
    settings = load_or_exit(path).settings.lookup
    if settings.mode != "jwt":
        where = "" if path else " (no file was read: --config names one)"
        text = f'warning: lookup.mode is "{settings.mode}", which reads no tokens{where}'
        click.echo(text, err=True)
    claims = _claims(settings, user, groups, site, channels, ttl)
    with exit_on_problems():
        click.echo(asyncio.run(_make(settings, claims, key_file, kid)))


def _claims(
    settings: LookupSettings,
    user: str | None,
    groups: Sequence[str],
    site: str | None,
    channels: Sequence[str],
    ttl: int,
) -> dict[str, object]:
    names, now = settings.jwt, int(time.time())
    claims: dict[str, object] = {"iat": now, "exp": now + ttl}
    said: dict[str, object] = {
        "iss": names.issuer,
        "aud": names.audience,
        names.user_claim: None if user is None else identifier(user),
        names.groups_claim: [identifier(group) for group in groups] or None,
        names.site_claim: site,
        names.channels_claim: list(channels) or None,
    }
    claims.update((name, value) for name, value in said.items() if value is not None)
    return claims


async def _make(
    settings: LookupSettings, claims: dict[str, object], key_file: Path | None, kid: str | None
) -> str:
    """Sign, and see whether the daemon would take it. Raises ConfigurationError."""
    # Imported here, because other commands need none of it.
    from messagebusd.identity.jwks import open_keys
    from messagebusd.identity.jwt import JwtLookup
    from messagebusd.identity.jwt_keys import sign

    # What is at a URL is public, so that it neither signs nor is needed here.
    is_local = bool(settings.jwt.key_names) and settings.jwt.jwks_url is None
    signer: tuple[Algorithm, bytes | PrivateKey]
    if key_file is not None:
        signer = _read_private_key(key_file)
    else:
        known = await open_keys(settings.jwt).find(kid) if is_local else None
        if known is None or not isinstance(known.material, bytes):
            missing = "there is no secret to sign with"
            raise ConfigurationError(
                [f"{missing}: set lookup.jwt.secret_file, or give --key-file (and --kid)"]
            )
        signer = known.algorithm, known.material
    algorithm, key = signer
    signed = sign(claims, algorithm, key, kid)
    if is_local:
        try:
            await JwtLookup.from_settings(settings).verify(signed)
        except InvalidToken as refusal:
            raise ConfigurationError([f"the daemon would refuse it: {refusal}"]) from None
    return signed


def _read_private_key(path: Path) -> tuple[Algorithm, PrivateKey]:
    from messagebusd.identity.jwks import reason_of
    from messagebusd.identity.jwt_keys import UnusableKey, private_key

    try:
        return private_key(path.read_bytes())
    except (OSError, UnusableKey) as error:
        problem = f"--key-file cannot be used: {path}: {reason_of(error)}"
        raise ConfigurationError([problem]) from None
