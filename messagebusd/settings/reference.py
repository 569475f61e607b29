"""The settings as text: effective values, the sample file, the documentation.

``python -m messagebusd.settings.reference sample`` writes ``config/bus.toml`` to stdout,
``… markdown`` writes ``docs/configuration.md``. Both are made from ``model.py`` alone.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from messagebusd.settings.keys import (
    KEYS,
    allowed,
    annotation_of,
    is_hidden,
    item_in,
    section_in,
)
from messagebusd.settings.loading import LoadedSettings, Sources
from messagebusd.settings.model import Settings
from messagebusd.settings.rates import Rate
from messagebusd.settings.reload import NEEDS_RESTART
from messagebusd.settings.sources import DEFAULT
from messagebusd.settings.values import FdAddress, TcpAddress, UnixAddress

HIDDEN = "********"
_WIDTH = 100


def effective_values(settings: Settings, sources: Sources) -> Iterator[tuple[str, str, str]]:
    """Yield every key with its value, secrets hidden, and where that comes from."""
    for name, key in KEYS.items():
        value: object = settings
        for step in key.path:
            value = getattr(value, step)
        yield name, _shown(value, key.field), sources.get(name, DEFAULT)


def effective_lines(loaded: LoadedSettings) -> Iterator[str]:
    """Yield ``key = value   # source`` for every key, aligned, secrets hidden."""
    rows = list(effective_values(loaded.settings, loaded.sources))
    names = max(len(name) for name, _, _ in rows)
    # A few long lists must not push every source out of sight.
    values = max(len(value) for _, value, _ in rows if len(value) <= _WIDTH // 2)
    for name, text, source in rows:
        yield f"{name:<{names}} = {text:<{values}}   # {source}"


def _shown(value: object, field: FieldInfo) -> str:
    if value is None:
        return "(unset)"
    return _toml(value, field)


def _toml(value: object, field: FieldInfo | None = None) -> str:
    """Write a value as TOML. With its field, what is secret in it is hidden."""
    match value:
        case BaseModel():
            members = [
                f"{name} = {_toml(member, inner)}"
                for name, inner in type(value).model_fields.items()
                if (member := getattr(value, name)) is not None
            ]
            return "{" + ", ".join(members) + "}"
        case tuple() | list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _ if field is not None and is_hidden(annotation_of(field)):
            return f'"{HIDDEN}"'
        case Mapping():
            pairs = [f"{_quoted(name)} = {_toml(item)}" for name, item in value.items()]
            return "{" + ", ".join(pairs) + "}"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case (
            str()
            | Path()
            | TcpAddress()
            | UnixAddress()
            | FdAddress()
            | Rate()
            | IPv4Network()
            | IPv6Network()
        ):
            return _quoted(str(value))
    raise TypeError(f"a setting of type {type(value).__name__} cannot be written as TOML")


def _quoted(text: str) -> str:
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# -- config/bus.toml

_SAMPLE_HEAD = """\
# Settings of messagebusd. Every key stands here with its default: to change one, take the "#"
# before it away. A "# " with a space begins a comment, or an example for a key without a default.
#
# Every key can also come from the environment: MESSAGEBUSD_POLL__MAX_BODY=100000 is max_body in
# [poll]. Check the file with `messagebusd check-config --config bus.toml`, and see what is in
# effect, and why, with `messagebusd config --config bus.toml`.
#
# Made from the settings themselves; docs/configuration.md has the same in tables.
"""


def sample() -> str:
    """The sample configuration file."""
    lines = [_SAMPLE_HEAD]
    lines += _sample_section(Settings, ())
    return "\n".join(lines)


def _sample_section(section: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield from _comment(section.__doc__ or "")
        yield f"[{'.'.join(path)}]"
        yield ""
    for name, field in section.model_fields.items():
        annotation, here = annotation_of(field), (*path, name)
        if (inner := section_in(annotation)) is not None:
            yield from _sample_section(inner, here)
        elif (items := section_in(item_in(annotation))) is not None:
            yield from _comment(items.__doc__ or "")
            yield f"# [[{'.'.join(here)}]]"
            for item_name, item in items.model_fields.items():
                if item.examples:
                    yield f"# {item_name} = {_toml(item.examples[0])}"
            yield ""
        elif not path:
            yield from _sample_table(name, field)
        else:
            yield from _sample_key(name, field)


def _sample_key(name: str, field: FieldInfo) -> Iterator[str]:
    yield from _comment(field.description or "")
    if field.default is not None:
        yield from _assignment(f"#{name} = ", field.default)
    elif field.examples:
        yield f"# {name} = {_toml(field.examples[0])}"
    else:
        yield f"# {name} is not set."
    yield ""


def _sample_table(name: str, field: FieldInfo) -> Iterator[str]:
    """A section whose keys are the user's own."""
    yield from _comment(field.description or "")
    yield f"[{name}]"
    yield from (f"# {line}" for line in _table_example(field))
    yield ""


def _table_example(field: FieldInfo) -> list[str]:
    return [
        f"{_quoted(name)} = {_toml(value)}"
        for example in field.examples or ()
        for name, value in example.items()
    ]


def _assignment(start: str, value: object) -> Iterator[str]:
    line = start + _toml(value)
    if len(line) <= _WIDTH or not isinstance(value, tuple):
        yield line
        return
    yield f"{start}["
    for item in value:
        yield f"#{_toml(item)},"
    yield "#]"


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.split()).replace("`", ""), _WIDTH - 2):
        yield f"# {line}"


