"""What ends a command: one line for people, and an exit status for scripts."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The daemon said no (for run, create, start and exec: :data:`DAEMON_FAILED`).
FAILED = 1
USAGE = 2
DAEMON_FAILED = 125
CANNOT_EXECUTE = 126
COMMAND_NOT_FOUND = 127


class CommandFailed(Exception):
    """A command cannot go on.

    :ivar message: what happened, on one line.
    :ivar hint: what to do next, or None.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidOption(CommandFailed):
    """An option's value cannot be used."""


class DaemonUnreachable(CommandFailed):
    """There is nobody to talk to on the control socket."""


class ConnectionLost(CommandFailed):
    """The daemon hung up; what it was doing may or may not have been done."""

    def __init__(self, socket: str) -> None:
        super().__init__(f"the daemon at {socket} hung up", "look at its log, then try again")


class DaemonError(CommandFailed):
    """The daemon answered with an error.

    :ivar code: JSON-RPC's error code.
    :ivar data: ``kind``, ``error`` (the error's class) and its fields.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = error.get("code")
        data = error.get("data")
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        super().__init__(str(error.get("message") or self.kind), _HINTS.get(self.kind))

    @property
    def kind(self) -> str:
        """One of the control protocol's kinds; ``internal`` where none is given."""
        return str(self.data.get("kind", "internal"))

    @property
    def name(self) -> str:
        """The class of the error: ``CommandNotFound`` ..."""
        return str(self.data.get("error", ""))

    @property
    def passing(self) -> bool:
        """Whether the daemon is about to go, and the next one can be asked the same."""
        return self.kind in ("unavailable", "cancelled")

    @property
    def run_status(self) -> int:
        """The exit status of ``ctd run`` and ``exec`` for this error, as docker has it."""
        by_name = {"CommandNotFound": COMMAND_NOT_FOUND, "CommandNotExecutable": CANNOT_EXECUTE}
        return by_name.get(self.name, DAEMON_FAILED)


class Interrupted(Exception):
    """A signal came while nothing was there yet to forward it to."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


_HINTS = {
    "internal": "this is a defect of ctd; the daemon's log has the details",
    "resource_exhausted": "`ctd gc` gives back what nothing needs",
    "unauthenticated": "the registry wants credentials for this repository",
}
