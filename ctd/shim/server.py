"""The shim's socket: connections of daemons, requests, replies, notifications."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque

from ctd.protocols.shim import (
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    SOCKET,
    UNIMPLEMENTED,
    VERSIONS,
    Failure,
    FieldError,
    Lines,
    decode,
    encode,
)
from ctd.shim.log import log, log_exception
from ctd.shim.loop import READABLE, WRITABLE
from ctd.shim.tasks import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias

    from ctd.shim.loop import Loop
    from ctd.shim.tasks import Task

    #: Answers at once, or as a task.
    Method: TypeAlias = Callable[[dict[str, Any]], dict[str, Any] | Task[dict[str, Any]]]

#: A connection for which more bytes than this wait to be read is dropped.
UNREAD = 4 << 20
#: So many requests of a connection are worked on at a time; the others wait.
CONCURRENT = 64
_CHUNK = 1 << 16


class Server:
    """Listens on the run's socket, and answers with *methods*.

    :param identity: what ``hello`` answers besides the version.
    :param deserted: called when the last connection is closed.
    """

    def __init__(
        self,
        loop: Loop,
        methods: Mapping[str, Method],
        identity: Mapping[str, Any],
        deserted: Callable[[], None],
    ) -> None:
        self._loop = loop
        self.methods = methods
        self.identity = identity
        self._deserted = deserted
        self._connections: list[Connection] = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(SOCKET)
        os.chmod(SOCKET, 0o600)
        self._socket.listen(64)
        loop.watch(self._socket.fileno(), READABLE, self._on_connection)

    @property
    def is_deserted(self) -> bool:
        """Whether there is no connection."""
        return not self._connections

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Tell everyone who said hello."""
        line = encode({"method": method, "params": params})
        for connection in list(self._connections):
            if connection.greeted:
                connection.send(line)

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        self._connections.remove(connection)
        if not self._connections:
            self._deserted()

    def close(self) -> None:
        """Listen no longer and hang up."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        for connection in list(self._connections):
            connection.close()

    def _on_connection(self, _: int) -> None:
        with contextlib.suppress(OSError):
            accepted, _address = self._socket.accept()
            self._connections.append(Connection(self._loop, accepted, self))


class Connection:
    """One daemon, or whoever speaks the protocol."""

    def __init__(self, loop: Loop, accepted: socket.socket, server: Server) -> None:
        self._loop = loop
        self._socket = accepted
        self._server = server
        self._lines = Lines()
        self._requests: deque[bytes] = deque()
        self._running = 0
        self._unsent = bytearray()
        self._open = True
        self.greeted = False
        accepted.setblocking(False)
        loop.watch(accepted.fileno(), READABLE, self._on_event)

    def send(self, line: bytes) -> None:
        """Send a line, now or when the other side reads."""
        if not self._open:
            return
        self._unsent += line
        self._flush()
        if self._open and len(self._unsent) > UNREAD:
            log("a connection that does not read is dropped")
            self.close()

    def close(self) -> None:
        """Hang up.  Can be repeated."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._requests.clear()
            self._server.gone(self)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._watch()

    def _watch(self) -> None:
        if self._open:
            events = 0 if self._requests else READABLE
            self._loop.change(self._socket.fileno(), events | (WRITABLE if self._unsent else 0))

    def _on_event(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        if not self._open or not events & ~WRITABLE:
            return
        try:
            data = self._socket.recv(_CHUNK)
            self._requests.extend(self._lines.feed(data))
        except BlockingIOError:
            return
        except ValueError as error:
            self._reply(None, Failure(INVALID_ARGUMENT, str(error), field="line").words())
            self.close()
            return
        except OSError:
            data = b""
        if data:
            self._work()
        else:
            self.close()

    def _work(self) -> None:
        while self._requests and self._running < CONCURRENT:
            self._begin(self._requests.popleft())
        self._watch()

    def _begin(self, line: bytes) -> None:
        try:
            message = decode(line)
        except ValueError as error:
            self._reply(None, Failure(INVALID_ARGUMENT, str(error), field="line").words())
            return
        id, name, params = message.get("id"), message.get("method"), message.get("params", {})

        def done(result: dict[str, Any] | None, error: Exception | None) -> None:
            self._running -= 1
            self._reply(id, None if error is None else _words(error), result)
            if self._requests:
                self._loop.after(0, self._work)

        self._running += 1
        try:
            if not isinstance(params, dict):
                raise FieldError("params", "not an object")
            outcome = self._method(name)(params)
        except Exception as error:  # noqa: BLE001 (told to who asked)
            done(None, error)
        else:
            if isinstance(outcome, dict):
                done(outcome, None)
            else:
                run(outcome, done)

    def _method(self, name: object) -> Method:
        if name == "hello":
            return self._hello
        if not self.greeted:
            raise Failure(FAILED_PRECONDITION, "hello comes first")
        if not isinstance(name, str) or name not in self._server.methods:
            raise Failure(UNIMPLEMENTED, f"there is no method {name!r}")
        return self._server.methods[name]

    def _hello(self, params: dict[str, Any]) -> dict[str, Any]:
        offered = params.get("versions")
        common = [v for v in VERSIONS if isinstance(offered, list) and v in offered]
        if not common:
            raise FieldError("versions", f"none of {list(VERSIONS)} is offered")
        self.greeted = True
        return {"version": max(common), **self._server.identity}

    def _reply(
        self, id: Any, error: dict[str, Any] | None, result: dict[str, Any] | None = None
    ) -> None:
        reply = {"id": id, "result": result} if error is None else {"id": id, "error": error}
        try:
            line = encode(reply)
        except ValueError as refused:
            line = encode({"id": id, "error": Failure(INTERNAL, str(refused)).words()})
        self.send(line)


def _words(error: Exception) -> dict[str, Any]:
    if isinstance(error, Failure):
        return error.words()
    if isinstance(error, FieldError):
        return Failure(INVALID_ARGUMENT, error.reason, field=error.field).words()
    try:
        raise error
    except Exception:  # noqa: BLE001 (told to who asked)
        log_exception("a request failed")
    return Failure(INTERNAL, repr(error)).words()
