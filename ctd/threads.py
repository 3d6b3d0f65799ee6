"""Blocking work: synchronous functions run in named thread pools, never in the reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import Interface, implementer

P = ParamSpec("P")
T = TypeVar("T")


class IWorkers(Interface):
    """Where blocking functions run."""

    async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *function* off the reactor's thread and give what it gives.

        Cancelling the waiter does not stop a function that has begun.
        """


@implementer(IWorkers)
class Workers:
    """A named pool of daemon threads.  :ivar size: the most threads at a time."""

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name)

    def start(self) -> None:
        """Begin to take work."""
        self._pool.start()

    def stop(self) -> None:
        """Wait for the work that has begun and drop the threads."""
        self._pool.stop()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See :class:`IWorkers`."""
        result: T = await deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)
        return result


@implementer(IWorkers)
class InlineWorkers:
    """Runs each function at once in the caller's thread: for tests and single-threaded tools."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """See :class:`IWorkers`."""
        return function(*args, **kwargs)
