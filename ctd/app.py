"""The composition root: makes every part, gives each what it needs, orders start and stop.

The only module that sees all parts.  ``twistd ctd`` comes in at
:func:`makeService`, which picks the reactor; nothing below does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.config import Config
from ctd.errors import CtdError
from ctd.model import utcnow
from ctd.protocols.control.daemon import IDaemon

#: Threads for blocking work; they wait for disks more than they compute.
THREADS = 8


@attrs.define(auto_exc=True)
class RootInUse(CtdError):
    """Another daemon works on this root directory."""

    kind = "failed_precondition"
    root: str

    def __str__(self) -> str:
        return f"another ctd works on {self.root}: stop it, or give another --root"


class Options(usage.Options):
    """Options of ``twistd ctd``."""

    optParameters = [
        ["root", None, "/var/lib/ctd", "Directory for what must last."],
        ["state", None, "/run/ctd", "Directory for what is gone after a reboot."],
        ["socket", None, None, "The control socket.  [default: STATE/ctd.sock]"],
        ["group", None, None, "Group that may use the control socket, beside root."],
        ["runtime", None, "runc", "OCI runtime: a name on PATH, or a path."],
        ["snapshotter", None, "overlayfs", "Snapshotter used when none is asked for."],
        ["workers", None, None, "Unpack worker processes.  [default: one a core]", int],
        ["downloads", None, 6, "Downloads at a time.", int],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["insecure-registry"] = []

    def opt_insecure_registry(self, host: str) -> None:
        """Speak plain HTTP to this registry (HOST[:PORT]).  Can be repeated."""
        self["insecure-registry"].append(host)

    def config(self) -> Config:
        """These options as a configuration."""
        state = Path(self["state"]).absolute()
        socket = self["socket"]
        given: dict[str, Any] = {"workers": self["workers"]} if self["workers"] else {}
        return Config(
            root=Path(self["root"]).absolute(),
            state=state,
            socket=Path(socket).absolute() if socket else state / "ctd.sock",
            group=self["group"],
            runtime=self["runtime"],
            snapshotter=self["snapshotter"],
            downloads=self["downloads"],
            insecure_registries=tuple(self["insecure-registry"]),
            **given,
        )


@implementer(IDaemon)
class Daemon(Service):
    """One daemon: its parts, made in the order they need one another.

    Starting: directories and the lock, the database, what a crash has left,
    the shims of containers that run, and last the control socket, so that a
    client never sees a state that is not yet put right.  Stopping goes the
    other way; containers run on.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._lock = -1
        self._starting: Deferred[None] | None = None
        self._started_at = utcnow()
        self._monotonic = time.monotonic()

    def startService(self) -> None:
        """Begin to start; a failure ends the process with status 1."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(CtdError):
            self._log.critical("ctd cannot start: {error}", error=failure.value)
        else:
            self._log.failure("ctd cannot start", failure)
        # twistd ends with status 0 whatever happened; supervisors must see this.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.stop()
