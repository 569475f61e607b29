"""Log lines on stderr, for people or for machines.

Modules log as usual: ``logger.info("listening", extra={"address": address})``. The message is a
constant, everything variable is a field. Formatting happens here alone, so that what came over the
network cannot end a line, begin a new one, or move the reader's cursor.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being served; every line logged meanwhile carries it."""

_HANDLER_NAME = "messagebusd"
_RECORD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
# ASCII and Latin-1 control characters, and the two line ends of Unicode.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_VALUE = re.compile(r"[^\s\"'=]+")


def configure_logging(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["text", "json"],
    **fields: object,
) -> None:
    """Send everything of ``level`` and above to stderr, each line with these fields.

    May be called again to change any of it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(JsonFormatter(fields) if format == "json" else TextFormatter(fields))
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # A line for every poll is what metrics are for.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # Python's own warnings become lines too: readers of JSON expect nothing else on stderr.
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    """Has fields that every line carries, besides its own."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def fields(self, record: logging.LogRecord) -> Mapping[str, object]:
        return {**self._fields, **_fields(record)}


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and the exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in self.fields(record).items():
            line.setdefault(name, value)
        if trace := _trace(self, record):
            line["exception"] = trace
        # Escaped to ASCII, a line is valid JSON whatever the encoding of stderr.
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except (TypeError, ValueError):  # NaN, keys that are no strings, cycles
            return json.dumps({name: str(value) for name, value in line.items()})


class TextFormatter(_Formatter):
    """``TIME LEVEL logger message name=value``; exceptions follow, every line of them marked."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            _time(record),
            f"{record.levelname:<7}",
            record.name,
            _escape(record.getMessage()),
        ]
        parts += [f"{_escape(name)}={_value(value)}" for name, value in self.fields(record).items()]
        lines = [" ".join(parts)]
        lines += [f"  | {_escape(line)}" for line in _trace(self, record).split("\n") if line]
        return "\n".join(lines)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: dict[str, object] = {}
    if (current := request_id.get()) is not None:
        fields["request_id"] = current
    fields.update(
        (name, value) for name, value in record.__dict__.items() if name not in _RECORD_ATTRIBUTES
    )
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _value(value: object) -> str:
    text = str(value)
    if not _PLAIN_VALUE.fullmatch(text):
        text = json.dumps(text, ensure_ascii=False)
    return _escape(text)


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