# -- docs/configuration.md

_MARKDOWN_HEAD = """\
# Configuration

This page is made from the settings themselves; `make docs` writes it anew.

messagebusd reads its settings from four places, and later ones win, key by key:

1. the defaults below
2. a TOML file: `messagebusd serve --config bus.toml`, or its path in `MESSAGEBUSD_CONFIG`
   ([config/bus.toml](../config/bus.toml) is a commented sample,
   [config/production.toml](../config/production.toml) a strict one for a server behind nginx)
3. the environment: `MESSAGEBUSD_POLL__MAX_BODY=100000` sets `max_body` in `[poll]`,
   `MESSAGEBUSD_BACKEND__MEMORY__MAX_BYTES` sets `max_bytes` in `[backend.memory]`. Lists and tables
   are written as JSON: `MESSAGEBUSD_CORS__ALLOW_ORIGINS='["https://forum.example"]'`. An empty
   variable unsets a key whose default is to be unset
4. the options `--listen` and `--backend`

A secret can be given by file: `key_file = "/run/secrets/key"` in place of `key`. The file is read
with the settings, and a line end after the secret is ignored. Relative paths begin at the working
directory.

With SIGHUP file, environment and secret files are read again, and take effect at once, or, if there
is any mistake, not at all; see [operations](operations.md#other-settings-while-it-runs). These need
a restart: @RESTART@.

Unknown keys are errors, and so are variables with `__` that mean nothing.
`messagebusd check-config` names every problem at once, with its line and what was probably meant;
`messagebusd config` shows all values in effect and where each comes from, with the secrets hidden.

Durations are in seconds, sizes in bytes.
"""


def markdown() -> str:
    """The documentation of all settings."""
    fixed = ", ".join(
        f"`[{each[:-1]}]`" if each.endswith(".") else f"`{each}`" for each in NEEDS_RESTART
    )
    return "\n".join(
        [
            _MARKDOWN_HEAD.replace("@RESTART@", fixed),
            *_markdown_section(Settings, (), in_list=False),
        ]
    )


def _markdown_section(
    section: type[BaseModel], path: tuple[str, ...], *, in_list: bool
) -> Iterator[str]:
    rows, below, tables = [], [], []
    for name, field in section.model_fields.items():
        annotation, here = annotation_of(field), (*path, name)
        inner, items = section_in(annotation), section_in(item_in(annotation))
        if inner is not None:
            below.append((inner, here, False))
        elif items is not None:
            below.append((items, here, True))
        elif not path:
            tables.append((name, field))
        else:
            what = field.description or ""
            rows.append((f"`{name}`", _default(field), allowed(annotation), what))
    if path:
        dotted = ".".join(path)
        yield f"## `[[{dotted}]]`" if in_list else f"## `[{dotted}]`"
        yield ""
        yield " ".join((section.__doc__ or "").split())
        yield ""
        yield "| key | default | what is allowed | what it does |"
        yield "| --- | --- | --- | --- |"
        for row in rows:
            cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
            yield f"| {' | '.join(cells)} |"
        yield ""
    for inner, inner_path, is_list in below:
        yield from _markdown_section(inner, inner_path, in_list=is_list)
    for name, field in tables:
        yield f"## `[{name}]`"
        yield ""
        yield " ".join((field.description or "").split())
        yield ""
        yield "```toml"
        yield f"[{name}]"
        yield from _table_example(field)
        yield "```"
        yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "unset" if field.default is None else f"`{_toml(field.default)}`"


if __name__ == "__main__":
    sys.stdout.write({"sample": sample, "markdown": markdown}[sys.argv[1]]())
