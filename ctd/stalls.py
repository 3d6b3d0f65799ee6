"""How long the reactor was kept from its work: the daemon's own measure of itself."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: How often the reactor is looked at, and from what lateness on a stall is logged: seconds.
INTERVAL = 0.05
LIMIT = 0.1


@attrs.frozen
class Stalls:
    """What was measured.

    :ivar longest: the longest stall since the start, in seconds.
    :ivar over_limit: how many were over :data:`LIMIT`.
    """

    longest: float = 0.0
    over_limit: int = 0


class StallMeter(Service):
    """Wakes up at fixed intervals and notes by how much it was late.

    :param monotonic: a clock that nobody sets.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float]) -> None:
        self.stalls = Stalls()
        self._monotonic = monotonic
        self._call = LoopingCall(self._look)
        self._call.clock = clock
        self._expected = 0.0

    def startService(self) -> None:
        """Begin to measure."""
        super().startService()  # type: ignore[no-untyped-call]
        self._expected = self._monotonic()
        self._call.start(INTERVAL)

    def stopService(self) -> None:
        """End measuring."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._call.stop()

    def _look(self) -> None:
        now = self._monotonic()
        late = max(0.0, now - self._expected)
        if late > LIMIT:
            self._log.warn("the reactor was stalled for {late:.3f} s", late=late)
        self.stalls = Stalls(
            max(self.stalls.longest, late), self.stalls.over_limit + (late > LIMIT)
        )
        self._expected = now + INTERVAL
