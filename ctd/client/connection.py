"""A connection to a daemon: many calls at a time, answers in any order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import attrs
import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ctd.client.errors import remote
from ctd.client.events import Subscription
from ctd.errors import CtdError, ResourceExhausted, Unavailable
from ctd.protocols.lines import LINE_LIMIT, LineSplitter, LineTooLong

Notify = Callable[[dict[str, Any]], None]

#: The most events that wait here for a slow reader.
WAITING_EVENTS = 1000


@attrs.define(eq=False)
class _Pending:
    answer: Deferred[Any]
    notify: Notify | None


class Client(Protocol):
    """One connection.  :meth:`connect` makes it."""

    log = Logger()

    def __init__(self) -> None:
        self._lines = LineSplitter(LINE_LIMIT)
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._lost: Unavailable | None = None
        self._closed: Deferred[None] = Deferred(lambda _: None)

    @classmethod
    async def connect(cls, endpoint: IStreamClientEndpoint) -> Client:
        """Connect to a daemon's control socket.

        :raise twisted.internet.error.ConnectError: nobody listens there, or we may not.
        """
        client = await endpoint.connect(Factory.forProtocol(cls))
        assert isinstance(client, cls)
        return client

    async def call(
        self, method: str, params: dict[str, Any] | None = None, *, progress: Notify | None = None
    ) -> Any:
        """Call a method and wait for its result.

        Cancelling this cancels the call at the daemon.

        :param progress: given the params of each notification about the call.
        :raise RemoteError: the call failed.
        :raise ResourceExhausted: the parameters are over :data:`LINE_LIMIT`; nothing was sent.
        :raise Unavailable: the connection is lost; whether the call was made is not known.
        """
        return await self._send(method, params, progress)

    async def events(
        self,
        since: int | None = None,
        topics: Sequence[str] = (),
        namespace: str = "default",
        all_namespaces: bool = False,
    ) -> AsyncIterator[dict[str, Any]]:
        """Every event after *since* (None: from now on), then each new one.

        Each comes once, in order; a reader may be slow.  Where the journal was
        trimmed past *since*, the first item is ``{"trimmed": {"since",
        "oldest"}}`` instead of an event.  Close the iterator
        (:func:`contextlib.aclosing`) to unsubscribe.

        :raise RemoteError: the daemon refuses, or is stopping.
        :raise Unavailable: the connection is lost; connect again and go on with
            *since* the last ``seq`` seen.
        """
        params: dict[str, Any] = {
            "topics": list(topics),
            "namespace": namespace,
            "all_namespaces": all_namespaces,
        }
        while True:
            subscription = Subscription(WAITING_EVENTS)
            call = self._send("events.subscribe", {**params, "since": since}, subscription.take)
            call.addBoth(subscription.ended)
            try:
                while (item := await subscription.next()) is not None:
                    if "event" in item:
                        since = item["event"]["seq"]
                        yield item["event"]
                    elif "subscribed" in item:
                        since = item["subscribed"]["since"] if since is None else since
                    elif "trimmed" in item:
                        since = item["trimmed"]["oldest"] - 1
                        yield {"trimmed": item["trimmed"]}
            finally:
                call.cancel()

    async def close(self) -> None:
        """Hang up, which cancels the calls under way, and wait until that is done."""
        if self._lost is None:
            assert self.transport is not None
            self.transport.loseConnection()
            await self._closed

    def _send(
        self, method: str, params: dict[str, Any] | None, notify: Notify | None
    ) -> Deferred[Any]:
        self._last_id = id = self._last_id + 1
        answer: Deferred[Any] = Deferred(lambda _: self._cancel(id))
        if self._lost is not None:
            answer.errback(self._lost)
            return answer
        line = _line(id, method, params or {})
        if len(line) > LINE_LIMIT:
            answer.errback(ResourceExhausted("size of a call in bytes", LINE_LIMIT))
            return answer
        self._pending[id] = _Pending(answer, notify)
        self._write(line)
        return answer

    def _cancel(self, id: int) -> None:
        if self._pending.pop(id, None) is not None and self._lost is None:
            self._last_id += 1
            self._write(_line(self._last_id, "rpc.cancel", {"call": id}))

    def _write(self, line: bytes) -> None:
        assert self.transport is not None
        self.transport.write(line + b"\n")

    def dataReceived(self, data: bytes) -> None:
        """Take bytes."""
        for line in self._lines.feed(data):
            if isinstance(line, LineTooLong):
                self._protest("a line is too long")
                return
            try:
                message = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._protest("a line is no JSON object")
                return
            self._take(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail what waits."""
        self._lost = Unavailable("the connection to ctd", reason.getErrorMessage())
        self._fail(self._lost)
        self._closed.callback(None)

    def _fail(self, error: CtdError) -> None:
        pending, self._pending = self._pending, {}
        for call in pending.values():
            call.answer.errback(error)

    def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            params = message.get("params")
            if not isinstance(params, dict) or not isinstance(params.get("call"), int):
                return
            call = self._pending.get(params["call"])
            if call is not None and call.notify is not None:
                try:
                    call.notify(params)
                except Exception:  # noqa: BLE001 (the caller's function must not end other calls)
                    self.log.failure("a progress function failed")
            return
        id = message.get("id")
        call = self._pending.pop(id, None) if isinstance(id, int) else None
        if call is not None and "error" in message:
            call.answer.errback(remote(message["error"]))
        elif call is not None:
            call.answer.callback(message.get("result"))
        elif "error" in message and id is None:
            # Not about one call: we are refused, or a request could not be read.
            error = remote(message["error"])
            self._fail(error)
            self._protest(str(error))

    def _protest(self, what: str) -> None:
        self.log.warn("hanging up on the daemon: {what}", what=what)
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]


def _line(id: int, method: str, params: dict[str, Any]) -> bytes:
    request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
    return msgspec.json.encode(request)
