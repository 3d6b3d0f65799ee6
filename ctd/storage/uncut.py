"""Steps that run to their end even if nobody waits for them any more."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


async def uncut(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, object]] | None = None
) -> T:
    """Run *work* to its end; a cancellation that comes meanwhile is raised after that.

    For short sequences of thread calls and transactions, which cannot be
    stopped in the middle anyway: so a caller that is told of its cancellation
    knows that nothing goes on behind its back.

    :param undo: run with what *work* gave, if it succeeded for a caller that
        was cancelled and so will never know.
    """
    running = Deferred.fromCoroutine(work)
    cancelled = False
    while True:
        done: Deferred[T] = Deferred()
        running.addBoth(_tell, done)
        try:
            result = await done
        except CancelledError:
            if running.called and not running.paused:
                raise
            cancelled = True
        else:
            break
    if not cancelled:
        return result
    if undo is not None:
        await uncut(undo(result))
    raise CancelledError()


def _tell(result: T | Failure, done: Deferred[T]) -> T | Failure | None:
    if not done.called:
        done.callback(result)  # type: ignore[arg-type]
        return None if isinstance(result, Failure) else result
    return result
