"""Between a blob that arrives and the job that reads it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.storage.arrival import IArrivalListener, Source
from ctd.storage.interfaces import UnpackProgress
from ctd.storage.unpack.pool import Job

T = TypeVar("T")

#: What a job failed with if its process was killed.
DIED = "died"


class JobFailed(Exception):
    """A job says that it failed, or its process died.

    :ivar error: a word of :mod:`ctd.storage.unpack.words`, or :data:`DIED`.
    """

    def __init__(self, error: str, fields: Mapping[str, Any]) -> None:
        super().__init__(error)
        self.error = error
        self.fields = fields


@implementer(IArrivalListener)
class Follower:
    """Tells a job of its blob's bytes.

    The job asks for more when it has used up what it was told of, so that at
    most one answer is on its way.

    :ivar applied: what the job says when it has applied all entries.
    :ivar done: fires when it has done all.
    """

    def __init__(self, source: Source, progress: Callable[[UnpackProgress], None]) -> None:
        self._source = source
        self._progress = progress
        self._job: Job | None = None
        self._wanted: int | None = None
        self._there: tuple[int, int, bool] | None = None
        self._stop: Callable[[], None] | None = None
        self._arrived: list[Deferred[None]] = []
        self._entries = 0
        self._aside: Deferred[Any] | None = None
        self.applied: Deferred[dict[str, Any]] = Deferred(lambda _: None)
        self.done: Deferred[None] = Deferred(lambda _: None)

    async def arrived(self) -> None:
        """Begin to follow, and wait until some of the blob is there."""
        waiter: Deferred[None] = Deferred(lambda _: None)
        self._arrived.append(waiter)
        self._stop = self._source.follow(self)
        await waiter

    def feed(self, job: Job) -> None:
        """Tell *job* from now on."""
        self._job = job
        self._answer()

    def stop(self) -> None:
        """End; the blob's descriptor is closed, and what failed unheard is forgotten."""
        if self._stop is not None:
            self._stop()
        for one in (self.applied, self.done):
            one.addErrback(lambda _: None)

    async def unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        """What *work* gives, which ends early if the job fails.  :raise: what that failed with."""
        self._aside = Deferred.fromCoroutine(work)
        try:
            result: T = await self._aside
        except CancelledError:
            if self.done.called:
                await self.done
            raise
        return result

    # IArrivalListener.

    def grown(self, fd: int, size: int, complete: bool) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self._there = (fd, size, complete)
        self._tell_arrived(None)
        self._answer()

    def failed(self, reason: Failure) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self._tell_arrived(reason)
        self._fail(reason)

    # JobListener.

    def said(self, message: dict[str, Any]) -> None:
        """See :class:`ctd.storage.unpack.pool.JobListener`."""
        match message:
            case {"want": offset}:
                self._wanted = offset
                self._progress(UnpackProgress(offset, self._entries))
                self._answer()
            case {"progress": [read, entries]}:
                self._entries = entries
                self._progress(UnpackProgress(read, entries))
            case {"applied": applied}:
                if not self.applied.called:
                    self.applied.callback(applied)
            case {"done": _}:
                if not self.done.called:
                    self.done.callback(None)
            case {"failed": fields}:
                self._fail(Failure(JobFailed(fields["error"], fields)))
            case {"ended": status}:
                self._fail(Failure(JobFailed(DIED, {"reason": _how(status)})))

    def _answer(self) -> None:
        if self._wanted is None or self._there is None or self._job is None:
            return
        fd, size, complete = self._there
        if size > self._wanted or complete:
            self._wanted = None
            self._job.say(data={"fd": fd, "size": size, "complete": complete})

    def _fail(self, reason: Failure) -> None:
        for one in (self.applied, self.done):
            if not one.called:
                one.errback(reason)
        if self._aside is not None:
            self._aside.cancel()

    def _tell_arrived(self, reason: Failure | None) -> None:
        arrived, self._arrived = self._arrived, []
        for waiter in arrived:
            if not waiter.called:
                waiter.callback(None) if reason is None else waiter.errback(reason)


def _how(status: int) -> str:
    if status < 0:
        return f"its process was killed by signal {-status}"
    return f"its process ended with status {status}"
