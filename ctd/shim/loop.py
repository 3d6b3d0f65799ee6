"""The event loop of a shim: descriptors, timers, one thread."""

from __future__ import annotations

import heapq
import select
import time

from ctd.shim.log import log_exception

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Events, as epoll(7) has them; errors and hang-ups come without being asked for.
READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
BROKEN = select.EPOLLERR
HUNG_UP = select.EPOLLHUP


class Timer:
    """A call that is due at a time.  :meth:`cancel` takes it back."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None] | None) -> None:
        self.due = due
        self.call = call

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        """Do not call.  Can be repeated, also when it was called."""
        self.call = None


class Loop:
    """Calls who watches a descriptor when something can be done with it.

    Descriptors are watched level-triggered and told one at a time, so that no
    event is ever told of a descriptor that was closed meanwhile.  Watchers may
    be called without need, and each does one bounded piece of work a call.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watchers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._running = True

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call *call* with what happens on *fd*, from now on."""
        self._epoll.register(fd, events)
        self._watchers[fd] = call

    def change(self, fd: int, events: int) -> None:
        """Watch *fd* for these events instead; 0: for errors and hang-ups only."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch *fd* no longer; to be called before it is closed.  Can be repeated."""
        if self._watchers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call *call* once, in so many seconds."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._running = False

    def run(self) -> None:
        """Work until :meth:`stop`."""
        while self._running:
            for fd, events in self._epoll.poll(self._timeout(), 1):
                watcher = self._watchers.get(fd)
                if watcher is not None:
                    try:
                        watcher(events)
                    except Exception:  # noqa: BLE001 (the others go on)
                        log_exception("a watcher failed")
                        self.unwatch(fd)
            self._call_due()

    def _timeout(self) -> float:
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        # epoll counts milliseconds: one more, or it would wake up just too early.
        return max(0.0, self._timers[0].due - time.monotonic() + 0.001)

    def _call_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            call = heapq.heappop(self._timers).call
            if call is not None:
                try:
                    call()
                except Exception:  # noqa: BLE001 (the others go on)
                    log_exception("a timer failed")
