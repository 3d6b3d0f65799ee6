"""A blob on its way, as those see it who read it before it is all there.

An :class:`Arrival` is one blob's progress inside this process: its writer
tells it what is in the file, and it tells those who follow.  A
:class:`Source` is a reader's handle on it.  All of it is used in the
reactor's thread, and listeners are called there.

Followers get a descriptor rather than a path, because a commit renames the
file: a descriptor stays with the bytes whatever becomes of the name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ctd.model import Descriptor, Digest
from ctd.storage.interfaces import ISource


class IArrivalListener(Interface):
    """Told of a blob's growth, in the reactor's thread.  Must not raise."""

    def grown(fd: int, size: int, complete: bool) -> None:
        """The first *size* bytes of the blob can be read from *fd*.

        Called with a growing *size*, the last time with *complete* (all of it,
        not necessarily verified), always with the same *fd*.  It is a
        read-only descriptor of this follower's own (its offset too, which
        begins at 0), open until the following is stopped; who needs it for
        longer, or in another process, duplicates or passes it on.
        """

    def failed(reason: Failure) -> None:
        """The bytes told of so far are void, complete or not, and no more will come."""


@attrs.define(eq=False)
class _Follower:
    listener: IArrivalListener
    close_fd: Callable[[int], None]
    fd: int = -1

    def tell(self, arrival: Arrival) -> None:
        if self.fd < 0:
            self.fd = os.open(f"/proc/self/fd/{arrival.fd}", os.O_RDONLY | os.O_CLOEXEC)
        self.listener.grown(self.fd, arrival.size, arrival.complete)

    def close(self) -> None:
        if self.fd >= 0:
            self.close_fd(self.fd)
            self.fd = -1


class Arrival:
    """One blob's way into the store.

    :ivar fd: the file it is in, or -1 if nothing is known yet.
    :ivar size: the bytes in the file that belong to the blob.
    :ivar complete: whether that is all of it.
    :ivar written: whether a writer has it open.
    :param look: finds the blob in the store: its open file and size, or None.
    :param idle: called with this when it is over, or nobody writes, follows or
        waits any more: those who come later need another one.
    :param close: closes a descriptor without waiting: the last one to a deleted
        file frees its blocks, which takes long if they are many.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        look: Callable[[], Coroutine[Any, Any, tuple[int, int] | None]],
        idle: Callable[[Arrival], None],
        close: Callable[[int], None],
    ) -> None:
        self.descriptor = descriptor
        self.fd = -1
        self.size = 0
        self.complete = False
        self.written = False
        self._committed = False
        self._look = look
        self._idle = idle
        self._looking = False
        self._look_again = False
        self._close = close
        self._followers: list[_Follower] = []
        self._waiters: list[Deferred[None]] = []

    # The writer's side.

    def opened(self, fd: int, size: int) -> None:
        """A writer begins, or goes on with the same file: *fd* becomes this one's to close."""
        self.written = True
        if self.fd >= 0:
            self._close(fd)
        else:
            self.fd = fd
        self.grew(size)

    def grew(self, size: int) -> None:
        """The file has *size* bytes of the blob."""
        if size > self.size:
            self.size, self.complete = size, size == self.descriptor.size
            self._tell()
        elif self.descriptor.size == 0 and not self.complete:
            self.complete = True
            self._tell()

    def paused(self) -> None:
        """The writer went away and left its file: another may go on with it."""
        self.written = False
        self._settle()

    def committed(self) -> None:
        """The blob is in the store.  Whoever comes now finds it there."""
        self.written, self._committed = False, True
        self._idle(self)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)
        self._settle()

    def discarded(self, reason: Failure) -> None:
        """The file is gone, or was not what it had to be."""
        self.written = False
        waiters, self._waiters = self._waiters, []
        followers = list(self._followers)
        self._idle(self)
        for follower in followers:
            follower.listener.failed(reason)
        for waiter in waiters:
            waiter.errback(reason)
        self._settle()

    def stored(self) -> None:
        """The blob came into the store by another way than this one's writer."""
        if not self.written:
            self._search()

    # The readers' side.

    def follow(self, listener: IArrivalListener) -> Callable[[], None]:
        """Tell *listener* what is there, then of every growth; gives what stops it."""
        follower = _Follower(listener, self._close)
        self._followers.append(follower)

        def stop() -> None:
            if follower in self._followers:
                self._followers.remove(follower)
                follower.close()
                self._settle()

        if self.fd >= 0 and (self.size or self.complete):
            follower.tell(self)
        elif not self.written:
            self._search()
        return stop

    def wait(self) -> Deferred[None]:
        """Fires when the blob is in the store, fails when its writer gave it up."""
        waiter: Deferred[None] = Deferred(self._leave)
        if self._committed:
            waiter.callback(None)
            return waiter
        self._waiters.append(waiter)
        if not self.written:
            self._search()
        return waiter

    def _leave(self, waiter: Deferred[None]) -> None:
        self._waiters.remove(waiter)
        self._settle()

    def _tell(self) -> None:
        for follower in list(self._followers):
            if follower in self._followers:
                follower.tell(self)

    def _search(self) -> None:
        self._look_again = True
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._find()).addErrback(self._not_readable)

    async def _find(self) -> None:
        try:
            while self._look_again and not (self.written or self._committed):
                self._look_again = False
                found = await self._look()
                if found is not None:
                    self._found(*found)
        finally:
            self._looking = False

    def _found(self, fd: int, size: int) -> None:
        if self.fd >= 0 or not (self._followers or self._waiters):
            self._close(fd)
        else:
            self.fd, self.size, self.complete = fd, size, True
            self._tell()
        if not self.written:
            self.committed()

    def _not_readable(self, reason: Failure) -> None:
        if not self.written:
            self.discarded(reason)

    def _settle(self) -> None:
        if not (self.written or self._followers or self._waiters):
            self._idle(self)
            if self.fd >= 0:
                self._close(self.fd)
                self.fd = -1


