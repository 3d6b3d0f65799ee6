"""The template, which forks shims: spawned, supervised and restarted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

import ctd.shim
from ctd.errors import CtdError, DeadlineExceeded, Unavailable
from ctd.keeping import Kept, kill
from ctd.runtime.exchange import Exchange, Refused

#: How long a fork may take, in seconds; a template that is silent for longer is replaced.
FORK_SECONDS = 5.0

#: A template that lived for longer, in seconds, is replaced at once when it dies.
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

    def __init__(self, clock: IReactorTime, kept: Kept[_TemplateProcess]) -> None:
        self._clock = clock
        self._kept = kept
        self.exchange = Exchange(clock, self._write, lambda method, params: None)

    def _write(self, line: bytes) -> None:
        assert self.transport is not None
        self.transport.write(line)

    def outReceived(self, data: bytes) -> None:
        self.exchange.received(data)

    def errReceived(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            self._log.warn("template: {line}", line=line)

    def processEnded(self, reason: Failure) -> None:
        self._kept.ended(self, reason.getErrorMessage())
        self.exchange.lost(TemplateDied(reason.getErrorMessage()))


class Template:
    """The template of one daemon: there is one while :meth:`start` .. :meth:`stop`.

    Running shims do not care whether it lives.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorProcess, clock: IReactorTime) -> None:
        self._kept: Kept[_TemplateProcess] = Kept(
            reactor,
            clock,
            "template",
            ["-I", "-S", str(PROGRAM)],
            {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            YOUNG,
            lambda: _TemplateProcess(clock, self._kept),
        )

    def start(self) -> None:
        """Spawn it.  :raise OSError: it cannot be."""
        self._kept.start()

    async def stop(self) -> None:
        """Let it end, by the end of its standard input."""
        await self._kept.stop()

    async def fork(self, params: Mapping[str, Any]) -> tuple[int, int]:
        """Have a shim forked; gives its pid and start time.

        :raise TemplateDied: it died meanwhile; the shim may have been forked or not.
        :raise Unavailable: it refuses, or the daemon is stopping.
        """
        process = await self._kept.running()
        try:
            forked = await process.exchange.request("fork", params, FORK_SECONDS)
        except Refused as error:
            raise Unavailable("template", str(error)) from error
        except DeadlineExceeded as error:
            assert process.transport is not None
            kill(process.transport)  # another one takes its place
            raise TemplateDied(str(error)) from error
        return forked["pid"], forked["start_time"]
