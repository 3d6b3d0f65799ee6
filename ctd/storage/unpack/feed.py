"""A blob as it comes, for a job that may begin later than the blob and be begun again."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.storage.arrival import IArrivalListener, Source


@implementer(IArrivalListener)
class Feed:
    """Follows *source*; what is known of it so far.

    :ivar changed: called when more of it is there.
    """

    def __init__(self, source: Source) -> None:
        self.fd = -1
        self.size = 0
        self.complete = False
        self.changed: Callable[[], None] = lambda: None
        self._failure: Failure | None = None
        self._waiting: list[Deferred[None]] = []
        self._failed: Callable[[Failure], None] = lambda reason: None
        self._stop = source.follow(self)

    def stop(self) -> None:
        """Follow no longer."""
        self._stop()

    async def ready(self) -> None:
        """Wait until some of it is there."""
        if self._failure is not None:
            self._failure.raiseException()
        if self.fd < 0:
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await waiter

    def on_failure(self, failed: Callable[[Failure], None]) -> None:
        """Call *failed* when its bytes turn out void; now, if they have."""
        self._failed = failed
        if self._failure is not None:
            failed(self._failure)

    def grown(self, fd: int, size: int, complete: bool) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self.fd, self.size, self.complete = fd, size, complete
        self._tell(None)
        self.changed()

    def failed(self, reason: Failure) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self._failure = reason
        self._tell(reason)
        self._failed(reason)

    def _tell(self, reason: Failure | None) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None) if reason is None else waiter.errback(reason)
