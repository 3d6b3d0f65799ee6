"""Those who ask for the same layer: one unpacking serves them all, whoever of them goes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ctd.storage.arrival import Source
from ctd.storage.interfaces import Layer, UnpackProgress


@attrs.define(eq=False)
class Request:
    """One who asks.

    :ivar asking: runs until its parent is known.
    """

    layer: Layer
    source: Source
    progress: Callable[[UnpackProgress], None] | None
    asking: Deferred[None] | None = None


class Requests:
    """All who ask for one layer now.

    They mean the same parent, since a chain ID says what lies below; whose
    parent is there first tells it for all.

    :ivar left: called with each that goes.
    """

    def __init__(self) -> None:
        self.all: list[Request] = []
        self.left: Callable[[Request], None] = lambda request: None
        self._parent: list[str | Failure | None] = []
        self._waiting: list[Deferred[str | None]] = []

    def add(self, request: Request, parent: Awaitable[str | None]) -> None:
        """One more."""
        self.all.append(request)
        request.asking = Deferred.fromCoroutine(self._ask(request, parent))

    def remove(self, request: Request) -> None:
        """One less."""
        self.all.remove(request)
        if request.asking is not None:
            request.asking.cancel()
        self.left(request)

    def tell(self, progress: UnpackProgress) -> None:
        """Tell all how far it is."""
        for request in list(self.all):
            if request.progress is not None:
                request.progress(progress)

    @property
    def first(self) -> bool:
        """Whether it is known that there is no parent."""
        return self._parent == [None]

    async def parent(self) -> str | None:
        """Wait for the parent, committed.  :raise: what the parent failed with."""
        if not self._parent:
            waiter: Deferred[str | None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            return await waiter
        [parent] = self._parent
        if isinstance(parent, Failure):
            parent.raiseException()
        return parent

    async def _ask(self, request: Request, parent: Awaitable[str | None]) -> None:
        result: str | Failure | None
        try:
            result = await parent
        except Exception:  # noqa: BLE001 (handed to those who wait)
            result = Failure()
            if self.all != [request]:
                return  # it has gone, or others may know better
        if self._parent:
            return
        self._parent.append(result)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.errback(result) if isinstance(result, Failure) else waiter.callback(result)
