"""JSON-RPC 2.0 lines on the control socket: several calls at a time, answers in any order."""

from __future__ import annotations

import json
import os
import socket

from ctd.cli.errors import ConnectionLost, DaemonError, DaemonUnreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Notify = Callable[[str, dict[str, Any]], None]

#: The longest path that fits a unix socket's address (unix(7)).
_PATH_LIMIT = 107


class Connection:
    """One connection to a daemon.

    :param path: of its control socket; may be of any length.
    :raise DaemonUnreachable: nobody listens there, or we may not connect.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        self._last_id = 0
        self._replies: dict[int, dict[str, Any]] = {}
        self._notify: dict[int, Notify] = {}
        try:
            _connect(self._socket, path)
        except OSError as error:
            self._socket.close()
            raise _unreachable(path, error) from None

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up, which cancels the calls that are running."""
        self._socket.close()

    def send(self, method: str, params: dict[str, Any], notify: Notify | None = None) -> int:
        """Begin a call and give its id; :meth:`reply` or :meth:`take` gives its result.

        :param notify: called with the method and params of each notification of this call.
        """
        self._last_id = number = self._last_id + 1
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        if notify is not None:
            self._notify[number] = notify
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise ConnectionLost(self._path) from None
        return number

    def answered(self, number: int) -> bool:
        """Whether the answer to a call has come."""
        return number in self._replies

    def take(self, number: int) -> dict[str, Any] | None:
        """The answer to a call, if it has come: with ``result`` or ``error``."""
        return self._replies.pop(number, None)

    def reply(self, number: int) -> Any:
        """Wait for a call's result.

        :raise DaemonError: it failed.
        :raise ConnectionLost: the daemon hung up before it answered.
        """
        while (message := self.take(number)) is None:
            self.receive()
        return result(message)

    def receive(self) -> None:
        """Wait for some bytes from the daemon and sort the messages in them."""
        try:
            data = self._socket.recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            raise ConnectionLost(self._path)
        unseen = len(self._buffer)
        self._buffer += data
        if self._buffer.find(b"\n", unseen) < 0:
            return
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            self._sort(json.loads(line))

    def _sort(self, message: Any) -> None:
        number = message.get("id")
        if number is not None:
            self._replies[number] = message
            self._notify.pop(number, None)
        elif "method" in message:
            params = message.get("params") or {}
            if (notify := self._notify.get(params.get("call", 0))) is not None:
                notify(message["method"], params)
        else:  # the daemon could not read a request: too long, or not one
            raise DaemonError(message.get("error") or {})


def result(message: dict[str, Any]) -> Any:
    """What an answer holds.  :raise DaemonError: it is an error."""
    if "error" in message:
        raise DaemonError(message["error"])
    return message.get("result")


def _connect(sock: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        return sock.connect(path)
    parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        return sock.connect(f"/proc/self/fd/{parent}/{os.path.basename(path)}")
    finally:
        os.close(parent)


def _unreachable(path: str, error: OSError) -> DaemonUnreachable:
    start = "start one with `systemctl start ctd` or `twistd -n ctd`, or name its socket with -H"
    if isinstance(error, FileNotFoundError):
        return DaemonUnreachable(f"no daemon listens on {path}", start)
    if isinstance(error, ConnectionRefusedError):
        return DaemonUnreachable(f"the daemon of {path} is not running", start)
    if isinstance(error, PermissionError):
        hint = "become root, or a member of the group the socket belongs to"
        return DaemonUnreachable(f"no permission to use {path}", hint)
    return DaemonUnreachable(f"cannot connect to {path}: {error.strerror or error}", start)
