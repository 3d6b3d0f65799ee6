"""What can be wrong with a layer, as a worker process says it; no imports, so that it starts fast.

The daemon's side makes :mod:`ctd.storage.errors` of them
(:mod:`ctd.storage.unpack.unpacker`).
"""

from __future__ import annotations

from typing import NamedTuple


class Malformed(Exception):
    """The layer is torn, not what it says it is, or hostile.

    :ivar entry: the name in the archive, as far as it is known.
    """

    def __init__(self, reason: str, entry: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.entry = entry


class TooLarge(Exception):
    """Over a budget.  :ivar budget: its name in :class:`Budget`."""

    def __init__(self, budget: str, limit: int) -> None:
        super().__init__(budget)
        self.budget = budget
        self.limit = limit


class NeedsParent(Exception):
    """What the layer means cannot be known without what lies below it."""


class Budget(NamedTuple):
    """The most that one layer may have.

    :ivar bytes: of the tar; logical sizes of sparse files count too.
    :ivar entries: headers of any sort, and directories made for want of an entry.
    :ivar depth: components of a path.
    :ivar path: bytes of a path or of a link's target.
    :ivar extended: bytes of one extended header.
    :ivar xattrs: bytes of one entry's extended attributes, names and values.
    """

    bytes: int = 256 << 30
    entries: int = 10_000_000
    depth: int = 512
    path: int = 16 << 10
    extended: int = 1 << 20
    xattrs: int = 256 << 10
