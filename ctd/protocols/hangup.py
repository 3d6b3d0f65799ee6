"""Noticing that a peer is gone when nothing is being read from it any more.

After a client has closed its writing side (``nc -N`` does, as soon as its
input ends) its socket is always readable, so Twisted takes it out of the
reactor, and would see the client leave only at the next write: for a call that
waits for days, never.  An epoll set that asks for nothing still reports
EPOLLHUP and EPOLLERR, and is itself a descriptor the reactor can wait for.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer


class Watch(Protocol):
    """What tells of peers that have hung up."""

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """Call *gone*, once, when the peer of socket *fd* has closed it."""

    def unwatch(self, fd: int) -> None:
        """Forget *fd*, which may be closed already.  Not watching it is no error."""


@implementer(IReadDescriptor)
class HangUps:
    """One epoll set for all sockets watched; it is open only while there are any."""

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._gone: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """See :class:`Watch`."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        self._epoll.register(fd, 0)
        self._gone[fd] = gone

    def unwatch(self, fd: int) -> None:
        """See :class:`Watch`."""
        if self._gone.pop(fd, None) is None or self._epoll is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:  # closing a socket has taken it out
            pass
        if not self._gone:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    def fileno(self) -> int:
        """See :class:`IReadDescriptor`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def doRead(self) -> None:
        """See :class:`IReadDescriptor`."""
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0):
            gone = self._gone.get(fd)
            if gone is not None:
                self.unwatch(fd)
                gone()

    def connectionLost(self, reason: Failure) -> None:
        """See :class:`IReadDescriptor`: the reactor is ending."""
        self._gone.clear()
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def logPrefix(self) -> str:
        """See :class:`twisted.internet.interfaces.ILoggingContext`."""
        return "hang-ups"
