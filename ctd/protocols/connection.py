"""One client of the control socket: a thin protocol over the codec, the table and the outbox.

Calls on a connection run concurrently.  A client that closes its writing side
still gets its answers; one that closes the connection cancels its calls.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.errors import CtdError, ResourceExhausted, Unavailable
from ctd.protocols import jsonrpc
from ctd.protocols.call import Call
from ctd.protocols.lines import LINE_LIMIT, LineSplitter, LineTooLong
from ctd.protocols.outbox import Outbox
from ctd.protocols.params import decode
from ctd.protocols.peers import Peer

if TYPE_CHECKING:
    from ctd.protocols.server import ControlFactory

#: The most lines of one client that are taken in one turn of the reactor.
TURN = 32

#: Seconds a client has, when the daemon stops, to read what it was sent.
GRACE = 1.0


@attrs.frozen
class Limits:
    """What a client may use.

    :ivar line: bytes of a line.
    :ivar calls: calls under way on a connection.
    :ivar connections: connections in all.
    :ivar unread: bytes that wait for a client which does not read, beyond
        the transport's 64 KiB; more, and it is cut off.
    """

    line: int = LINE_LIMIT
    calls: int = 1024
    connections: int = 1000
    unread: int = 16 << 20


@attrs.define(eq=False)
class _Running:
    call: Call
    deferred: Deferred[bytes] | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        # Once: a second time would cut the clean-up that the first has begun.
        if not self.cancelled and self.deferred is not None:
            self.cancelled = True
            self.deferred.cancel()


@implementer(IHalfCloseableProtocol)
class ControlProtocol(Protocol):
    """One client."""

    log = Logger()
    transport: ITransport

    _outbox: Outbox
    _peer: Peer

    def __init__(self, factory: ControlFactory) -> None:
        self._factory = factory
        self._lines = LineSplitter(factory.limits.line)
        self._queue: deque[bytes | LineTooLong] = deque()
        self._turn: IDelayedCall | None = None
        self._reading = True
        self._running: set[_Running] = set()
        self._ids: dict[int | str, _Running] = {}
        self._gone = False
        self._input_ended = False
        self._refused = False
        self._watched: int | None = None
        self._grace: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Let the client in, or say why not."""
        self._outbox = Outbox(
            self.transport,
            self._factory.limits.unread,
            self._regulate,
            self._work,
            self._overflow,
        )
        try:
            self._peer = self._factory.admit(self)
        except CtdError as error:
            self._refused = True
            self.log.info("client refused: {error}", error=error)
            self.send(jsonrpc.failure(None, error))
            self._outbox.end()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes."""
        if not self._refused:
            self._queue.extend(self._lines.feed(data))
            self._work()

    def readConnectionLost(self) -> None:
        """The client will send nothing more; it may still read, or be gone altogether."""
        self._input_ended = True
        if not self._refused:
            self._queue.extend(self._lines.end())
            self._work()
        if self._busy:
            self._watched = self.transport.fileno()  # type: ignore[attr-defined]
            self._factory.hangups.watch(self._watched, self._hung_up)

    def writeConnectionLost(self) -> None:
        """Never: only the whole connection is closed here."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client is gone: its calls are cancelled."""
        self._gone = True
        self._outbox.close()
        if self._watched is not None:
            self._factory.hangups.unwatch(self._watched)
        for timer in (self._grace, self._turn):
            if timer is not None and timer.active():
                timer.cancel()
        self._queue.clear()
        self.cancel_all()
        self._forget_if_over()

    def send(self, line: bytes) -> None:
        """See :class:`ctd.protocols.call.Line`."""
        self._outbox.send(line)

    @property
    def behind(self) -> bool:
        """See :class:`ctd.protocols.call.Line`."""
        return self._outbox.full

    async def drained(self) -> None:
        """See :class:`ctd.protocols.call.Line`."""
        await self._outbox.drained()

    def cancel(self, id: int | str) -> bool:
        """See :class:`ctd.protocols.call.Line`."""
        running = self._ids.get(id)
        if running is None or running.deferred is None:
            return False
        running.cancel()
        return True

    def cancel_all(self) -> None:
        """Cancel every call under way."""
        for running in list(self._running):
            running.cancel()

    def stop(self) -> None:
        """Cancel every call, tell the client, and close the connection."""
        self._input_ended = True
        self._queue.clear()
        self._regulate()
        self.cancel_all()
        self._end_if_idle()

    def abort(self) -> None:
        """Close the connection now."""
        self.transport.abortConnection()  # type: ignore[attr-defined]

    @property
    def _busy(self) -> bool:
        return bool(self._running or self._queue) and not self._gone

    def _work(self) -> None:
        """Take lines, some in a turn, for as long as the client reads its answers."""
        if self._turn is not None:
            return
        for _ in range(TURN):
            if not self._queue or self.behind or self._gone:
                break
            self._take(self._queue.popleft())
        if self._queue and not self.behind and not self._gone:
            self._turn = self._factory.clock.callLater(0, self._next_turn)
        self._regulate()
        self._end_if_idle()

    def _next_turn(self) -> None:
        self._turn = None
        self._work()

    def _regulate(self) -> None:
        """Read from the client only while it reads, and all it sent has been taken."""
        reading = not (self.behind or self._queue or self._input_ended)
        if reading != self._reading and not self._gone:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()  # type: ignore[attr-defined]
            else:
                self.transport.pauseProducing()  # type: ignore[attr-defined]

    def _take(self, line: bytes | LineTooLong) -> None:
        if isinstance(line, LineTooLong):
            request: jsonrpc.Request | jsonrpc.Refusal = jsonrpc.Refusal(
                None, ResourceExhausted("size of a line in bytes", line.limit)
            )
        else:
            request = jsonrpc.parse(line)
        if isinstance(request, jsonrpc.Request):
            request = self._admit(request)
        if isinstance(request, jsonrpc.Refusal):
            self.send(jsonrpc.failure(request.id, request.error))
        else:
            self._begin(request)

    def _admit(self, request: jsonrpc.Request) -> jsonrpc.Request | jsonrpc.Refusal:
        if request.id in self._ids:
            # Under its own id the answer would seem to be that of the call under way.
            reason = f"a call with the id {request.id!r} is under way on this connection"
            return jsonrpc.Refusal(None, jsonrpc.InvalidRequest(reason))
        if self._factory.stopping:
            return jsonrpc.Refusal(request.id, Unavailable("ctd", "it is stopping"))
        if len(self._running) >= self._factory.limits.calls:
            limit = ResourceExhausted("calls under way on a connection", self._factory.limits.calls)
            return jsonrpc.Refusal(request.id, limit)
        return request

    def _begin(self, request: jsonrpc.Request) -> None:
        running = _Running(Call(request.id, self._peer, self, self._factory.clock))
        self._running.add(running)
        if request.id is not None:
            self._ids[request.id] = running
        deferred = Deferred.fromCoroutine(self._answer(running.call, request))
        running.deferred = deferred
        deferred.addCallback(self._ended, running, request.id)
        deferred.addErrback(lambda f: self.log.failure("cannot answer a call", f))
        if self._gone:
            running.cancel()

    async def _answer(self, call: Call, request: jsonrpc.Request) -> bytes:
        """The line that answers *request*; raises nothing."""
        try:
            method = self._factory.table.find(request.method)
            params = decode(request.params, method.params)
            return jsonrpc.result(request.id, await method.handler(call, params))
        except CtdError as error:
            return jsonrpc.failure(request.id, error)
        except CancelledError:
            stopping = Unavailable("ctd", "it is stopping")
            return jsonrpc.failure(
                request.id, stopping if self._factory.stopping else jsonrpc.Cancelled()
            )
        except Exception as error:  # noqa: BLE001 (a defect in a method must not take others along)
            incident = secrets.token_hex(4)
            self.log.failure(
                "{incident}: {method} failed", incident=incident, method=request.method
            )
            return jsonrpc.failure(request.id, jsonrpc.Internal(incident, type(error).__name__))

    def _ended(self, answer: bytes, running: _Running, id: int | str | None) -> None:
        self._running.discard(running)
        if id is not None:
            del self._ids[id]
        running.call.end()
        self.send(answer)
        self._end_if_idle()
        self._forget_if_over()

    def _end_if_idle(self) -> None:
        """After a half-close, or when the daemon stops: hang up when all is answered."""
        if not self._input_ended or self._gone or self._busy:
            return
        self._outbox.end()
        if self._factory.stopping and self._grace is None:
            self._grace = self._factory.clock.callLater(GRACE, self.abort)

    def _forget_if_over(self) -> None:
        if self._gone and not self._running:
            self._factory.forget(self)

    def _overflow(self) -> None:
        self.log.warn(
            "client with pid {pid} does not read: hanging up at {limit} bytes",
            pid=self._peer.pid,
            limit=self._factory.limits.unread,
        )
        self.abort()

    def _hung_up(self) -> None:
        self._watched = None
        self.abort()
