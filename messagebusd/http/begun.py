"""Coroutines that are begun without a task: most of them never wait, and need none."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


async def go_on(begun: Coroutine[Any, Any, None], awaited: Any) -> None:
    """Finish in a task what was begun without one."""
    await _Rest(begun, awaited)


class _Rest:
    """What is left of a coroutine that waits for something."""

    def __init__(self, begun: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._begun = begun
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self._awaited
        while True:
            try:
                try:
                    sent = yield awaited
                except BaseException as error:  # cancellation, for one
                    awaited = self._begun.throw(error)
                else:
                    awaited = self._begun.send(sent)
            except StopIteration:
                return
