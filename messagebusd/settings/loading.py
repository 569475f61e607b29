"""Defaults, file, environment and command line become one tree, and all problems are found at once.

Later sources win, key by key; the result is validated once, and what pydantic finds is said in
words that fit the file.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from messagebusd.errors import ConfigurationError
from messagebusd.settings.keys import (
    KEYS,
    allowed,
    annotation_at,
    annotation_of,
    dotted,
    is_hidden,
    item_in,
    nearest_key,
    section_in,
)
from messagebusd.settings.model import Settings
from messagebusd.settings.section import CROSS_CHECK
from messagebusd.settings.sources import Problem, Tree, read_environment, read_file
from messagebusd.settings.toml_lines import KeyPath
from messagebusd.settings.values import TcpAddress

OPTIONS: Mapping[str, str] = {"server.listen": "--listen", "backend.kind": "--backend"}
"""Keys that have an option on the command line."""

_LONG_INTERVAL = 55.0
_FORWARDED_HOST = "x-forwarded-host"
_SHOWN_CHARACTERS = 80


# Where the value of each dotted key comes from.
Sources = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and where they come from.

    A source is ``default``, ``FILE:LINE``, an environment variable or an option. ``warnings`` are
    sentences about values that are allowed but probably not meant.
    """

    settings: Settings
    sources: Sources
    warnings: tuple[str, ...]


def load_settings(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]
) -> LoadedSettings:
    """Read and check all settings.

    ``overrides`` maps dotted keys, those in ``OPTIONS``, to what the command line says; ``None`` is
    an option that was not given. Raises ``ConfigurationError`` naming every problem.
    """
    tree = Tree() if path is None else read_file(path)
    problems: list[Problem] = []
    for key, value in read_environment(environ, problems):
        tree.put(key, value, key.variable)
    for name, value in overrides.items():
        if value is not None:
            tree.put(KEYS[name], value, OPTIONS[name])
    _read_secret_files(Settings, tree.data, (), tree, problems)
    try:
        settings = Settings.model_validate(tree.data)
    except ValidationError as error:
        problems.extend(_explain(error, tree))
    if problems:
        # Those in the file from top to bottom, then the others.
        problems.sort(key=lambda problem: (problem.origin.line == 0, problem.origin.line))
        raise ConfigurationError([str(problem) for problem in problems])
    sources = {name: tree.source(key.path) for name, key in KEYS.items()}
    return LoadedSettings(settings, sources, tuple(map(str, _doubts(settings, tree))))


def _doubts(settings: Settings, tree: Tree) -> Iterator[Problem]:
    interval = settings.poll.long_polling_interval
    if interval > _LONG_INTERVAL:
        yield Problem(
            tree.origin(("poll", "long_polling_interval")),
            f"poll.long_polling_interval is {interval:g} seconds; "
            "many proxies end a silent request after 60",
        )
    if settings.poll.allow_broadcast:
        yield Problem(
            tree.origin(("poll", "allow_broadcast")),
            "poll.allow_broadcast lets anybody publish to everybody; it is for debugging only",
        )
    everybody = [
        str(each)
        for each in settings.server.trusted_proxies
        if not isinstance(each, str) and each.prefixlen == 0
    ]
    if everybody:
        yield Problem(
            tree.origin(("server", "trusted_proxies")),
            f"server.trusted_proxies holds {everybody[0]}; "
            "whoever connects can say which address, and with headers which user, he is",
        )
    webhook = settings.lookup.webhook
    if (
        settings.lookup.mode == "webhook"
        and _is_open(webhook.url)
        and not _is_of_own_network(webhook.url)
    ):
        yield Problem(
            tree.origin(("lookup", "webhook", "url")),
            "lookup.webhook.url is not https://; whoever is on the way to it reads the visitors' "
            "cookies, and can say who everybody is",
        )
    if any(fnmatchcase(_FORWARDED_HOST, each) for each in webhook.cache_ignore_headers):
        yield Problem(
            tree.origin(("lookup", "webhook", "cache_ignore_headers")),
            f"lookup.webhook.cache_ignore_headers ignores {_FORWARDED_HOST}; an application that "
            "goes by it answers for one site and is heard on another",
        )
    jwt = settings.lookup.jwt
    if settings.lookup.mode == "jwt":
        if _is_open(jwt.jwks_url):
            yield Problem(
                tree.origin(("lookup", "jwt", "jwks_url")),
                "lookup.jwt.jwks_url is not https://; "
                "whoever is on the way to it can say who everybody is",
            )
        cors = settings.cors
        allowed = {name.lower() for name in cors.allow_headers}
        if cors.allow_origins and jwt.header.lower() not in allowed and jwt.cookie is None:
            yield Problem(
                tree.origin(("cors", "allow_headers")),
                f"cors.allow_headers has no {jwt.header}, without which pages of other origins "
                "cannot send a token",
            )
    listen, proxies = settings.server.listen, settings.server.trusted_proxies
    if settings.poll.address_rate is not None and listen.is_local and not proxies:
        yield Problem(
            tree.origin(("poll", "address_rate")),
            "poll.address_rate takes everybody behind a proxy for one client, "
            "unless server.trusted_proxies names the proxy",
        )


