"""The kinds of values that settings have: types, their checks, and how each is described.

A kind is an annotated type whose metadata holds a ``Kind``: the words that both the error message
and the documentation use for what is allowed. Checks raise ``ValueError`` with a sentence that
reads after the key's name; nothing here knows where a value came from.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainValidator,
    SecretStr,
    Strict,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be, in words that name the unit.

    ``hidden`` values never appear in messages or listings.
    """

    allowed: str
    hidden: bool = False


# -- listen addresses


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name, IPv4 or IPv6 address without brackets) and a port; port 0 is any free one."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix domain socket."""

    path: Path

    @property
    def is_local(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A listening socket that this process was started with; systemd's first one is 3."""

    number: int

    @property
    def is_local(self) -> bool:
        # What the socket is bound to can be asked only where it is opened.
        return False

    def __str__(self) -> str:
        return f"fd:{self.number}"


Address = TcpAddress | UnixAddress | FdAddress

_ADDRESS = Kind('"host:port", "[v6]:port", "unix:/path" or "fd:N"')
# sun_path has 108 bytes on Linux and 104 on BSD and macOS, the final NUL included.
_MAX_UNIX_PATH = 103
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def parse_address(text: str) -> Address:
    """Read a listen address.

    Raises ``ValueError`` when it is none of ``host:port``, ``[v6]:port``, ``unix:/path``, ``fd:N``.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ValueError("needs an absolute path after unix:")
        if len(path.encode()) > _MAX_UNIX_PATH:
            raise ValueError(f"has a socket path of more than {_MAX_UNIX_PATH} bytes")
        return UnixAddress(Path(path))
    if text.startswith("fd:"):
        number = text.removeprefix("fd:")
        if not re.fullmatch(r"[0-9]{1,6}", number) or int(number) < 3:
            raise ValueError("needs a descriptor number of 3 or more after fd:")
        return FdAddress(int(number))
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"must be {_ADDRESS.allowed}")
    return TcpAddress(_host(host), int(port))


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise ValueError("has no IPv6 address between the brackets") from None
    if ":" in text:
        raise ValueError("needs brackets around an IPv6 address, such as [::1]:8090")
    if not text:
        raise ValueError("needs a host before the port; 0.0.0.0 or [::] is every interface")
    if re.fullmatch(r"[0-9.]+", text):
        try:
            return str(ipaddress.IPv4Address(text))
        except ValueError:
            raise ValueError("has no IPv4 address before the port") from None
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(f"must be {_ADDRESS.allowed}")
    return text


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {_ADDRESS.allowed}")
    return parse_address(value)


Listen = Annotated[Address, BeforeValidator(_address), _ADDRESS]


# -- names, paths and headers

# RFC 9110: a token. Values: visible characters, space and tab between them, no control characters.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")
# What the protocol decides: clients compare the type as a string (SPEC 2.4).
_OWN_HEADERS = frozenset({"content-length", "content-type", "transfer-encoding", "connection"})
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _base_route(route: str) -> str:
    segments = [segment for segment in route.split("/") if segment]
    if not _PATH.fullmatch(route) or {".", ".."} & set(segments):
        raise ValueError("must be a path, such as /forum/")
    return "/" + "".join(f"{segment}/" for segment in segments)


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("is not a valid header name")
    return name


def _extra_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    seen: set[str] = set()
    for name, value in headers.items():
        lower = name.lower()
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"holds {name!r}, which is not a valid header name")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"needs a value for {name} that is printable ASCII, without line breaks, "
                "not empty, and without spaces at its ends"
            )
        if lower in _OWN_HEADERS:
            raise ValueError(f"cannot hold {name}, which the server decides")
        if lower in seen:
            raise ValueError(f"holds {name} twice; header names ignore case")
        seen.add(lower)
    return headers


def _header_pattern(pattern: str) -> str:
    if not _TOKEN.fullmatch(pattern):
        raise ValueError("must be a header name, in which * stands for anything")
    return pattern.lower()


def _web_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that begins with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password")
    return url


def _redis_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be a URL that begins with redis://, rediss:// or unix://")
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise ValueError("needs an absolute path after unix://")
    return url


def _postgres_url(url: str) -> str:
    if urlsplit(url).scheme not in ("postgres", "postgresql"):
        raise ValueError("must be a URL that begins with postgresql://")
    return url


def _pubsub_channel(name: str) -> str:
    # PostgreSQL cuts identifiers at 63 bytes, and LISTEN would then hear another channel.
    if not re.fullmatch(r"[\x21-\x7e]{1,63}", name):
        raise ValueError("must be 1 to 63 printable ASCII characters without spaces")
    return name


_CODEC = Kind('"json", "compact" or "package.module:Codec"')


def _callable_name(name: str) -> str:
    if not _CALLABLE.fullmatch(name):
        raise ValueError("must be package.module:function")
    return name


def _codec_name(name: str) -> str:
    if name not in ("json", "compact") and not _CALLABLE.fullmatch(name):
        raise ValueError(f"must be {_CODEC.allowed}")
    return name


def _proxy(value: object) -> object:
    if value == "unix":
        return value
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be {_PROXY.allowed}")
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        pass
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"must be {_PROXY.allowed}") from None
    raise ValueError(f"is an address inside a network; the network is written {network}")


def _channel(value: str) -> str:
    if not value.startswith("/") or any(ord(char) < 0x20 or ord(char) == 0x7F for char in value):
        raise ValueError("must begin with / and hold no control characters")
    return value


_PROXY = Kind('an address, a network such as "10.0.0.0/8", or "unix"')
_PATH_KIND = Kind("a path in quotes")


def _file_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"must be {_PATH_KIND.allowed}")
    return Path(value)


# -- secrets


def _token(secret: SecretStr) -> SecretStr:
    # It travels as "Authorization: Bearer <token>", so that anything else could never match.
    if not re.fullmatch(r"[\x21-\x7e]+", secret.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces, and not empty")
    return secret


def _sha256(digest: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digest):
        raise ValueError("must be 64 hexadecimal digits, as printed by `messagebusd key`")
    return digest.lower()


def _expiry(value: object) -> object:
    # Lists of keys from the environment are JSON, which has no dates.
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            return value
    return value


_KEY_NAME = Kind("1 to 64 letters, digits, dots, dashes or underscores")


def key_name(name: str) -> str:
    """Check the name of an API key."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ValueError(f"must be {_KEY_NAME.allowed}")
    return name


# -- kinds

Text = Annotated[str, Strict(), Kind("text in quotes")]
Switch = Annotated[bool, Strict(), Kind("true or false")]
Seconds = Annotated[
    float,
    Strict(),
    Field(gt=0, allow_inf_nan=False),
    Kind("a number of seconds, more than 0"),
]
SecondsOrZero = Annotated[
    float,
    Strict(),
    Field(ge=0, allow_inf_nan=False),
    Kind("a number of seconds, 0 or more"),
]
WholeSeconds = Annotated[int, Strict(), Field(ge=1), Kind("a whole number of seconds, 1 or more")]
WholeSecondsOrZero = Annotated[
    int, Strict(), Field(ge=0), Kind("a whole number of seconds, 0 or more")
]
Bytes = Annotated[int, Strict(), Field(ge=1), Kind("a whole number of bytes, 1 or more")]
Count = Annotated[int, Strict(), Field(ge=1), Kind("a whole number, 1 or more")]
CountOrZero = Annotated[int, Strict(), Field(ge=0), Kind("a whole number, 0 or more")]
BaseRoute = Annotated[Text, AfterValidator(_base_route), Kind("a path, such as /forum/")]
HeaderName = Annotated[Text, AfterValidator(_header_name), Kind("a header name")]
ExtraHeaders = Annotated[
    Mapping[str, Text], AfterValidator(_extra_headers), Kind("a table of header names and values")
]
HeaderPattern = Annotated[
    Text, AfterValidator(_header_pattern), Kind("a header name, which may hold *")
]
TrustedProxy = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"],
    BeforeValidator(_proxy),
    _PROXY,
]
ChannelText = Annotated[Text, AfterValidator(_channel), Kind('text that begins with "/"')]
CallableName = Annotated[Text, AfterValidator(_callable_name), Kind('"package.module:function"')]
CodecName = Annotated[Text, AfterValidator(_codec_name), _CODEC]
FilePath = Annotated[Path, PlainValidator(_file_path), _PATH_KIND]
Token = Annotated[SecretStr, AfterValidator(_token), Kind("text in quotes", hidden=True)]
# Not a secret by itself, but the place where a secret is pasted by mistake.
Sha256 = Annotated[Text, AfterValidator(_sha256), Kind("64 hexadecimal digits", hidden=True)]
Expiry = Annotated[
    AwareDatetime,
    BeforeValidator(_expiry),
    Kind("a date and time with its offset, such as 2030-01-01T00:00:00Z"),
]
KeyName = Annotated[Text, AfterValidator(key_name), _KEY_NAME]
# URLs may hold a password, or a token in the query.
WebUrl = Annotated[Text, AfterValidator(_web_url), Kind("a URL in quotes", hidden=True)]
RedisUrl = Annotated[
    Text, AfterValidator(_redis_url), Kind('a URL such as "redis://127.0.0.1:6379/0"', hidden=True)
]
PostgresUrl = Annotated[
    Text,
    AfterValidator(_postgres_url),
    Kind('a URL such as "postgresql://127.0.0.1/messagebusd"', hidden=True),
]
PubSubChannel = Annotated[
    Text, AfterValidator(_pubsub_channel), Kind("1 to 63 printable ASCII characters")
]
