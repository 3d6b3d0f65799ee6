"""One process of a container, from its creation to the record of its exit."""

from __future__ import annotations

import os
import signal

from ctd.protocols.shim import CREATED, EXITED, OOM, RUNNING, SIGNALLED, STOPPED
from ctd.shim.log import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ctd.shim.oom import OomCounter
    from ctd.shim.stdio import Streams


class Process:
    """What is known of a process.

    :ivar reaped: its pid may be another's by now.
    :ivar recorded: its exit is on disk, so it may be told.
    :ivar output_told: the end of its output has been told.
    """

    def __init__(self, id: str, pid: int, streams: Streams, attach: str | None) -> None:
        self.id = id
        self.pid = pid
        self.streams = streams
        self.started_at: str | None = None
        self.reaped = False
        self.recorded = False
        self.output_told = False
        self._attach = attach
        self._killed = False
        self._exit: dict[str, Any] = dict.fromkeys(("exit_status", "exit_reason", "exited_at"))

    @property
    def status(self) -> str:
        """``created``, ``running`` or ``stopped``: not before that is on disk."""
        if self.recorded:
            return STOPPED
        return RUNNING if self.started_at else CREATED

    def started(self) -> None:
        """It has been let go, now."""
        self.started_at = timestamp()

    def kill(self, number: int) -> None:
        """Send a signal; only before it is reaped.

        :raise ProcessLookupError, ValueError: as os.kill has it.
        """
        self.sent(number)
        os.kill(self.pid, number)

    def sent(self, number: int) -> None:
        """A signal is sent to it on request, so that its end by that is no surprise."""
        self._killed = self._killed or number == signal.SIGKILL

    def ended(self, status: int, oom: OomCounter | None) -> None:
        """It has been reaped, now.  :param status: as wait(2) has it."""
        self.reaped = True
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            reason = EXITED
        elif -code == signal.SIGKILL and oom is not None and oom.grew() and not self._killed:
            reason = OOM
        else:
            reason = SIGNALLED
        exit_status = code if code >= 0 else 128 - code
        self._exit = {
            "exit_status": exit_status,
            "exit_reason": reason,
            "exited_at": timestamp(),
        }

    @property
    def output_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.recorded and self.streams.ended

    def exit(self) -> dict[str, Any]:
        """How it ended, for its record and the notification."""
        return {
            "process": self.id,
            "pid": self.pid,
            **self._exit,
            "started_at": self.started_at,
        }

    def state(self) -> dict[str, Any]:
        """A process state, as the protocol has it."""
        exit = self._exit if self.recorded else dict.fromkeys(self._exit)
        return {
            "id": self.id,
            "status": self.status,
            "pid": self.pid,
            "started_at": self.started_at,
            **exit,
            "attach": self._attach,
            "output_ended": self.output_ended,
            "dropped": self.streams.dropped,
        }
