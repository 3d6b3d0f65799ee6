"""A blob's bytes on their way from a socket to whoever stores them."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH
from zope.interface import implementer

from ctd.fetch.errors import TransferBroken
from ctd.fetch.exchange import Reply
from ctd.fetch.interfaces import IBlobStream
from ctd.model import Descriptor

#: Chunks have at least this many bytes, unless the network is slow: smaller
#: ones wait LINGER seconds for more.  Each costs its consumer a thread switch.
CHUNK_SIZE = 256 << 10
LINGER = 0.02
#: Reading stops at this many waiting bytes, and goes on at half of them.
WAITING_LIMIT = 1 << 20
#: How long a server may take for so many bytes: a drip is no better than silence.
SILENCE_SECONDS = 30.0
STEP_SIZE = 1 << 10

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


def opened(clock: IReactorTime, reply: Reply, blob: Descriptor, offset: int) -> BlobStream:
    """The stream of a reply of status 200 or 206 to a request for *blob* from *offset*.

    :raise TransferBroken: what the server announces is not what was asked for.
    """
    problem, begin = None, 0
    if reply.status == 206:
        begin, problem = offset, _range_problem(reply.header("Content-Range"), blob.size, offset)
    length = reply.response.length
    if problem is None and length is not UNKNOWN_LENGTH and length != blob.size - begin:
        problem = f"the server declares {length} bytes, not {blob.size - begin}"
    if problem is not None:
        reply.hang_up()
        raise TransferBroken(str(blob.digest), offset, problem)
    stream = BlobStream(clock, blob, begin)
    reply.response.deliverBody(stream)
    return stream


def _range_problem(header: str, size: int, offset: int) -> str | None:
    matched = _CONTENT_RANGE.fullmatch(header.strip())
    if offset == 0 or matched is None:
        return "the server sends a part that was not asked for"
    if (int(matched[1]), int(matched[2])) != (offset, size - 1):
        return f"the server sends bytes {matched[1]} to {matched[2]} of {size}, not from {offset}"
    if matched[3] not in ("*", str(size)):
        return f"the server declares {matched[3]} bytes, not {size}"
    return None


@implementer(IBlobStream)
class BlobStream(Protocol):
    """See :class:`ctd.fetch.interfaces.IBlobStream`.

    The body's protocol and its reader in one: chunks go from ``dataReceived``
    to the reader as they are, joined only where they are small.
    """

    transport: Any

    def __init__(self, clock: IReactorTime, blob: Descriptor, offset: int) -> None:
        self.offset = offset
        self._clock = clock
        self._blob = blob
        self._missing = blob.size - offset
        self._waiting: deque[bytes] = deque()
        self._size = self._step = 0
        self._paused = self._lingered = self._over = False
        self._broken: TransferBroken | None = None
        self._reader: Deferred[None] | None = None
        self._heard = clock.seconds()
        self._silence: IDelayedCall | None = clock.callLater(SILENCE_SECONDS, self._watch)
        self._linger: IDelayedCall | None = None

    # What the HTTP client calls.

    def dataReceived(self, data: bytes) -> None:
        """Keep what came, and stop reading if much waits."""
        if self._over:
            return
        self._step += len(data)
        if self._step >= STEP_SIZE:
            self._heard, self._step = self._clock.seconds(), 0
        excess = len(data) > self._missing
        if excess:
            data = data[: self._missing]
        if data:
            self._missing -= len(data)
            self._waiting.append(data)
            self._size += len(data)
        if excess:
            self._break("it goes on after its declared size")
        elif self._size >= WAITING_LIMIT and not self._paused:
            self._paused = True
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = Failure(ResponseDone())) -> None:  # noqa: B008
        """The body's end, or the connection's."""
        if self._over:
            return
        if self._missing:
            self._finish(f"it ended {self._missing} bytes early")
        elif reason.check(ResponseDone, PotentialDataLoss):
            self._finish(None)
        else:
            self._finish("the connection broke before its end")

    # What the reader calls.

    def __aiter__(self) -> BlobStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._due():
            self._reader = Deferred(lambda _: None)
            try:
                await self._reader
            finally:
                self._reader = None
        if self._waiting:
            return self._take()
        if self._broken is not None:
            raise self._broken
        raise StopAsyncIteration

    async def __aenter__(self) -> BlobStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        if not self._over:
            self._finish("its reader left")
            self.transport.loseConnection()
        self._waiting.clear()

    def _due(self) -> bool:
        return self._over or self._size >= CHUNK_SIZE or (self._lingered and self._size > 0)

    def _take(self) -> bytes:
        chunk = self._waiting.popleft()
        if len(chunk) < CHUNK_SIZE and self._waiting:
            parts, size = [chunk], len(chunk)
            while self._waiting and size < CHUNK_SIZE:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            chunk = b"".join(parts)
        self._size -= len(chunk)
        self._lingered = False
        if self._paused and self._size <= WAITING_LIMIT // 2 and not self._over:
            self._paused = False
            self._heard = self._clock.seconds()
            self.transport.resumeProducing()
        return chunk

    def _wake(self) -> None:
        """Call the reader, now or a little later if there is only little for it."""
        if self._due():
            if self._reader is not None and not self._reader.called:
                self._reader.callback(None)
        elif self._size and self._linger is None:
            self._linger = self._clock.callLater(LINGER, self._lingering)

    def _lingering(self) -> None:
        self._linger, self._lingered = None, self._size > 0
        self._wake()

    def _watch(self) -> None:
        """End the transfer if its server is silent; a reader that is slow may be."""
        now = self._clock.seconds()
        if self._paused:
            self._heard = now
        left = self._heard + SILENCE_SECONDS - now
        if left > 0:
            self._silence = self._clock.callLater(left, self._watch)
        else:
            self._silence = None
            self._break(f"less than {STEP_SIZE} bytes came in {SILENCE_SECONDS:g} s")

    def _break(self, reason: str) -> None:
        self._finish(reason)
        self.transport.loseConnection()

    def _finish(self, problem: str | None) -> None:
        self._over = True
        for timer in (self._silence, self._linger):
            if timer is not None and timer.active():
                timer.cancel()
        self._silence = self._linger = None
        if problem is not None:
            at = self._blob.size - self._missing
            self._broken = TransferBroken(str(self._blob.digest), at, problem)
        self._wake()
