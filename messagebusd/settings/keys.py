"""The settings tree seen as data: which keys there are and what each may hold.

For everything that handles keys by name: loading, messages, documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from messagebusd.settings.model import Settings
from messagebusd.settings.toml_lines import KeyPath
from messagebusd.settings.values import Kind

VARIABLE_PREFIX = "MESSAGEBUSD_"


@dataclass(frozen=True, slots=True)
class Key:
    """One key outside lists: ``poll.max_body``, ``api.keys``."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def dotted(self) -> str:
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return VARIABLE_PREFIX + "__".join(self.path).upper()

    @property
    def annotation(self) -> Any:
        return annotation_of(self.field)

    @property
    def optional(self) -> bool:
        """Whether it can be unset."""
        return type(None) in get_args(self.field.annotation)


def keys_of(model: type[BaseModel], parents: tuple[str, ...] = ()) -> Iterator[Key]:
    """Yield all keys of a section and the sections in it, in the order of their definition."""
    for name, field in model.model_fields.items():
        section = section_in(annotation_of(field))
        if section is None:
            yield Key((*parents, name), field)
        else:
            yield from keys_of(section, (*parents, name))


# -- annotations


def annotation_of(field: FieldInfo) -> Any:
    """The field's annotation with the metadata that pydantic took from it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def unwrap(annotation: Any) -> tuple[Any, Kind | None]:
    """Take ``Annotated`` and ``| None`` away; return the rest and the kind met on the way."""
    kind: Kind | None = None
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            kinds = [item for item in annotation.__metadata__ if isinstance(item, Kind)]
            kind = kind or (kinds[-1] if kinds else None)
            annotation = annotation.__origin__
            continue
        others = [item for item in get_args(annotation) if item is not type(None)]
        if origin in (Union, UnionType) and len(others) == 1:
            annotation = others[0]
            continue
        return annotation, kind


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that such a value is, if it is one."""
    bare, _ = unwrap(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def item_in(annotation: Any) -> Any:
    """The annotation of a list's items or of a table's values; ``None`` for other values."""
    bare, _ = unwrap(annotation)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin is tuple:
        return arguments[0]
    if origin is Mapping:
        return arguments[1]
    return None


KEYS: Mapping[str, Key] = {key.dotted: key for key in keys_of(Settings)}
"""Every key by its dotted name."""

VARIABLES: Mapping[str, Key] = {key.variable: key for key in KEYS.values()}
"""Every key by its environment variable."""


def annotation_at(path: KeyPath) -> Any:
    """The annotation of the value at a path, lists included; ``None`` for unknown keys."""
    annotation: Any = Settings
    for step in path:
        section = section_in(annotation)
        if section is None:
            annotation = item_in(annotation)
        elif step in section.model_fields:
            annotation = annotation_of(section.model_fields[str(step)])
        else:
            return None
    return annotation


def allowed(annotation: Any) -> str:
    """What such a value may be, in words."""
    bare, kind = unwrap(annotation)
    if kind is not None:
        return kind.allowed
    if section_in(bare) is not None:
        return "a table"
    if get_origin(bare) is Literal:
        words = [f'"{word}"' for word in get_args(bare)]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if (item := item_in(bare)) is not None:
        return f"a list, each item {allowed(item)}"
    raise TypeError(f"a setting of type {bare!r} needs a Kind")


def is_hidden(annotation: Any) -> bool:
    """Whether such a value may hold a secret, and so must not be shown."""
    bare, kind = unwrap(annotation)
    if kind is not None and kind.hidden:
        return True
    if (section := section_in(bare)) is not None:
        return any(is_hidden(annotation_of(field)) for field in section.model_fields.values())
    item = item_in(bare)
    return item is not None and is_hidden(item)


# -- names


def dotted(path: KeyPath) -> str:
    """``api.keys[0].name``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def nearest_key(path: KeyPath) -> str | None:
    """The key that was probably meant by an unknown one."""
    *parents, name = path
    elsewhere = [key.dotted for key in KEYS.values() if key.path[-1] == name]
    if len(elsewhere) == 1:
        return elsewhere[0]
    section = section_in(annotation_at(tuple(parents)))
    siblings = list(section.model_fields) if section is not None else []
    found = difflib.get_close_matches(str(name), siblings, n=1)
    return dotted((*parents, found[0])) if found else None


def nearest_variable(name: str) -> str | None:
    """The environment variable that was probably meant by an unknown one."""
    found = difflib.get_close_matches(name, VARIABLES, n=1)
    return found[0] if found else None
