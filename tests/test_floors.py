"""The floors hold: who may import whom (docs/architecture.md has the table)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "messagebusd"

# What each floor may import of this package, and of others; the standard library is free but for
# what FORBIDDEN says. The longest prefix of a module's name decides.
FLOORS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "protocol": ({"errors", "protocol"}, {"msgspec"}),
    "settings": (
        {"errors", "filters.expressions", "protocol.rules", "settings"},
        {"pydantic", "pydantic_core"},
    ),
    "log": (set(), set()),
    "named": ({"errors"}, set()),
    "notify": (set(), set()),
    "reloading": ({"errors", "notify", "settings"}, set()),
    "connection": ({"protocol"}, set()),
    "delivery": ({"connection", "protocol"}, set()),
    "people": ({"connection", "protocol"}, set()),
    "fanout": ({"connection", "delivery", "protocol"}, set()),
    "feeds": ({"protocol"}, set()),
    "recent": ({"connection", "delivery", "fanout", "protocol"}, set()),
    "hub": ({"connection", "delivery", "fanout", "feeds", "people", "protocol", "recent"}, set()),
    "filters": (
        {"connection", "errors", "filters", "named", "protocol"},
        {"cel_expr_python", "msgspec"},
    ),
    "metrics": ({"connection", "delivery", "errors", "protocol"}, {"prometheus_client"}),
    "backends": (
        {"backends", "errors", "named", "protocol", "settings"},
        {"asyncpg", "hiredis", "msgspec"},
    ),
    "identity": (
        {"errors", "identity", "protocol", "settings"},
        {"aiohttp", "cryptography", "jwt", "msgspec"},
    ),
    "control": ({"connection", "protocol"}, {"msgspec"}),
    "outage": ({"backends.base", "errors", "protocol"}, set()),
    "known_ids": ({"protocol"}, set()),
    "bus": (
        {"backends.base", "connection", "control", "hub", "known_ids", "metrics", "outage"}
        | {"protocol"},
        set(),
    ),
    "ingest": (
        {"backends.base", "backends.redis", "bus", "errors", "metrics", "protocol", "settings"},
        set(),
    ),
    "explain": ({"connection", "explain", "hub", "protocol", "recent"}, {"msgspec"}),
    "http": (
        {"", "backends.base", "bus", "connection", "control", "errors", "explain", "http", "hub"}
        | {"log"}
        | {"identity.base", "metrics", "protocol", "settings"},
        {"aiohttp", "msgspec", "multidict"},
    ),
    "listeners": ({"", "settings"}, set()),
    "accepting": ({"listeners"}, set()),
    "doors": ({"bus", "http", "identity.base", "metrics", "protocol", "settings"}, {"aiohttp"}),
    "server": ({"*"}, {"aiohttp"}),
    "alone": ({"*"}, {"uvloop"}),
    "supervisor": ({"*"}, {"uvloop"}),
    "demo": ({"*"}, {"aiohttp", "msgspec", "yarl"}),
    "doctor": (
        {"backends", "doctor", "errors", "identity", "protocol", "settings"},
        {"aiohttp", "asyncpg", "hiredis", "msgspec"},
    ),
    "shadow": ({"protocol", "shadow"}, {"aiohttp", "msgspec", "multidict", "yarl"}),
    "cli": ({"*"}, {"aiohttp", "click", "msgspec", "yarl"}),
    "__main__": ({"cli"}, set()),
    "__init__": (set(), set()),
}
FORBIDDEN = {"errors": {"asyncio"}, "protocol": {"asyncio", "logging"}, "settings": {"asyncio"}}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, type checking included, local imports as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {each for each in children if is_module(each)}
            found |= modules or {node.module}
    return found


def is_module(dotted: str) -> bool:
    path = PACKAGE.parent / dotted.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_under(name: str, parents: set[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_floor_may(path):
    import sys

    floor = name_of(path).partition(".")[0]
    own, others = FLOORS[floor]
    for module in imports_of(path):
        top, _, rest = module.partition(".")
        if top == "messagebusd":
            # hub and connection know each other by name only, for the type checker
            allowed = own | ({"hub"} if floor == "connection" else set())
            assert "*" in own or rest in own or is_under(rest, allowed), f"{path} imports {module}"
        elif top in sys.stdlib_module_names:
            assert top not in FORBIDDEN.get(floor, set()), f"{path} imports {module}"
        else:
            assert top in others, f"{path} imports {module}"


def test_few_files_know_how_to_hand_a_socket_on():
    knowing = [path.name for path in MODULES if "set_protocol(" in path.read_text()]
    assert knowing == ["front.py", "takeover.py"]


def test_modules_are_small():
    long = {
        name_of(path): lines
        for path in MODULES
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
