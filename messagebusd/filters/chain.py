"""All filters together: each message and client is shown to those that its channel concerns.

A turn of the loop is one moment for filters: all that it delivers is judged by one ``now``, is
decoded once, and an expression is evaluated once for all clients of whom it sees the same.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from messagebusd.connection import Viewer
from messagebusd.errors import ConfigurationError
from messagebusd.filters.expressions import EvaluationError, Expression
from messagebusd.named import load_named
from messagebusd.protocol.message import Message

# Called with the message and the client as dictionaries; whether the message may be delivered.
# The message is the same object for all clients: a filter must not change it.
Allow = Callable[[dict[str, Any], dict[str, Any]], object]

# Of the messages of one turn of the loop, so much is kept decoded.
KEPT_BYTES = 4 * 1024 * 1024

_log = logging.getLogger(__name__)


class Case:
    """A message in one turn of the loop, as filters see it. Decoded when the first one asks."""

    __slots__ = ("_data", "_is_decoded", "answers", "filters", "message", "now")

    def __init__(self, message: Message, filters: Sequence[Filter], now: float) -> None:
        self.message = message
        self.filters = filters
        self.now = now
        # What expressions said of this message, for each client of which they see something else.
        self.answers: dict[tuple[object, ...], bool] = {}
        self._data: object = None
        self._is_decoded = False

    @property
    def data(self) -> object:
        """The published data. Raises msgspec.DecodeError."""
        if not self._is_decoded:
            self._data = msgspec.json.decode(self.message.data)
            self._is_decoded = True
        return self._data


class Filter(Protocol):
    """One declared filter; ``name`` is how logs call it."""

    channel_prefix: str
    name: str

    def answer(self, case: Case, viewer: Viewer, client_id: str) -> object:
        """Whether this client may have the message: True or False. Raises anything."""

    def remembered(self, case: Case, viewer: Viewer, client_id: str) -> tuple[object, ...] | None:
        """What the answer depends on beside the case; None if it must be asked each time."""


class CallableFilter:
    """A Python function, ``package.module:function``; it is asked for each recipient.

    Raises ConfigurationError.
    """

    def __init__(self, channel_prefix: str, name: str) -> None:
        self.channel_prefix = channel_prefix
        self.name = name
        function = load_named(name, "filters")
        if not callable(function):
            raise ConfigurationError([f"filters: {name} is not callable"])
        if inspect.iscoroutinefunction(function):
            raise ConfigurationError([f"filters: {name} must be a plain function, not async"])
        self._allow: Allow = function

    def answer(self, case: Case, viewer: Viewer, client_id: str) -> object:
        """See `Filter`."""
        message = {
            "channel": case.message.channel,
            "site_id": case.message.site_id,
            "message_id": case.message.message_id,
            "global_id": case.message.global_id,
            "data": case.data,
        }
        client = {name: read(viewer, client_id) for name, read in _CLIENT.items()}
        return self._allow(message, client)

    def remembered(self, case: Case, viewer: Viewer, client_id: str) -> None:
        """See `Filter`: a function may look at anything."""
        return


class ExpressionFilter:
    """A CEL expression. Clients of whom it sees the same get the same answer."""

    def __init__(self, channel_prefix: str, expression: Expression) -> None:
        self.channel_prefix = channel_prefix
        self.name = expression.source
        self._expression = expression
        self._fields = [_CLIENT_VALUES[field] for field in expression.client_fields]

    def answer(self, case: Case, viewer: Viewer, client_id: str) -> object:
        """See `Filter`."""
        message = case.message
        values = {
            "message.channel": message.channel,
            "message.site_id": message.site_id,
            "message.message_id": message.message_id,
            "message.global_id": message.global_id,
            "message.data": case.data,
            "now": case.now,
        }
        for name, read in _CLIENT.items():
            values[f"client.{name}"] = read(viewer, client_id)
        return self._expression.evaluate(values)

    def remembered(self, case: Case, viewer: Viewer, client_id: str) -> tuple[object, ...]:
        """See `Filter`."""
        return (self, *[read(viewer, client_id) for read in self._fields])


_Read = Callable[[Viewer, str], Any]
_CLIENT: dict[str, _Read] = {
    "user_id": lambda viewer, _: viewer.user_id,
    "group_ids": lambda viewer, _: list(viewer.group_ids),
    "site_id": lambda viewer, _: viewer.site_id,
    "is_admin": lambda viewer, _: viewer.is_admin,
    "client_id": lambda _, client_id: client_id,
}
# The same as values that can be compared; sets of ids differ by type, as ids do.
_CLIENT_VALUES: dict[str, _Read] = {**_CLIENT, "group_ids": lambda viewer, _: viewer.group_ids}


class Declared(Protocol):
    """A filter as it is configured: an expression or the name of a function."""

    @property
    def channel_prefix(self) -> str: ...
    @property
    def allow(self) -> str | None: ...
    @property
    def callable(self) -> str | None: ...


def load_filter(declared: Declared) -> Filter:
    """Raises ConfigurationError."""
    if declared.allow is not None:
        return ExpressionFilter(declared.channel_prefix, Expression(declared.allow))
    assert declared.callable is not None  # the settings checked that there is one of both
    return CallableFilter(declared.channel_prefix, declared.callable)


class FilterChain:
    """All filters. ``failed`` is called for each one that gave no answer, ``call_soon`` is the
    loop's, and ``wall`` the time of day in seconds."""

    def __init__(
        self,
        filters: Sequence[Filter],
        failed: Callable[[], None],
        call_soon: Callable[[Callable[[], None]], object],
        wall: Callable[[], float],
    ) -> None:
        self._filters = tuple(filters)
        self._failed = failed
        self._call_soon = call_soon
        self._wall = wall
        self._logged: set[Filter] = set()
        # Of this turn.
        self._now: float | None = None
        self._cases: dict[Message, Case] = {}
        self._kept_bytes = 0

    def concerns(self, channel: str) -> bool:
        """Whether any filter looks at this channel."""
        return any(channel.startswith(each.channel_prefix) for each in self._filters)

    def allow(self, message: Message, viewer: Viewer, client_id: str) -> bool:
        """Whether all filters that concern the message let this client have it."""
        case = self._case(message)
        return all(self._ask(each, case, viewer, client_id) for each in case.filters)

    def refusals(self, message: Message, viewer: Viewer, client_id: str, now: float) -> list[str]:
        """The filters that withhold the message from this client at such a time, by their names.

        For whoever asks afterwards: nothing is counted, logged or remembered.
        """
        concerned = [
            each for each in self._filters if message.channel.startswith(each.channel_prefix)
        ]
        case, found = Case(message, concerned, now), []
        for each in concerned:
            try:
                allows = each.answer(case, viewer, client_id) is True
            except Exception:
                allows = False
            if not allows:
                found.append(each.name)
        return found

    def _case(self, message: Message) -> Case:
        if self._now is None:
            self._now = self._wall()
            self._call_soon(self._end_turn)
        elif self._kept_bytes > KEPT_BYTES:
            self._forget()
        case = self._cases.get(message)
        if case is None:
            concerned = [
                each for each in self._filters if message.channel.startswith(each.channel_prefix)
            ]
            case = self._cases[message] = Case(message, concerned, self._now)
            self._kept_bytes += len(message.encoded)
        return case

    def _end_turn(self) -> None:
        self._now = None
        self._forget()

    def _forget(self) -> None:
        self._cases.clear()
        self._kept_bytes = 0

    def _ask(self, each: Filter, case: Case, viewer: Viewer, client_id: str) -> bool:
        key = each.remembered(case, viewer, client_id)
        if key is None:
            return self._evaluate(each, case, viewer, client_id)
        answer = case.answers.get(key)
        if answer is None:
            answer = case.answers[key] = self._evaluate(each, case, viewer, client_id)
        return answer

    def _evaluate(self, each: Filter, case: Case, viewer: Viewer, client_id: str) -> bool:
        try:
            answer = each.answer(case, viewer, client_id)
        except EvaluationError as error:
            self._withhold(each, str(error))
            return False
        except Exception as error:
            # Without its text, which may quote what was published.
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            where = f"{frame.f_code.co_filename}:{line}"
            self._withhold(each, f"it raised {type(error).__name__} at {where}")
            _log.debug("a filter raised", extra={"filter": each.name}, exc_info=True)
            return False
        if answer is True or answer is False:
            return answer
        self._withhold(each, f"its answer is neither true nor false, but {type(answer).__name__}")
        return False

    def _withhold(self, each: Filter, reason: str) -> None:
        self._failed()
        if each not in self._logged:
            self._logged.add(each)
            _log.error(
                "filter failed, so it withholds", extra={"filter": each.name, "reason": reason}
            )
