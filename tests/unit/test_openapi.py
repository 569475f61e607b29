"""The description is whole, well formed, and about what is really served (SPEC 4)."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from jsonschema import Draft202012Validator

import messagebusd
from messagebusd.http import openapi
from messagebusd.http.api import Api
from messagebusd.http.openapi_parts import ITEM_SCHEMA
from messagebusd.http.openapi_schemas import PROBLEM_CODES
from messagebusd.protocol.publication import _FIELDS, PublishRules
from messagebusd.protocol.requests import PollLimits

DOCUMENT = json.loads(json.dumps(openapi.document()))
PACKAGE = Path(messagebusd.__file__).parent
GUIDE = PACKAGE.parent / "docs" / "http-api.md"
# Served besides the API: by the subscribers' door and by ops.
OTHERS = {
    ("post", "/message-bus/{client_id}/poll"),
    ("get", "/metrics"),
    ("get", "/livez"),
    ("get", "/readyz"),
}

OPERATIONS = {
    (method, path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def references(node):
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def test_it_describes_what_is_served_and_nothing_else():
    api = Api(Mock(), Mock(), Mock(), PublishRules(), PollLimits(), body_timeout=1.0)
    served = {(route.method.lower(), route.path) for route in api.routes()}
    assert set(OPERATIONS) == served | OTHERS


def test_every_reference_leads_somewhere_and_everything_is_referred_to():
    used = set(references(DOCUMENT))
    there = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses")
        for name in DOCUMENT["components"][kind]
    }
    assert used == there


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_schemas_are_schemas(name):
    Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda each: each["operationId"])
def test_operations_are_well_formed(operation):
    assert operation["summary"]
    assert len(operation["summary"]) < 80
    for parameter in operation.get("parameters", ()):
        Draft202012Validator.check_schema(parameter["schema"])
        assert parameter["in"] in ("query", "header", "path")
    for response in operation["responses"].values():
        assert "$ref" in response or response["description"]
    scopes = [scope for entry in operation["security"] for scope in entry["key"]]
    assert ("401" in operation["responses"]) == ("403" in operation["responses"]) == bool(scopes)


def test_names_of_operations_are_unique():
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(names) == len(set(names))


def test_streams_say_what_their_lines_are():
    for method in ("get", "post"):
        content = OPERATIONS[method, "/api/v1/subscribe"]["responses"]["200"]["content"]
        assert set(content) == {"application/x-ndjson", "text/event-stream"}
        assert all(ITEM_SCHEMA in each for each in content.values())


def test_a_publication_has_the_fields_that_are_read():
    schema = DOCUMENT["components"]["schemas"]["Publication"]
    assert set(schema["properties"]) == set(_FIELDS)
    assert set(schema["required"]) == {"channel", "data"}


def codes_in_the_source():
    """Every code that a RequestError may get, as the source says."""
    for folder in ("http", "protocol"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "code":
                    assert isinstance(node.value, ast.Constant), f"{path.name}:{node.value.lineno}"
                    yield node.value.value
    for node in ast.walk(ast.parse((PACKAGE / "errors.py").read_text())):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if getattr(target, "id", None) == "code":
                yield node.value.value


def test_every_code_is_listed_and_every_listed_one_exists():
    assert set(PROBLEM_CODES) == set(codes_in_the_source())


# -- the guide -----------------------------------------------------------------------------------


def test_the_guide_has_every_call():
    guide = GUIDE.read_text()
    for method, path in set(OPERATIONS) - OTHERS:
        assert f"{method.upper()} {path}" in guide, f"{method} {path} is not in {GUIDE.name}"


def test_the_guide_has_every_code():
    listed = re.findall(r"^\| `([a-z_]+)` \| \d{3}", GUIDE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(PROBLEM_CODES)
