"""The Date of an answer (RFC 9110 6.6.1), made once a second."""

from __future__ import annotations

import time
from email.utils import formatdate

_second = 0
_date = b""


def http_date() -> bytes:
    """The present time as HTTP writes it."""
    global _second, _date
    now = int(time.time())
    if now != _second:
        _second, _date = now, formatdate(now, usegmt=True).encode()
    return _date
