"""What the settings name by ``package.module:name``: Python of the operator's own."""

from __future__ import annotations

import importlib
from typing import Any

from messagebusd.errors import ConfigurationError


def load_named(name: str, key: str) -> Any:
    """The object; ``key`` is the setting that names it. Raises ConfigurationError."""
    module_name, _, object_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), object_name)
    except Exception as error:  # the module's own code runs, whatever it does
        raise ConfigurationError([f"{key}: {name} cannot be imported: {error}"]) from error
