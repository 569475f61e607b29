"""Limits on how often something may happen, as text: ``"100/10s"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

from messagebusd.settings.values import Kind


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and then as many, spread evenly, in each ``seconds``."""

    amount: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.amount}/{'' if self.seconds == 1 else self.seconds}s"


_RATE = Kind('a rate, such as "20/s", "100/10s" or "5000/h", or "0" for no limit')
_RATE_TEXT = re.compile(r"([0-9]{1,9})/([0-9]{0,5})([smh])")
_RATE_UNITS = {"s": 1, "m": 60, "h": 3600}


def _rate(value: object) -> Rate | None:
    if value is None or isinstance(value, Rate):
        return value
    if value == "0" or (value == 0 and type(value) is int):
        return None
    found = _RATE_TEXT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"must be {_RATE.allowed}")
    amount, seconds = int(found[1]), int(found[2] or "1") * _RATE_UNITS[found[3]]
    if not amount or not seconds:
        raise ValueError('must have more than 0 on both sides; no limit is written "0"')
    return Rate(amount, seconds)


MaybeRate = Annotated[Rate | None, BeforeValidator(_rate), _RATE]
