"""A process that is nobody's child as Twisted sees processes: a pidfd and a socket.

A parent learns of a child's end by waitpid and speaks to it over pipes.  A
shim is never the daemon's child, so its end comes by a pidfd and its words
over its unix socket; a ProcessProtocol notices no difference.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport, IReadDescriptor, ITransport
from twisted.internet.protocol import ClientFactory, ProcessProtocol, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd import kernel

#: What the socket is to the protocol: writing goes to 0, what comes is from 1.
STDIN, STDOUT = 0, 1


class _Socket(Protocol):
    """The socket's bytes, passed on."""

    def __init__(self, owner: ProcessTransport) -> None:
        self._owner = owner

    def connectionMade(self) -> None:
        self._owner.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self._owner.protocol.childDataReceived(STDOUT, data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._owner.disconnected(self)


class _Connector(ClientFactory):
    noisy = False

    def __init__(self, owner: ProcessTransport, made: Deferred[None]) -> None:
        self._owner = owner
        self._made = made

    def buildProtocol(self, addr: Any) -> Protocol:
        made, owner = self._made, self._owner

        class Made(_Socket):
            def connectionMade(self) -> None:
                super().connectionMade()
                if not made.called:
                    made.callback(None)

        return Made(owner)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        if not self._made.called:
            self._made.errback(reason)


@implementer(IProcessTransport, IReadDescriptor)
class ProcessTransport:
    """A process found by pid and start time, and its socket, which may come and go.

    :raise ProcessLookupError: there is no such process (any more).
    """

    def __init__(self, reactor: Any, pid: int, start_time: int, protocol: ProcessProtocol) -> None:
        self.pid = pid
        self.protocol = protocol
        self._reactor = reactor
        self._pidfd = kernel.open_process(pid, start_time)
        self._socket: _Socket | None = None
        self._exited = False
        self._abandoned = False
        reactor.addReader(self)
        protocol.makeConnection(self)

    async def connect(self, address: str, seconds: float) -> None:
        """Connect to the process's socket.

        :raise ConnectError: nobody listens, or its queue is full.
        """
        made: Deferred[None] = Deferred(lambda _: connector.stopConnecting())
        connector = self._reactor.connectUNIX(address, _Connector(self, made), timeout=seconds)
        await made

    def connected(self, socket: _Socket) -> None:
        """A socket is there; called by it."""
        if self._abandoned or self._exited:
            _transport(socket).loseConnection()
        else:
            self._socket = socket

    def disconnected(self, socket: _Socket) -> None:
        """A socket is gone; called by it."""
        if self._socket is not socket:
            return
        self._socket = None
        if not self._abandoned:
            self.protocol.childConnectionLost(STDOUT)
            self._maybe_ended()

    def abandon(self) -> None:
        """Tell the protocol nothing any more, and close what is held; the process lives on."""
        self._abandoned = True
        self._close_pidfd()
        self.loseConnection()

    # IReadDescriptor: the pidfd.

    def fileno(self) -> int:
        """The pidfd."""
        return self._pidfd

    def logPrefix(self) -> str:
        """For the reactor's own messages."""
        return f"process {self.pid}"

    def doRead(self) -> None:
        """The process has ended."""
        self._close_pidfd()
        self._exited = True
        self.protocol.processExited(self._reason())
        self._maybe_ended()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor gives the pidfd up."""
        self._close_pidfd()

    def _maybe_ended(self) -> None:
        if self._exited and self._socket is None:
            self.protocol.processEnded(self._reason())

    def _reason(self) -> Failure:
        # Only a parent is told how a process ended.
        return Failure(ProcessTerminated())

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            self._reactor.removeReader(self)
            os.close(self._pidfd)
            self._pidfd = -1

    # IProcessTransport.

    def writeToChild(self, childFD: int, data: bytes) -> None:
        """Send *data* over the socket; without one it is dropped."""
        if self._socket is not None:
            _transport(self._socket).write(data)

    def write(self, data: bytes) -> None:
        """See :meth:`writeToChild`."""
        self.writeToChild(STDIN, data)

    def writeSequence(self, iovec: Any) -> None:
        """See :meth:`write`."""
        self.write(b"".join(iovec))

    def closeChildFD(self, descriptor: int) -> None:
        """Close the socket, whichever end is named."""
        self.loseConnection()

    def closeStdin(self) -> None:
        """Close the socket."""
        self.loseConnection()

    def closeStdout(self) -> None:
        """Close the socket."""
        self.loseConnection()

    def closeStderr(self) -> None:
        """There is none."""

    def loseConnection(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            _transport(self._socket).loseConnection()

    def getPeer(self) -> Any:
        """See ITransport; processes have none."""
        return None

    def getHost(self) -> Any:
        """See ITransport; processes have none."""
        return None

    def signalProcess(self, signalID: str | int) -> None:
        """Send a signal; the pidfd makes sure that it is this process that gets it.

        :raise ProcessExitedAlready: it has ended.
        """
        number = getattr(signal, f"SIG{signalID}", None) if isinstance(signalID, str) else signalID
        if number is None:
            raise ValueError(f"no signal {signalID!r}")
        try:
            if self._pidfd < 0:
                raise ProcessLookupError
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            raise ProcessExitedAlready() from None


def _transport(socket: _Socket) -> ITransport:
    assert socket.transport is not None
    return socket.transport
