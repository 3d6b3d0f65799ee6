"""One call under way, as its method sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ctd.protocols import jsonrpc
from ctd.protocols.peers import Peer

#: Seconds between two ``progress`` notifications of one call.
PROGRESS_INTERVAL = 0.1


class Line(Protocol):
    """The connection a call came by."""

    def send(self, line: bytes) -> None:
        """Pass a line on to the client."""

    async def drained(self) -> None:
        """Wait until the client has read most of what it was sent."""

    @property
    def behind(self) -> bool:
        """Whether the client has not."""

    def cancel(self, id: int | str) -> bool:
        """Cancel a call of this connection, if there is one of that id."""


class Throttle:
    """Passes values on, at most one an interval; of those in between, the last.

    :param held: while it gives true nothing is passed on, except by :meth:`flush`.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        send: Callable[[Any], None],
        held: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._send = send
        self._held = held
        self._pending: list[Any] = []
        self._timer: IDelayedCall | None = None

    def offer(self, value: Any) -> None:
        """Pass *value* on, now or later, unless another one comes before that."""
        self._pending = [value]
        if self._timer is None:
            self._tick()

    def flush(self) -> None:
        """Pass on at once what waits, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pass()

    def _tick(self) -> None:
        self._timer = None
        if not self._pending:
            return
        if not self._held():
            self._pass()
        self._timer = self._clock.callLater(self._interval, self._tick)

    def _pass(self) -> None:
        pending, self._pending = self._pending, []
        for value in pending:
            self._send(value)


class Call:
    """What a method is given besides its parameters.

    :ivar id: as the client chose it; None if it gave none.
    :ivar peer: who called.
    """

    def __init__(self, id: int | str | None, peer: Peer, line: Line, clock: IReactorTime) -> None:
        self.id = id
        self.peer = peer
        self._line = line
        self._over = False
        self._progress = Throttle(
            clock,
            PROGRESS_INTERVAL,
            lambda params: self.notify("progress", params),
            lambda: line.behind,
        )

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a notification about this call; after its end it is dropped.

        Who sends many waits for :meth:`drained` before each.
        """
        if not self._over:
            self._line.send(jsonrpc.notification(method, {"call": self.id, **params}))

    def progress(self, params: dict[str, Any]) -> None:
        """Send a ``progress`` notification, some ten a second; the last one always arrives."""
        if not self._over:
            self._progress.offer(params)

    async def drained(self) -> None:
        """Wait until the client has read most of what it was sent."""
        await self._line.drained()

    def cancel(self, id: int | str) -> bool:
        """Cancel another call of this connection; false if there is none of that id."""
        return self._line.cancel(id)

    def end(self) -> None:
        """Send what waits; from now on the call says nothing."""
        self._progress.flush()
        self._over = True
