"""JSON as it is on the wire: strict, and never an error of another kind than these."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from messagebus_client.errors import UnexpectedAnswer


def encode(value: object) -> bytes:
    """Compact UTF-8. Raises ValueError or TypeError for what is not JSON, such as NaN."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def decode(text: bytes) -> Any:
    """Raises UnexpectedAnswer for what is not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UnexpectedAnswer(f"this is not JSON: {error}") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
