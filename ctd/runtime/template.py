"""The template, which forks shims: spawned, supervised and restarted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

import ctd.shim
from ctd.errors import CtdError, DeadlineExceeded, Unavailable
from ctd.runtime.exchange import Exchange, Refused

#: How long a fork may take, in seconds; a template that is silent for longer is replaced.
FORK_SECONDS = 5.0

#: The pause before a template that died young is replaced: doubled each time up to a limit.
PAUSE = 0.1
LONGEST_PAUSE = 5.0
YOUNG = 10.0

PROGRAM = Path(ctd.shim.__file__).with_name("template.py")


@attrs.define(auto_exc=True)
class TemplateDied(CtdError):
    """The template was killed while it was asked for a shim."""

    kind = "unavailable"
    reason: str


class _TemplateProcess(ProcessProtocol):
    """One template: its standard streams, and its end."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, template: Template) -> None:
        self._clock = clock
        self._template = template
        self.exchange = Exchange(clock, self._write, lambda method, params: None)
        self.started_at = clock.seconds()

    def _write(self, line: bytes) -> None:
        assert self.transport is not None
        self.transport.write(line)

    def outReceived(self, data: bytes) -> None:
        self.exchange.received(data)

    def errReceived(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            self._log.warn("template: {line}", line=line)

    def processEnded(self, reason: Failure) -> None:
        self._template.ended(self)
        self.exchange.lost(TemplateDied(reason.getErrorMessage()))


class Template:
    """The template of one daemon: there is one while :meth:`start` .. :meth:`stop`.

    Running shims do not care whether it lives.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorProcess, clock: IReactorTime) -> None:
        self._reactor = reactor
        self._clock = clock
        self._process: _TemplateProcess | None = None
        self._pause = 0.0
        self._restart: Any = None
        self._waiting: list[Deferred[None]] = []
        self._stopping = False
        self._gone: Deferred[None] | None = None

    def start(self) -> None:
        """Spawn it.  :raise OSError: it cannot be."""
        process = _TemplateProcess(self._clock, self)
        self._reactor.spawnProcess(
            process,
            sys.executable,
            [sys.executable, "-I", "-S", str(PROGRAM)],
            env={"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            path="/",
        )
        self._process = process
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)

    def _leave(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

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
            kill = self._clock.callLater(5.0, _kill, transport)
            await self._gone
            if kill.active():
                kill.cancel()

    def ended(self, process: _TemplateProcess) -> None:
        """One has died; called by it."""
        if self._process is process:
            self._process = None
        if self._stopping:
            if self._gone is not None:
                self._gone.callback(None)
            return
        if self._clock.seconds() - process.started_at > YOUNG:
            self._pause = 0.0
        self._log.error("the template died; another one is started in {pause} s", pause=self._pause)
        self._start_later()

    def _start_later(self) -> None:
        self._restart = self._clock.callLater(self._pause, self._start_again)
        self._pause = min(max(self._pause * 2, PAUSE), LONGEST_PAUSE)

    def _start_again(self) -> None:
        self._restart = None
        try:
            self.start()
        except OSError as error:  # no memory, or too many processes: just now
            self._log.error("the template cannot be started: {error}", error=error)
            self._start_later()

    async def fork(self, params: Mapping[str, Any]) -> tuple[int, int]:
        """Have a shim forked; gives its pid and start time.

        :raise TemplateDied: it died meanwhile; the shim may have been forked or not.
        :raise Unavailable: it refuses, or the daemon is stopping.
        """
        process = await self._running()
        try:
            forked = await process.exchange.request("fork", params, FORK_SECONDS)
        except Refused as error:
            raise Unavailable("template", str(error)) from error
        except DeadlineExceeded as error:
            assert process.transport is not None
            _kill(process.transport)  # another one takes its place
            raise TemplateDied(str(error)) from error
        return forked["pid"], forked["start_time"]

    async def _running(self) -> _TemplateProcess:
        while self._process is None:
            if self._stopping:
                raise Unavailable("template", "the daemon is stopping")
            waiter: Deferred[None] = Deferred(self._leave)
            self._waiting.append(waiter)
            await waiter
        return self._process


def _kill(transport: IProcessTransport) -> None:
    try:
        transport.signalProcess("KILL")
    except ProcessExitedAlready:
        pass
