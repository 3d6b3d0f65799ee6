"""One live shim, as the daemon speaks with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.errors import (
    CtdError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from ctd.model import Mount
from ctd.protocols import shim as words
from ctd.runtime.errors import CommandNotExecutable, CommandNotFound, RuntimeFailure, ShimGone
from ctd.runtime.exchange import Exchange, Refused
from ctd.runtime.interfaces import Exit, IShim, IShimListener, ProcessState, Stdio
from ctd.runtime.transport import STDOUT, ProcessTransport

#: How long a shim may take to answer, in seconds: at once, or when it runs the OCI runtime.
ANSWER_SECONDS = 5.0
RUNTIME_SECONDS = 120.0

#: The pause before connecting again to a shim that hung up: doubled up to a limit, in seconds.
PAUSE = 0.05
LONGEST_PAUSE = 5.0


@implementer(IShim)
class ShimProcess(ProcessProtocol):
    """See :class:`ctd.runtime.interfaces.IShim`.

    The same class whether the shim was just forked or a former daemon's:
    :class:`ctd.runtime.transport.ProcessTransport` tells it of data and of the
    end.  A connection that is lost while the shim lives is made again, and
    what ended meanwhile is told then.

    :param directory: the shim's, where its socket is.
    :param dirfd: *directory*, open: sockets' paths are short that way.  It is this one's to close.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        run: str,
        runtime: str,
        dirfd: int,
        listener: IShimListener,
        close: Callable[[int], None],
    ) -> None:
        self.run = run
        self._clock = clock
        self._runtime = runtime
        self._dirfd = dirfd
        self._close = close
        self._listener = listener
        self._exchange: Exchange | None = None
        self._transport: ProcessTransport | None = None
        self._connecting: Deferred[None] | None = None
        self._ended = False
        self._greeted = False

    @property
    def pid(self) -> int:
        """See :class:`IShim`."""
        assert self._transport is not None
        return self._transport.pid

    # ProcessProtocol.

    def makeConnection(self, transport: ProcessTransport) -> None:
        """See ProcessProtocol."""
        self._transport = transport
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """See ProcessProtocol."""
        if self._exchange is not None:
            self._exchange.received(data)

    def childConnectionLost(self, childFD: int) -> None:
        """See ProcessProtocol."""
        if childFD != STDOUT:
            return
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(ShimGone(self.run, "the connection to it was lost"))
            if self._greeted and not self._ended and self._connecting is None:
                self._reconnect()

    def processExited(self, reason: Failure) -> None:
        """See ProcessProtocol."""
        self._ended = True
        if self._connecting is not None:
            self._connecting.cancel()

    def processEnded(self, reason: Failure) -> None:
        """See ProcessProtocol."""
        self._close_directory()
        self._listener.died(self.run)

    # Connecting.

    async def greet(self, seconds: float) -> None:
        """Connect and agree on a version.

        :raise Unavailable: it does not answer within *seconds*.
        :raise ShimGone: it has died.
        """
        assert self._transport is not None
        if self._ended:
            raise ShimGone(self.run, "it has died")
        address = str(Path("/proc/self/fd", str(self._dirfd), words.SOCKET))
        try:
            await self._transport.connect(address, seconds)
            exchange = self._exchange = Exchange(self._clock, self._send, self._notified)
            hello = await exchange.request("hello", {"versions": [words.VERSION]}, seconds)
        except (ShimGone, ConnectError, Refused, DeadlineExceeded) as error:
            self.hang_up()
            if self._ended:
                raise ShimGone(self.run, "it has died") from error
            # It may have hung up only.
            raise Unavailable(f"shim {self.run}", str(error)) from error
        if not isinstance(hello, dict) or (
            (hello.get("version"), hello.get("run")) != (words.VERSION, self.run)
        ):
            self.hang_up()
            raise Unavailable(f"shim {self.run}", f"it answers {hello!r}")
        self._greeted = True

    def hang_up(self) -> None:
        """Close the connection and do not come back by itself."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lost(ShimGone(self.run, "the daemon has hung up"))
        if self._transport is not None:
            self._transport.loseConnection()

    def abandon(self) -> None:
        """Have no more to do with it; it lives on, if it lives, and nothing more is told."""
        self._ended = True
        if self._connecting is not None:
            self._connecting.cancel()
        self.hang_up()
        if self._transport is not None:
            self._transport.abandon()
        self._close_directory()

    def _close_directory(self) -> None:
        if self._dirfd >= 0:
            self._close(self._dirfd)
            self._dirfd = -1

    def _reconnect(self) -> None:
        self._connecting = Deferred.fromCoroutine(self._connect_again())
        self._connecting.addErrback(self._not_connected)

    def _not_connected(self, failure: Failure) -> None:
        if not failure.check(CancelledError, ShimGone):
            self._log.failure("connecting again to shim {run}", failure, run=self.run)

    async def _connect_again(self) -> None:
        pause = PAUSE
        while not self._ended:
            await deferLater(self._clock, pause, lambda: None)
            try:
                await self.greet(ANSWER_SECONDS)
                self._listener.reconnected(self.run, await self.state())
                break
            except (CtdError, OSError) as error:
                self._log.warn("shim {run} is out of reach: {error}", run=self.run, error=error)
                pause = min(pause * 2, LONGEST_PAUSE)
        self._connecting = None

    def _send(self, line: bytes) -> None:
        if self._transport is not None:
            self._transport.write(line)

    def _notified(self, method: str, params: Mapping[str, Any]) -> None:
        if method != "exited":
            return
        try:
            process, exit = str(params["process"]), _exit(params)
        except KeyError as error:
            self._log.error("shim {run} tells of an exit without {key}", run=self.run, key=error)
            return
        self._listener.exited(self.run, process, exit)

    # IShim.

    async def _call(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        if self._exchange is None:
            raise ShimGone(self.run, "it has died" if self._ended else "it does not answer")
        try:
            return await self._exchange.request(method, params, seconds)
        except Refused as refused:
            raise _error(self._runtime, method, params, refused) from None

    async def create(self, mounts: Sequence[Mount], stdio: Stdio, terminal: bool) -> ProcessState:
        """See :class:`IShim`."""
        params = {
            "mounts": [
                {"type": m.type, "source": m.source, "options": m.options, "target": m.target}
                for m in mounts
            ],
            "stdio": attrs.asdict(stdio),
            "terminal": terminal,
        }
        return _state(await self._call("create", params, RUNTIME_SECONDS))

    async def start(self) -> ProcessState:
        """See :class:`IShim`."""
        return _state(await self._call("start", {}, RUNTIME_SECONDS))

    async def exec(
        self, process: str, spec: Mapping[str, Any], stdio: Stdio, terminal: bool
    ) -> ProcessState:
        """See :class:`IShim`."""
        params = {
            "process": process,
            "spec": spec,
            "stdio": attrs.asdict(stdio),
            "terminal": terminal,
        }
        return _state(await self._call("exec", params, RUNTIME_SECONDS))

    async def kill(self, process: str, signal: int, all: bool = False) -> None:
        """See :class:`IShim`."""
        params = {"process": process, "signal": signal, "all": all}
        await self._call("kill", params, RUNTIME_SECONDS)

    async def close_stdin(self, process: str) -> None:
        """See :class:`IShim`."""
        await self._call("close_stdin", {"process": process}, ANSWER_SECONDS)

    async def state(self) -> Sequence[ProcessState]:
        """See :class:`IShim`."""
        found = await self._call("state", {}, ANSWER_SECONDS)
        return [_state(process) for process in found["processes"]]

    async def delete(self, process: str) -> None:
        """See :class:`IShim`."""
        await self._call("delete", {"process": process}, RUNTIME_SECONDS)

    async def shutdown(self) -> None:
        """See :class:`IShim`."""
        await self._call("shutdown", {}, ANSWER_SECONDS)


def _exit(fields: Mapping[str, Any]) -> Exit:
    return Exit(
        fields["exit_status"],
        fields["exit_reason"],
        fields["exited_at"],
        fields.get("started_at"),
    )


def _state(fields: Mapping[str, Any]) -> ProcessState:
    exit = None if fields.get("exit_status") is None else _exit(fields)
    return ProcessState(
        fields["id"], fields["status"], fields["pid"], fields.get("started_at"), exit
    )


def _error(runtime: str, method: str, params: Mapping[str, Any], refused: Refused) -> CtdError:
    """A shim's error as one of ours (design/shim-protocol.md, "Error kinds")."""
    data, process = refused.data, str(params.get("process", "init"))
    command = str(data.get("command", ""))
    match refused.kind_:
        case words.COMMAND_NOT_FOUND:
            return CommandNotFound(command, refused.message)
        case words.COMMAND_NOT_EXECUTABLE:
            return CommandNotExecutable(command, refused.message)
        case words.FAILED_PRECONDITION:
            return FailedPrecondition("process", process, refused.message)
        case words.NOT_FOUND:
            return NotFound("process", process)
        case words.INVALID_ARGUMENT:
            return InvalidArgument(str(data.get("field", "")), refused.message)
        case words.UNIMPLEMENTED:
            return Unimplemented(method, refused.message)
    operation = str(data.get("operation", method))
    return RuntimeFailure(runtime, operation, refused.message)
