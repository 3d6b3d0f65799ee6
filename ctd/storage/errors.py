"""What can go wrong between ctd and its disks."""

from __future__ import annotations

import attrs

from ctd.errors import CtdError


@attrs.define(auto_exc=True)
class DigestMismatch(CtdError):
    """The bytes written hash to something else; they were dropped."""

    kind = "data_loss"
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"content hashes to {self.actual}, not {self.expected}"


@attrs.define(auto_exc=True)
class SizeMismatch(CtdError):
    """Fewer bytes came than were declared; they were dropped."""

    kind = "data_loss"
    digest: str
    expected: int
    actual: int

    def __str__(self) -> str:
        return f"{self.digest} has {self.actual} bytes, not {self.expected}"


@attrs.define(auto_exc=True)
class IngestBusy(CtdError):
    """Somebody is writing this ref now."""

    kind = "aborted"
    ref: str


@attrs.define(auto_exc=True)
class DiffIDMismatch(CtdError):
    """A layer's tar does not hash to the diff ID in the image's configuration."""

    kind = "data_loss"
    layer: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"layer {self.layer} unpacks to {self.actual}, not {self.expected}"


@attrs.define(auto_exc=True)
class LayerMalformed(CtdError):
    """A layer cannot be unpacked: torn, not of its media type, or hostile.

    :ivar entry: the name in the archive, as far as there is one.
    """

    kind = "data_loss"
    layer: str
    entry: str
    reason: str

    def __str__(self) -> str:
        where = f", entry {self.entry!r}" if self.entry else ""
        return f"layer {self.layer}{where}: {self.reason}"


@attrs.define(auto_exc=True)
class LayerTooLarge(CtdError):
    """A layer is over one of the budgets (``bytes``, ``entries``, ``depth``)."""

    kind = "resource_exhausted"
    layer: str
    budget: str
    limit: int


@attrs.define(auto_exc=True)
class WorkerDied(CtdError):
    """An unpack worker was killed while it worked; what it made was removed."""

    kind = "aborted"
    layer: str
    reason: str


@attrs.define(auto_exc=True)
class IngestDiscarded(CtdError):
    """The writer gave this blob up, and what it had written is gone; may be tried again."""

    kind = "aborted"
    ref: str
    digest: str
