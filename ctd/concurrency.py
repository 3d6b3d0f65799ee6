"""Coroutines side by side: structured waiting on Twisted's Deferreds.

Cancelling a coroutine's Deferred raises in it where it waits; a second cancel
would raise again inside its clean-up.  These functions cancel each thing once
and wait until it has really ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


def ended(work: Deferred[T]) -> Deferred[None]:
    """Fires with None when *work* has fired, however; its result stays as it is."""
    over: Deferred[None] = Deferred(lambda _: None)

    def tell(result: T | Failure) -> T | Failure:
        if not over.called:
            over.callback(None)
        return result

    work.addBoth(tell)
    return over


async def settled(work: Deferred[T]) -> None:
    """Wait until *work* has fired, however, even if the waiter is cancelled meanwhile."""
    while not work.called or isinstance(work.result, Deferred):
        try:
            await ended(work)
        except CancelledError:
            continue
        return


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end even if the waiter is cancelled; then the cancellation goes on.

    :raise CancelledError: the waiter was cancelled, and *work* has ended well.
    """
    running = Deferred.fromCoroutine(work)
    result: list[T | Failure] = []
    running.addBoth(result.append)
    cancelled: CancelledError | None = None
    while not result:
        try:
            await ended(running)
        except CancelledError as error:
            cancelled = error
    outcome = result[0]
    if isinstance(outcome, Failure):
        outcome.raiseException()
    if cancelled is not None:
        raise cancelled
    return outcome


@asynccontextmanager
async def holding(lock: DeferredLock | DeferredSemaphore) -> AsyncIterator[None]:
    """Have *lock* inside an ``async with``."""
    await lock.acquire()
    try:
        yield
    finally:
        lock.release()


async def together(work: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run all of *work*; when one fails or the waiter is cancelled, end the others and wait.

    :raise: what the first one raised.
    """
    running = [Deferred.fromCoroutine(one) for one in work]
    outcome: Deferred[None] = Deferred(lambda _: None)
    left = len(running)
    if not left:
        return

    def finished(result: object) -> None:
        nonlocal left
        left -= 1
        if outcome.called:
            return
        if isinstance(result, Failure):
            outcome.errback(result)
        elif left == 0:
            outcome.callback(None)

    for one in running:
        one.addBoth(finished)
    try:
        await outcome
    except Exception:
        for one in running:
            one.cancel()
        for one in running:
            await settled(one)
        raise


async def within(clock: IReactorTime, seconds: float, work: Sequence[Deferred[Any]]) -> None:
    """Wait until all of *work* has fired, at most *seconds*; none of it is cancelled."""
    over: Deferred[None] = Deferred(lambda _: None)
    left = len(work)
    if not left:
        return

    def finished(_: None) -> None:
        nonlocal left
        left -= 1
        if not left and not over.called:
            over.callback(None)

    timer = clock.callLater(seconds, over.callback, None)
    for one in work:
        ended(one).addCallback(finished)
    try:
        await over
    finally:
        if timer.active():
            timer.cancel()
