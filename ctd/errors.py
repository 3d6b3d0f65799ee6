"""Typed errors: one class a failure, its ``kind`` on the class, its facts in fields.

``kind`` is one of the fourteen kinds of the control protocol.  On the wire an
error becomes ``{"kind": kind, "error": class name, **fields}``; the message is
for people, the fields for programs.  A part defines the errors only it raises
in its own ``errors`` module; those here are shared.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

KINDS = frozenset(
    {
        "invalid_argument",
        "not_found",
        "already_exists",
        "failed_precondition",
        "aborted",
        "unavailable",
        "resource_exhausted",
        "permission_denied",
        "unauthenticated",
        "unimplemented",
        "cancelled",
        "deadline_exceeded",
        "data_loss",
        "internal",
    }
)


@attrs.define(auto_exc=True)
class CtdError(Exception):
    """The base of every error ctd raises on purpose.

    :cvar kind: what sort of failure this is; decides what a caller may do.
    """

    kind: ClassVar[str] = "internal"

    @property
    def fields(self) -> dict[str, Any]:
        """The facts of this error as values that JSON can carry."""
        return {
            f.name: v if isinstance(v, (int, float, bool, list, dict, type(None))) else str(v)
            for f in attrs.fields(type(self))
            for v in [getattr(self, f.name)]
        }

    def __str__(self) -> str:
        facts = ", ".join(f"{k}={v}" for k, v in self.fields.items())
        return f"{type(self).__name__}({facts})"


@attrs.define(auto_exc=True)
class InvalidArgument(CtdError):
    """A value given by the caller cannot be used.

    :ivar field: the parameter, as the caller wrote it (``mounts[0].source``).
    :ivar reason: what is wrong with it and what would be right.
    """

    kind = "invalid_argument"
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@attrs.define(auto_exc=True)
class NotFound(CtdError):
    """Nothing has that name.

    :ivar what: the sort of thing (``container``, ``image``, ``blob`` ...).
    :ivar name: the name that was asked for.
    """

    kind = "not_found"
    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name!r} not found"


@attrs.define(auto_exc=True)
class AlreadyExists(CtdError):
    """The name is taken, and what has it was left as it is."""

    kind = "already_exists"
    what: str
    name: str

    def __str__(self) -> str:
        return f"{self.what} {self.name!r} already exists"


@attrs.define(auto_exc=True)
class FailedPrecondition(CtdError):
    """The thing is there, but its state does not allow this now.

    :ivar reason: the state it is in and what to do first.
    """

    kind = "failed_precondition"
    what: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.name!r}: {self.reason}"


@attrs.define(auto_exc=True)
class Unavailable(CtdError):
    """Something ctd depends on cannot be reached or used now; a retry may succeed."""

    kind = "unavailable"
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@attrs.define(auto_exc=True)
class ResourceExhausted(CtdError):
    """A limit was reached: a bound of ctd's own, or the disk is full.

    :ivar what: the limit (``manifest size in bytes``, ``space on disk`` ...).
    :ivar limit: its value, where it has one.
    """

    kind = "resource_exhausted"
    what: str
    limit: int | None = None

    def __str__(self) -> str:
        return self.what if self.limit is None else f"{self.what}: the limit is {self.limit}"


@attrs.define(auto_exc=True)
class DataLoss(CtdError):
    """Stored or received data is not what it must be, and was not used."""

    kind = "data_loss"
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@attrs.define(auto_exc=True)
class DeadlineExceeded(CtdError):
    """A step took longer than it may.

    :ivar seconds: how long it was given.
    """

    kind = "deadline_exceeded"
    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}: not done after {self.seconds:g} s"


@attrs.define(auto_exc=True)
class Unimplemented(CtdError):
    """ctd knows what is meant and cannot do it here."""

    kind = "unimplemented"
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"
