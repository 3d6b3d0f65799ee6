"""A process in the foreground, watched to its end: output, signals, and a daemon that may die."""

from __future__ import annotations

import select
import signal
import time

from ctd.cli.connection import result
from ctd.cli.errors import DAEMON_FAILED, ConnectionLost, DaemonError
from ctd.cli.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctd.cli.connection import Connection
    from ctd.cli.forwarding import Signals
    from ctd.cli.session import Session
    from ctd.cli.streams import Streams

#: How long, in seconds, output may be silent after the exit while something
#: (a child that went on by itself) still holds it open.
LINGER = 10.0

_SIGPIPE_STATUS = 128 + signal.SIGPIPE


class Foreground:
    """One process of a container, ours until it has ended and its output is through.

    :param service: ``containers`` or ``processes``, whose ``wait`` and ``kill`` are used.
    :param which: the parameters that name the process to them.
    """

    def __init__(
        self,
        session: Session,
        streams: Streams,
        signals: Signals,
        service: str,
        which: dict[str, str],
    ) -> None:
        self._session = session
        self._streams = streams
        self._signals = signals
        self._service = service
        self._which = which
        self._asked: tuple[Connection, int] | None = None
        self._kills: dict[int, int] = {}
        self._broken = False

    def ask(self) -> None:
        """Ask how the process will end, if that is not asked on this connection yet."""
        if self._asked is None or self._asked[0] is not self._session.connection:
            number = self._session.send(f"{self._service}.wait", **self._which)
            self._asked = (self._session.connection, number)

    def watch(self) -> int:
        """Pass output and signals on until the process has ended; its exit status.

        :raise DaemonError: the daemon does not know how it ended.
        :raise DaemonUnreachable: the daemon went and no other came.
        """
        with self._signals.passed_on():
            while (exit := self._exit()) is None:
                try:
                    self.ask()
                    self._turn()
                except ConnectionLost:
                    self._return()
            self._drain()
        if exit["exit_reason"] == "lost":
            say("how the process ended is not known: it was lost with its shim")
        for error in self._streams.errors():
            say(f"output is lost: {error}")
        if self._streams.broken:
            return _SIGPIPE_STATUS
        return DAEMON_FAILED if self._streams.errors() else int(exit["exit_status"])

    def _exit(self) -> dict[str, Any] | None:
        if self._asked is None:
            return None
        connection, number = self._asked
        message = connection.take(number)
        if message is None:
            return None
        try:
            exit: dict[str, Any] = result(message)
        except DaemonError as error:
            if not error.passing and error.kind != "aborted":  # its shim is gone: soon known
                raise
            self._signals.pause(0.2)
            self._return()
            return None
        return exit

    def _return(self) -> None:
        """To a new daemon, or the same one; signals that were not acknowledged go again."""
        self._session.reconnect(self._signals.pause)
        self._signals.pending()[:0] = self._kills.values()
        self._kills.clear()
        self._asked = None

    def _turn(self) -> None:
        connection = self._session.connection
        pending = self._signals.pending()
        while pending:
            self._kill(pending[0])
            del pending[0]
        poll = select.poll()
        for one in (connection, self._signals, self._streams):
            poll.register(one.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._streams.fileno() in ready:
            self._streams.acknowledge()
            self._look_for_readers()
        if connection.fileno() in ready:
            connection.receive()
            # That the process has ended before its signal came is no error.
            for number in list(self._kills):
                if connection.take(number) is not None:
                    del self._kills[number]

    def _kill(self, signal_number: int) -> None:
        call = self._session.send(f"{self._service}.kill", **self._which, signal=signal_number)
        self._kills[call] = signal_number

    def _look_for_readers(self) -> None:
        """End the process as a pipe without readers ends one that writes to it."""
        if self._streams.broken and not self._broken:
            self._broken = True
            self._signals.pending().append(signal.SIGKILL)

    def _drain(self) -> None:
        """Wait for the rest of the output; a signal that comes from now on ends that."""
        self._signals.pending().clear()
        poll = select.poll()
        poll.register(self._streams.fileno(), select.POLLIN)
        poll.register(self._signals.fileno(), select.POLLIN)
        exited = time.monotonic()
        while not self._streams.ended:
            silent = min(self._streams.idle(), time.monotonic() - exited)
            if silent >= LINGER:
                return
            poll.poll((LINGER - silent) * 1000 + 10)
            self._streams.acknowledge()
            self._signals.check()
