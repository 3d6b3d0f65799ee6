"""Events as an iterator that can be slow without cost."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Subscription:
    """The notifications of one ``events.subscribe``, as they come.

    It holds at most *limit* of them.  When more come it is *overrun*: it takes
    no more, and who reads it subscribes again from the last event read.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[dict[str, Any]] = deque()
        self._end: Failure | None = None
        self._waiter: Deferred[None] | None = None
        self.overrun = False

    def take(self, params: dict[str, Any]) -> None:
        """A notification has come."""
        if len(self._items) >= self._limit:
            self.overrun = True
        if not self.overrun:
            self._items.append(params)
        self._wake()

    def ended(self, result: object) -> None:
        """The call has ended; a failure is raised once everything before it is read."""
        if isinstance(result, Failure):
            self._end = result
        else:
            self.overrun = True
        self._wake()

    async def next(self) -> dict[str, Any] | None:
        """The next notification, or None when it was overrun and all it held is read.

        :raise: what ended the call.
        """
        while not self._items:
            if self.overrun:
                return None
            if self._end is not None:
                self._end.raiseException()
            self._waiter = Deferred(lambda _: None)
            await self._waiter
        return self._items.popleft()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)
