"""What goes in and comes out: values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

Id: TypeAlias = int | str
"""Of a user, a group or a client. ``7`` and ``"7"`` are different ids."""

Position: TypeAlias = int | None
"""Where to begin in a channel: after message ``n``; ``0`` from the beginning; ``-1`` or ``None``
from now on; ``-1 - n`` with the last ``n`` stored messages."""

Data: TypeAlias = Any
"""Any JSON value, as Python's json module reads and writes it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A published message, as servers see it.

    ``message_id`` counts within the channel, ``global_id`` over all. The lists say who may see it;
    None does not restrict.
    """

    channel: str
    message_id: int
    global_id: int
    data: Data
    site_id: str | None = None
    user_ids: tuple[Id, ...] | None = None
    group_ids: tuple[Id, ...] | None = None
    client_ids: tuple[Id, ...] | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish; what is None is left to the daemon.

    A client sees the message if it is in ``client_ids``, and its user in ``user_ids`` or in one of
    ``group_ids``. An empty list is refused: it would be for nobody. ``max_backlog_size`` are
    messages and ``max_backlog_age`` seconds that this channel is kept for. With
    ``queue_in_memory`` the daemon keeps the message while its store is away.
    """

    channel: str
    data: Data
    site_id: str | None = None
    user_ids: Sequence[Id] | None = None
    group_ids: Sequence[Id] | None = None
    client_ids: Sequence[Id] | None = None
    max_backlog_size: int | None = None
    max_backlog_age: int | None = None
    queue_in_memory: bool = False


class PublishOptions(TypedDict, total=False):
    """The fields of `Publication` besides channel and data, for calls that take them by name."""

    site_id: str | None
    user_ids: Sequence[Id] | None
    group_ids: Sequence[Id] | None
    client_ids: Sequence[Id] | None
    max_backlog_size: int | None
    max_backlog_age: int | None
    queue_in_memory: bool


@dataclass(frozen=True, slots=True)
class Published:
    """A message was taken. While it waits for the store (``queued``) it has no ids yet.

    ``repeated``: an earlier request with this idempotency key had published it already.
    """

    channel: str
    message_id: int | None
    global_id: int | None
    queued: bool = False
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Notice of a subscription: the messages between these two ids are gone from the backlog."""

    channel: str
    after_id: int
    before_id: int


@dataclass(frozen=True, slots=True)
class Restarted:
    """Notice of a subscription: ids began anew, as after a flush of the store.

    It goes on after ``last_id``; what was published before that and after the restart was not
    seen. ``channel`` is None when all channels are followed: the ids are global ones.
    """

    channel: str | None
    last_id: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Notice of a subscription: the stream ended, and is opened again in ``retry_in`` seconds.

    ``code`` is the daemon's (docs/http-api.md), or ``broken`` when the connection was lost or
    could not be made. Nothing is missed by it but in one case, which ``may_have_missed`` tells: a
    subscription to all channels while the store was away.
    """

    code: str
    detail: str
    retry_in: float
    may_have_missed: bool = False


Notice: TypeAlias = Gap | Restarted | Interrupted