class Arrivals:
    """The arrivals of a store: one a blob, while somebody writes, follows or waits.

    :param look: finds a blob in the store: its open file and size, or None.
    :param close: as for :class:`Arrival`.
    """

    def __init__(
        self,
        look: Callable[[Descriptor], Coroutine[Any, Any, tuple[int, int] | None]],
        close: Callable[[int], None],
    ) -> None:
        self._look = look
        self._close = close
        self._all: dict[tuple[Digest, int], Arrival] = {}

    def of(self, expected: Descriptor) -> Arrival:
        """The arrival of *expected*, made if there is none."""
        key = (expected.digest, expected.size)
        if key not in self._all:
            self._all[key] = Arrival(
                expected, lambda: self._look(expected), self._forget, self._close
            )
        return self._all[key]

    def get(self, digest: Digest, size: int) -> Arrival | None:
        """The arrival of a blob, if there is one."""
        return self._all.get((digest, size))

    def _forget(self, arrival: Arrival) -> None:
        key = (arrival.descriptor.digest, arrival.descriptor.size)
        if self._all.get(key) is arrival:
            del self._all[key]


@implementer(ISource)
class Source:
    """See :class:`ctd.storage.interfaces.ISource`; what the unpacker reads a layer from.

    Made by :meth:`ctd.storage.interfaces.IContentStore.source`.
    """

    def __init__(self, descriptor: Descriptor, arrivals: Arrivals) -> None:
        self.descriptor = descriptor
        self._arrivals = arrivals

    async def verified(self) -> None:
        """See :class:`ctd.storage.interfaces.ISource`.

        :raise IngestDiscarded: its writer gave it up.
        :raise DigestMismatch: its bytes were wrong.
        """
        await self._arrivals.of(self.descriptor).wait()

    def follow(self, listener: IArrivalListener) -> Callable[[], None]:
        """Tell *listener* what is there, then of each growth, until what is given is called.

        For a stored blob that is all of it, at once or as soon as the store
        has looked; for an ingest that a writer has open it is what the file
        holds, perhaps before this returns; else nothing until a writer comes.
        A writer that closes its ingest to resume it later is not heard of.
        After ``complete`` only ``failed`` can come, if the bytes turn out wrong.
        What is given can be called at any moment, and again.
        """
        return self._arrivals.of(self.descriptor).follow(listener)
