"""Requests and their replies as JSON lines: what the daemon speaks with template and shims.

Knows no transport: it is given bytes and gives lines (design/shim-protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ctd.errors import CtdError, DeadlineExceeded
from ctd.protocols import shim as words
from ctd.protocols.lines import LineSplitter, LineTooLong


@attrs.define(auto_exc=True)
class Refused(CtdError):
    """The other side answered with an error; whoever asked makes it one of its own.

    :ivar kind_: the protocol's kind of error.
    """

    kind_: str
    message: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return self.message


class _Reply(msgspec.Struct):
    id: int | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    method: str | None = None
    params: dict[str, Any] = {}


@attrs.define(eq=False)
class _Pending:
    method: str
    reply: Deferred[Any]
    timer: IDelayedCall | None = None


class Exchange:
    """One connection's requests under way.

    :param send: takes a line with its newline.
    :param notified: told of each notification: method and params, in order.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        send: Callable[[bytes], None],
        notified: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._clock = clock
        self._send = send
        self._notified = notified
        self._lines = LineSplitter(words.MAX_LINE)
        self._pending: dict[int, _Pending] = {}
        self._last = 0

    def request(self, method: str, params: Mapping[str, Any], seconds: float) -> Deferred[Any]:
        """Ask, and give what is answered.

        :raise Refused: the answer was an error.
        :raise DeadlineExceeded: there was none within *seconds*.
        """
        self._last += 1
        number = self._last

        def drop(_: Deferred[Any]) -> None:
            self._drop(number)

        reply: Deferred[Any] = Deferred(drop)
        pending = self._pending[number] = _Pending(method, reply)
        pending.timer = self._clock.callLater(seconds, self._late, number, seconds)
        line = {"id": number, "method": method, "params": params}
        self._send(msgspec.json.encode(line) + b"\n")
        return reply

    def received(self, data: bytes) -> None:
        """Take what came, and tell who waits for it."""
        for line in self._lines.feed(data):
            try:
                if isinstance(line, LineTooLong):
                    raise msgspec.DecodeError(f"a line of over {line.limit} bytes")
                reply = msgspec.json.decode(line, type=_Reply)
            except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
                self._log.error("not a line of the shim protocol: {error}", error=error)
                continue
            if reply.method is not None:
                self._notified(reply.method, reply.params)
            elif reply.id is not None and (pending := self._drop(reply.id)) is not None:
                if reply.error is None:
                    pending.reply.callback(reply.result)
                else:
                    pending.reply.errback(_refused(reply.error))

    def lost(self, reason: CtdError) -> None:
        """Nothing more will come: those who wait get *reason*."""
        for number in list(self._pending):
            pending = self._drop(number)
            if pending is not None:
                pending.reply.errback(reason)

    def _late(self, number: int, seconds: float) -> None:
        pending = self._pending.pop(number)
        pending.reply.errback(DeadlineExceeded(f"reply to {pending.method}", seconds))

    def _drop(self, number: int) -> _Pending | None:
        pending = self._pending.pop(number, None)
        if pending is not None and pending.timer is not None and pending.timer.active():
            pending.timer.cancel()
        return pending


def _refused(error: Mapping[str, Any]) -> Refused:
    kind, message = error.get("kind"), error.get("message")
    return Refused(
        kind if isinstance(kind, str) else "internal",
        message if isinstance(message, str) else "no reason given",
        error,
    )
