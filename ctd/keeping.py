"""A process of the daemon's own that is kept running: spawned, replaced when it dies, ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IDelayedCall,
    IProcessTransport,
    IReactorProcess,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from ctd.errors import Unavailable

#: The pause before one that died is replaced: doubled each time up to a limit, in seconds.
PAUSE = 0.1
LONGEST_PAUSE = 5.0

#: How long one may take to end at the end of its standard input, in seconds.
END_SECONDS = 5.0


K = TypeVar("K", bound=ProcessProtocol)


class Kept(Generic[K]):
    """One Python program, of which there is one process from :meth:`start` to :meth:`stop`.

    :param what: what an error or a log line calls it.
    :param young: a process that lived for longer is replaced at once, in seconds.
    :param make: makes the protocol of each process; it tells :meth:`ended`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorProcess,
        clock: IReactorTime,
        what: str,
        arguments: Sequence[str],
        env: dict[str, str],
        young: float,
        make: Callable[[], K],
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._what = what
        self._command = [sys.executable, *arguments]
        self._env = env
        self._young = young
        self._make = make
        self._process: K | None = None
        self._started_at = 0.0
        self._pause = 0.0
        self._restart: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []
        self._stopping = False
        self._gone: Deferred[None] | None = None

    def start(self) -> None:
        """Spawn it.  :raise OSError: it cannot be."""
        process, started_at = self._make(), self._clock.seconds()
        self._reactor.spawnProcess(
            process, self._command[0], self._command, env=self._env, path="/"
        )
        self._process, self._started_at = process, started_at
        self._wake()

    async def running(self) -> K:
        """Its process, once there is one.  :raise Unavailable: the daemon is stopping."""
        while self._process is None:
            if self._stopping:
                raise Unavailable(self._what, "the daemon is stopping")
            waiter: Deferred[None] = Deferred(self._leave)
            self._waiting.append(waiter)
            await waiter
        return self._process

    async def stop(self) -> None:
        """Let it end, by the end of its standard input."""
        self._stopping = True
        self._wake()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is not None:
            self._gone = Deferred()
            transport = self._process.transport
            assert transport is not None
            transport.closeStdin()
            timer = self._clock.callLater(END_SECONDS, kill, transport)
            await self._gone
            if timer.active():
                timer.cancel()

    def ended(self, process: K, reason: str) -> None:
        """One has died; called by its protocol."""
        started_at = self._started_at
        if self._process is process:
            self._process = None
        if self._stopping:
            if self._gone is not None:
                self._gone.callback(None)
            return
        if self._clock.seconds() - started_at > self._young:
            self._pause = 0.0
        self._log.error("the {what} died: {reason}", what=self._what, reason=reason)
        self._start_later()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)

    def _leave(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def _start_later(self) -> None:
        self._restart = self._clock.callLater(self._pause, self._start_again)
        self._pause = min(max(self._pause * 2, PAUSE), LONGEST_PAUSE)

    def _start_again(self) -> None:
        self._restart = None
        try:
            self.start()
        except OSError as error:  # no memory, or too many processes: just now
            self._log.error("the {what} cannot be started: {error}", what=self._what, error=error)
            self._start_later()


def kill(transport: IProcessTransport) -> None:
    """Kill a process; ended already is fine."""
    try:
        transport.signalProcess("KILL")
    except ProcessExitedAlready:
        pass
