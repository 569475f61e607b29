"""Conditions as CEL expressions, https://cel.dev, over a message, a client and the time.

The language is that of CEL's own C++ implementation, whose Python package is imported only where
there is an expression. What is added to it: ``+ - * /`` of an integer and a float, which CEL leaves
out, because publishers write 990 as well as 990.0 for the same time.

CEL has no loops but comprehensions, and these end with an error after 10,000 steps altogether.
Those that build a list copy it at every step: 9,000 numbers that somebody publishes would hold up
the loop for two seconds. A condition needs none, so ``map`` and ``filter`` are refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

# What an expression may name, and the type of each; messages are checked against it at start.
# Each is a variable of its own, dot included: only what an expression uses is converted for it.
VARIABLES: Mapping[str, str] = {
    "message.channel": "STRING",
    "message.site_id": "DYN",
    "message.message_id": "INT",
    "message.global_id": "INT",
    "message.data": "DYN",
    "client.user_id": "DYN",
    "client.group_ids": "LIST",
    "client.site_id": "DYN",
    "client.is_admin": "BOOL",
    "client.client_id": "STRING",
    "now": "DYN",
}

_ARITHMETIC = {
    "_+_": operator.add,
    "_-_": operator.sub,
    "_*_": operator.mul,
    "_/_": operator.truediv,
}
# A test for one of the variables would be its value.
_NEEDLESS_HAS = re.compile(r"\bhas\s*\(\s*((?:message|client)\s*\.\s*\w+)\s*\)")
_QUADRATIC = re.compile(r"\.\s*(map|filter)\s*\(")
_WHERE = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
# What stands in quotes may be a publisher's.
_QUOTED = re.compile(r"\"[^\"]*\"?|'[^']*'?")


class Expression:
    """A compiled condition. ``client_fields`` are those of the client that it may depend on.

    Raises ValueError with a sentence that reads after the name of a setting.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        if (found := _NEEDLESS_HAS.search(source)) is not None:
            raise ValueError(f"asks has({found[1]}), which is always there")
        if (found := _QUADRATIC.search(source)) is not None:
            raise ValueError(
                f"must not use {found[1]}(), which takes quadratic time; use exists() or all()"
            )
        try:
            self._program = _environment().compile(source)
        except RuntimeError as error:
            raise ValueError(_compile_problem(str(error))) from None
        kind = str(self._program.return_type())
        if kind not in ("BOOL", "DYN"):
            raise ValueError(f"must say true or false; this is of type {kind.lower()}")
        # By the text, which may find too many and never misses one.
        self.client_fields = tuple(
            field
            for prefix, _, field in (name.partition(".") for name in VARIABLES)
            if prefix == "client" and re.search(rf"\b{field}\b", source)
        )

    def evaluate(self, values: Mapping[str, Any]) -> object:
        """Its result for values of all ``VARIABLES``, which should be True or False.

        Raises EvaluationError.
        """
        try:
            result = self._program.eval(data=values)
        except RuntimeError as error:
            raise EvaluationError(_without_data(str(error))) from None
        answer: object = result.value()
        if not isinstance(answer, bool) and str(result.type()) == "ERROR":
            raise EvaluationError(_without_data(str(result)))
        return answer


class EvaluationError(Exception):
    """An expression has no result; the text holds no data of the message."""


def _compile_problem(text: str) -> str:
    found = _WHERE.search(text)
    if found is None:
        return f"is no CEL expression: {' '.join(text.split())}"
    line, column, problem = found.groups()
    problem = problem.replace(" (in container '')", "").partition(" expecting {")[0]
    where = f"column {column}" if line == "1" else f"line {line}, column {column}"
    return f"is no CEL expression: {problem} ({where})"


def _without_data(text: str) -> str:
    return _QUOTED.sub("'…'", " ".join(text.split()))


@cache
def _environment() -> Any:
    from cel_expr_python import cel

    types = {"LIST": cel.Type.List(cel.Type.DYN)}
    mixed = cel.CelExtension(
        "mixed_arithmetic",
        [
            cel.FunctionDecl(
                name,
                [
                    cel.Overload(
                        f"{name}{left}{right}",
                        return_type=cel.Type.DOUBLE,
                        parameters=[getattr(cel.Type, left), getattr(cel.Type, right)],
                        impl=function,
                    )
                    for left, right in (("INT", "DOUBLE"), ("DOUBLE", "INT"))
                ],
            )
            for name, function in _ARITHMETIC.items()
        ],
    )
    variables = {
        name: types.get(kind) or getattr(cel.Type, kind) for name, kind in VARIABLES.items()
    }
    return cel.NewEnv(variables=variables, extensions=[mixed])
