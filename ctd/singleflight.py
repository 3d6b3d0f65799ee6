"""Work that many may ask for and that happens once: it ends early only if nobody waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

K = TypeVar("K")
T = TypeVar("T")


@attrs.define(eq=False)
class _Flight(Generic[T]):
    waiting: list[Deferred[T]] = attrs.field(factory=list)
    work: Deferred[T] | None = None


class SingleFlight(Generic[K, T]):
    """One running coroutine a key, shared by all who ask for that key meanwhile."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def join(self, key: K, start: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """Wait for *key*'s work, starting it with *start* if none is running.

        Cancelling what is given leaves the work to the others who wait; the
        last one to leave cancels the work, and then waits until it has ended.
        Those who come while it is ending start afresh after it.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            waiter = self._wait(key, flight)
            flight.work = Deferred.fromCoroutine(start())
            flight.work.addBoth(self._landed, key, flight)
            return waiter
        if flight.work is not None and not flight.waiting:
            return Deferred.fromCoroutine(self._after(key, flight, start))
        return self._wait(key, flight)

    async def _after(
        self, key: K, flight: _Flight[T], start: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        gone: Deferred[None] = Deferred()
        assert flight.work is not None
        flight.work.addBoth(lambda _: gone.callback(None))
        await gone
        return await self.join(key, start)

    def _wait(self, key: K, flight: _Flight[T]) -> Deferred[T]:
        def leave(waiter: Deferred[T]) -> None:
            flight.waiting.remove(waiter)
            if flight.waiting or flight.work is None:
                waiter.errback(CancelledError())
                return
            flight.work.addBoth(lambda _: waiter.errback(CancelledError()))
            flight.work.cancel()

        waiter: Deferred[T] = Deferred(leave)
        flight.waiting.append(waiter)
        return waiter

    def _landed(self, result: T | Failure, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        waiting, flight.waiting = flight.waiting, []
        for waiter in waiting:
            waiter.callback(result)
