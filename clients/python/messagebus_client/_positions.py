"""Several callbacks on one channel: each has a position, a poll can ask for one a channel.

The rules are those of every client of messagebusd, clients/vectors/README.md. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

FROM_NOW = -1

C = TypeVar("C", bound=Callable[..., Any])


class Subscriber(Generic[C]):
    """A callback, how far it has been served, and whether the server has placed it there.

    ``position`` is an id, or as subscribed: -1 from now on, -1-n the last n.
    """

    __slots__ = ("callback", "is_active", "is_confirmed", "position")

    def __init__(self, callback: C, position: int, *, is_confirmed: bool = False) -> None:
        self.callback = callback
        self.position = position
        self.is_confirmed = is_confirmed
        self.is_active = True


class Ask(NamedTuple, Generic[C]):
    """What a poll asks of one channel and for whom; if ``is_alone`` others have to wait."""

    position: int
    taking_part: Sequence[Subscriber[C]]
    is_alone: bool


def ask(subscribers: Sequence[Subscriber[C]]) -> Ask[C]:
    """What to ask for the subscribers of one channel; at least one."""
    for each in subscribers:
        if not each.is_confirmed:
            equal = [other for other in subscribers if other.position == each.position]
            return Ask(each.position, equal, len(equal) < len(subscribers))
    return Ask(min(each.position for each in subscribers), tuple(subscribers), False)


class Catchup(Generic[C]):
    """One channel's part of a poll: says who receives its messages, and takes its statuses."""

    def __init__(self, subscribers: Sequence[Subscriber[C]]) -> None:
        self.ask = ask(subscribers)
        taking_part = self.ask.taking_part
        self._others = [each for each in subscribers if each not in taking_part]
        # Who has been further than what is asked for, until they have caught up.
        self._ahead = {
            each: each.position for each in taking_part if each.position > self.ask.position
        }

    def message(self, message_id: int) -> Iterator[Subscriber[C]]:
        """Whom to hand this message to; one after the other, as they may change it."""
        for each in self.ask.taking_part:
            known = self._ahead.get(each)
            if known is not None:
                if self.ask.position < message_id <= known:
                    continue
                del self._ahead[each]
            if each.is_active:
                each.position, each.is_confirmed = message_id, True
                yield each

    def status(self, last_id: int) -> None:
        """The channel is at ``last_id``, with no more for these subscribers up to there."""
        self._ahead.clear()
        for each in self.ask.taking_part:
            each.position, each.is_confirmed = last_id, True

    def told(self) -> None:
        """The server has told all that it had.

        Who looked back and got nothing is where nothing is stored: all that comes is new. Who wants
        to know where a channel is and is not told, because it is denied, does not keep the others
        waiting.
        """
        known = max([FROM_NOW, *(each.position for each in self._others)])
        for each in self.ask.taking_part:
            if each.is_confirmed or (each.position == FROM_NOW and not self.ask.is_alone):
                continue
            if each.position < FROM_NOW:
                each.position = max(0, known)
            elif each.position == FROM_NOW:
                each.position = known
            each.is_confirmed = True
