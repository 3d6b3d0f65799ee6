"""Which daemon and namespace a command is for, and calls to that daemon."""

from __future__ import annotations

import time

from ctd.cli.connection import Connection
from ctd.cli.errors import (
    FAILED,
    CommandFailed,
    ConnectionLost,
    DaemonError,
    DaemonUnreachable,
)
from ctd.cli.output import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ctd.cli.connection import Notify

#: How long, in seconds, a new daemon is waited for when the old one goes.
PATIENCE = 30.0


class Session:
    """A daemon as one command sees it: connected when first needed, again when asked.

    :param host: the control socket's path.
    :param namespace: added to the parameters of every call.
    """

    def __init__(self, host: str, namespace: str) -> None:
        self.host = host
        self.namespace = namespace
        self._connection: Connection | None = None
        self._connected_at = 0.0

    @property
    def connection(self) -> Connection:
        """The connection now.  :raise DaemonUnreachable: there can be none."""
        if self._connection is None:
            self._connection = Connection(self.host)
            self._connected_at = time.monotonic()
        return self._connection

    def close(self) -> None:
        """Hang up, if connected."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def send(self, method: str, notify: Notify | None = None, /, **params: Any) -> int:
        """Begin a call on the connection; see :meth:`Connection.send`."""
        return self.connection.send(method, {"namespace": self.namespace, **params}, notify)

    def call(self, method: str, notify: Notify | None = None, /, **params: Any) -> Any:
        """Call *method* and wait for its result.

        :raise DaemonError: it failed.
        :raise ConnectionLost: the daemon hung up meanwhile.
        """
        number = self.send(method, notify, **params)
        return self.connection.reply(number)

    def insist(
        self, method: str, pause: Callable[[float], None] = time.sleep, /, **params: Any
    ) -> Any:
        """Call a method that can be repeated, however often the daemon hangs up meanwhile.

        :raise DaemonUnreachable: no daemon has come back.
        """
        while True:
            try:
                return self.call(method, **params)
            except ConnectionLost:
                self.reconnect(pause)

    def items(self, method: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Everything a listing has, page by page."""
        while True:
            page = self.call(method, **params)
            yield from page["items"]
            if page.get("next") is None:
                return
            params["cursor"] = page["next"]

    def reconnect(self, pause: Callable[[float], None] = time.sleep) -> None:
        """Hang up and connect again, waiting for a new daemon for :data:`PATIENCE` seconds.

        :param pause: waits for so many seconds between two attempts.
        :raise DaemonUnreachable: none has come.
        """
        self.close()
        if time.monotonic() - self._connected_at < 1:  # one that hangs up at once
            pause(0.1)
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                self.connection  # noqa: B018 (connects)
            except DaemonUnreachable as error:
                if time.monotonic() > give_up:
                    message = f"the daemon went away and has not come back in {PATIENCE:g} s"
                    raise DaemonUnreachable(message, error.hint) from None
                pause(0.1)
            else:
                return


def for_each(names: list[str], action: Callable[[str], str | None]) -> int:
    """Do *action* for each name, going on when one fails; the exit status of it all.

    What the action gives is printed.
    """
    status = 0
    for name in names:
        try:
            line = action(name)
        except DaemonError as error:
            complain(error)
            status = FAILED
        else:
            if line is not None:
                print(line, flush=True)
    return status


def not_found(error: CommandFailed, what: str) -> bool:
    """Whether *error* says that there is no such *what* (``image``, ``container`` ...)."""
    return (
        isinstance(error, DaemonError)
        and error.kind == "not_found"
        and error.data.get("what") == what
    )
