"""Whether the kernel killed a process of a cgroup for want of memory."""

from __future__ import annotations

import re

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
        match = re.search(r"^oom_kill (\d+)", _read(self._file), re.MULTILINE)
        count = int(match.group(1)) if match else 0
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
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""
