"""What the configurations of containers depend on besides the request: the machine, the daemon."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from ctd.runtime import capabilities

#: Of ``/dev``, what is a container's own, or no device.
_NOT_SHARED = frozenset({"pts", "shm", "fd", "mqueue", "console"})
_MOST_DEVICES = 4096
_RESOLVER_FILES = ("/etc/hosts", "/etc/resolv.conf")


@attrs.frozen
class Device:
    """A device node.  :ivar type: ``c`` or ``b``.  :ivar mode: permission bits."""

    path: str
    type: str
    major: int
    minor: int
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


@attrs.frozen
class Host:
    """The facts that a container's configuration is made with.

    :ivar capabilities: what the daemon has, and so can give.
    :ivar unified: there is cgroup v2 alone.
    :ivar devices: what privileged containers get to see.
    :ivar resolver_files: files by which names are resolved, for containers in the
        host's network.
    :ivar oom_score_adj: the daemon's own; only more can be given.
    """

    capabilities: tuple[str, ...] = capabilities.ALL
    unified: bool = False
    devices: tuple[Device, ...] = ()
    resolver_files: tuple[str, ...] = ()
    oom_score_adj: int = 0


def host() -> Host:
    """This machine, and this process.  Blocking, for some milliseconds."""
    status = Path("/proc/self/status").read_text()
    words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    mask = int(words["CapPrm"], 16) & int(words["CapBnd"], 16)
    return Host(
        capabilities.of_mask(mask),
        Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        tuple(sorted(_devices("/dev"), key=lambda device: device.path))[:_MOST_DEVICES],
        tuple(path for path in _RESOLVER_FILES if Path(path).is_file()),
        int(Path("/proc/self/oom_score_adj").read_text()),
    )


def _devices(directory: str) -> Iterator[Device]:
    for top, directories, names in os.walk(directory):
        if top == directory:
            directories[:] = [name for name in directories if name not in _NOT_SHARED]
            names = [name for name in names if name not in _NOT_SHARED]
        for name in names:
            path = f"{top}/{name}"
            try:
                found = os.lstat(path)
            except OSError:
                continue
            type = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(found.st_mode))
            if type is not None:
                number, mode = found.st_rdev, stat.S_IMODE(found.st_mode)
                yield Device(
                    path,
                    type,
                    os.major(number),
                    os.minor(number),
                    mode,
                    found.st_uid,
                    found.st_gid,
                )
