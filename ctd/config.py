"""One frozen configuration, from the command line's options and the built-in defaults."""

from __future__ import annotations

import os
from pathlib import Path

import attrs


@attrs.frozen
class Config:
    """What a daemon is started with.

    :ivar root: persistent state.
    :ivar state: volatile state, gone after a reboot.
    :ivar socket: the control socket.
    :ivar group: the group that may use the socket, or None for root alone.
    :ivar workers: unpack worker processes.
    """

    root: Path = Path("/var/lib/ctd")
    state: Path = Path("/run/ctd")
    socket: Path = Path("/run/ctd/ctd.sock")
    group: str | None = None
    runtime: str = "runc"
    snapshotter: str = "overlayfs"
    workers: int = attrs.field(factory=lambda: os.cpu_count() or 1)
    downloads: int = 6
    insecure_registries: tuple[str, ...] = ()
