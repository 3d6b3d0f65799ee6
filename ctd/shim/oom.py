"""Whether the kernel killed a process of a cgroup for want of memory."""

from __future__ import annotations

import os

from ctd.shim.proc import read_proc

_ROOT = "/sys/fs/cgroup"


class OomCounter:
    """Counts a cgroup's OOM kills, by the files of cgroup v2 or v1.

    :param pid: of a process in it.
    """

    def __init__(self, pid: int) -> None:
        self._file = _counter_file(_read(f"/proc/{pid}/cgroup"))
        self._seen = 0

    def grew(self) -> bool:
        """Whether there were more since this was asked last."""
        lines = [line.split() for line in _read(self._file).splitlines()]
        count = next((int(value) for name, value in lines if name == "oom_kill"), 0)
        grew = count > self._seen
        self._seen = max(self._seen, count)
        return grew


def _counter_file(cgroups: str) -> str:
    """The file that counts, for a ``/proc/PID/cgroup`` (cgroups(7)); empty if there is none."""
    found = ""
    for line in cgroups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return f"{_ROOT}/memory{path}/memory.oom_control"
        if not controllers:
            found = f"{_ROOT}{path}/memory.events"
    return found


def _read(path: str) -> str:
    try:
        return os.fsdecode(read_proc(path))
    except OSError:
        return ""
