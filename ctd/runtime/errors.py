"""What can go wrong between ctd and the OCI runtime."""

from __future__ import annotations

import attrs

from ctd.errors import CtdError


@attrs.define(auto_exc=True)
class RuntimeFailure(CtdError):
    """The OCI runtime refused or failed.

    :ivar runtime: its path or name.
    :ivar operation: ``create``, ``start``, ``exec`` ...
    :ivar reason: its own message.
    """

    kind = "failed_precondition"
    runtime: str
    operation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.runtime} {self.operation}: {self.reason}"


@attrs.define(auto_exc=True)
class CommandNotFound(CtdError):
    """There is no such executable in the root file system (a shell's status 127)."""

    kind = "not_found"
    command: str
    reason: str

    def __str__(self) -> str:
        return f"command {self.command!r} not found: {self.reason}"


@attrs.define(auto_exc=True)
class CommandNotExecutable(CtdError):
    """The file is there but cannot be executed (a shell's status 126)."""

    kind = "failed_precondition"
    command: str
    reason: str

    def __str__(self) -> str:
        return f"command {self.command!r} cannot be executed: {self.reason}"


@attrs.define(auto_exc=True)
class ShimGone(CtdError):
    """The shim has died or does not answer; the container is being cleaned up."""

    kind = "aborted"
    run: str
    reason: str
