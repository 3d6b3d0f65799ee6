"""Lines on their way to a client: what it does not read waits here, up to a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITransport
from zope.interface import implementer


@implementer(IPushProducer)
class Outbox:
    """Registered as the transport's producer, so that the transport says when it is full.

    :param limit: the most bytes that wait here, beyond the transport's own buffer.
    :param paused: called when the client falls behind, and *resumed* when it has caught up.
    :param overflow: called once, when more than *limit* would wait; nothing
        is taken after that.
    """

    def __init__(
        self,
        transport: ITransport,
        limit: int,
        paused: Callable[[], None],
        resumed: Callable[[], None],
        overflow: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._limit = limit
        self._on_paused = paused
        self._on_resumed = resumed
        self._overflow = overflow
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._full = False
        self._closed = False
        self._ending = False
        self._waiting: list[Deferred[None]] = []
        transport.registerProducer(self, True)  # type: ignore[attr-defined]

    @property
    def full(self) -> bool:
        """Whether the client is behind."""
        return self._full

    def send(self, line: bytes) -> None:
        """Pass *line* on, now or when the transport takes it.  After the end it is dropped."""
        if self._closed or self._ending:
            return
        if not self._full:
            self._transport.write(line)
            return
        self._size += len(line)
        if self._size > self._limit:
            self.close()
            self._overflow()
        else:
            self._lines.append(line)

    async def drained(self) -> None:
        """Wait until the client has caught up.  After :meth:`close` it never will have."""
        while self._full or self._closed:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)

    def end(self) -> None:
        """Hang up once everything has been passed on."""
        if not self._ending:
            self._ending = True
            self._end_if_passed_on()

    def _end_if_passed_on(self) -> None:
        if not self._full and not self._closed:
            self._transport.unregisterProducer()  # type: ignore[attr-defined]
            self._transport.loseConnection()

    def close(self) -> None:
        """Drop what waits."""
        self._closed = True
        self._lines.clear()
        self._size = 0

    def pauseProducing(self) -> None:
        """See :class:`IPushProducer`."""
        if not self._full:
            self._full = True
            self._on_paused()

    def resumeProducing(self) -> None:
        """See :class:`IPushProducer`."""
        if self._closed:
            return
        self._full = False
        while self._lines and not self._full:
            line = self._lines.popleft()
            self._size -= len(line)
            self._transport.write(line)
        if self._full:
            return
        if self._ending:
            self._end_if_passed_on()
            return
        self._on_resumed()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def stopProducing(self) -> None:
        """See :class:`IPushProducer`."""
        self.close()
