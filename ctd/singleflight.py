"""Work that many may ask for and that happens once: it ends early only if nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ctd.concurrency import ended, settled

K = TypeVar("K")
T = TypeVar("T")


@attrs.define(eq=False)
class _Flight(Generic[T]):
    waiting: list[Deferred[T]] = attrs.field(factory=list)
    work: Deferred[None] = attrs.field(factory=Deferred)
    ending: bool = False


class SingleFlight(Generic[K, T]):
    """One running coroutine a key, shared by all who ask for that key meanwhile."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    async def join(self, key: K, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for *key*'s work, starting it with *start* if none is running.

        A waiter that is cancelled leaves the work to the others who wait; the
        last one to leave cancels the work, and goes when it has ended.  Those
        who come while it is ending start afresh after it.
        """
        while (flight := self._flights.get(key)) is not None and flight.ending:
            await ended(flight.work)
        waiter: Deferred[T] = Deferred(lambda _: None)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.waiting.append(waiter)
            flight.work = Deferred.fromCoroutine(self._fly(key, flight, start))
        else:
            flight.waiting.append(waiter)
        try:
            return await waiter
        except CancelledError:
            if waiter in flight.waiting:
                flight.waiting.remove(waiter)
                if not flight.waiting:
                    flight.ending = True
                    flight.work.cancel()
                    await settled(flight.work)
            raise

    async def _fly(
        self, key: K, flight: _Flight[T], start: Callable[[], Coroutine[Any, Any, T]]
    ) -> None:
        result: T | Failure
        try:
            result = await start()
        except Exception:  # noqa: BLE001 (handed to those who wait)
            result = Failure()
        del self._flights[key]
        waiting, flight.waiting = flight.waiting, []
        for waiter in waiting:
            waiter.callback(result)