def _is_open(url: str | None) -> bool:
    """Whether it is reached over a network in plain text."""
    parts = urlsplit(url or "")
    return parts.scheme == "http" and not TcpAddress(parts.hostname or "", 0).is_local


def _is_of_own_network(url: str | None) -> bool:
    """Whether the host has a private address, or a name that only a network of one's own knows."""
    host = urlsplit(url or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host


def _read_secret_files(
    section: type[BaseModel],
    table: dict[str, Any],
    path: KeyPath,
    tree: Tree,
    problems: list[Problem],
) -> None:
    """Put the content of each ``<name>_file`` where ``<name>`` belongs, in this section and below.

    Values of a wrong type are left for the validation.
    """
    for name, field in section.model_fields.items():
        annotation, value, here = annotation_of(field), table.get(name), (*path, name)
        inner, items = section_in(annotation), section_in(item_in(annotation))
        if inner is not None and isinstance(value, dict):
            _read_secret_files(inner, value, here, tree, problems)
        elif items is not None and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    _read_secret_files(items, item, (*here, index), tree, problems)
        file = table.get(f"{name}_file") if f"{name}_file" in section.model_fields else None
        if not isinstance(file, str) or not file:
            continue
        origin = tree.origin((*path, f"{name}_file"))
        if value is not None:
            sentence = f"{dotted(here)}_file cannot be given together with {dotted(here)}"
            problems.append(Problem(origin, sentence))
            continue
        try:
            content = Path(file).read_bytes().decode()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            sentence = f"{dotted(here)}_file cannot be read: {file}: {reason}"
            problems.append(Problem(origin, sentence))
        else:
            table[name] = content.removesuffix("\n").removesuffix("\r")
            tree.place(here, origin)


# -- what pydantic found, in other words


def _explain(error: ValidationError, tree: Tree) -> Iterator[Problem]:
    details = error.errors(include_url=False)
    for detail in details:
        path = tuple(step for step in detail["loc"] if step != "[key]")
        kind, context = detail["type"], detail.get("ctx", {})
        if kind == CROSS_CHECK:
            for name, sentence in context["problems"]:
                steps = (int(step) if step.isdigit() else step for step in name.split("."))
                key = (*path, *steps)
                yield Problem(tree.origin(key), f"{dotted(key)} {sentence}")
        elif kind == "too_short" and any(_is_inside(path, other["loc"]) for other in details):
            continue  # the list has items, but wrong ones, which have errors of their own
        else:
            yield Problem(tree.origin(path), f"{dotted(path)} {_sentence(path, detail)}")


def _is_inside(path: KeyPath, other: KeyPath) -> bool:
    return len(other) > len(path) and other[: len(path)] == path


def _sentence(path: KeyPath, detail: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            nearest = nearest_key(path)
            return "is not known" + (f"; did you mean {nearest}?" if nearest else "")
        case "missing":
            return "is missing"
        case "too_short":
            return "must not be an empty list"
        case "value_error":
            sentence = str(detail["ctx"]["error"])
        case _:
            sentence = f"must be {allowed(annotation_at(path))}"
    value = detail["input"]
    if is_hidden(annotation_at(path)) or isinstance(value, dict | list | tuple):
        return sentence
    return f"{sentence}; got {_shown(value)}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
