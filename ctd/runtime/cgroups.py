"""The control groups of a run: making, ending and removing them.  Blocking: for worker threads.

A run's cgroup is ``/ctd/RUN`` in every hierarchy that is mounted: one of cgroup
v2, one a controller of v1, or both.  Its processes may have made more below it.
All can be repeated, and none minds what others do at the same time.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ctd.errors import Unavailable
from ctd.protocols import shim as words

ROOT = Path("/sys/fs/cgroup")

#: The cgroup that holds those of all runs.
PARENT = "ctd"

#: Pauses between tries, in seconds: ten seconds in all.
PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(0.1,) * 99)

Wait = Callable[[float], None]


def directories(run: str, root: Path = ROOT) -> list[Path]:
    """The cgroups of *run* that there are, one a hierarchy."""
    return [path for path in _places(run, root) if path.is_dir()]


def make(run: str, root: Path = ROOT) -> None:
    """Make the cgroups of *run*, empty, in every hierarchy.

    Not needed by an OCI runtime; but until there is one, removing another run
    may take the parent away under the runtime's hands.
    """
    for place in _places(run, root):
        for _ in PAUSES:
            try:
                _mkdir(place.parent)
                _mkdir(place)
                break
            except FileNotFoundError:  # the parent has just been removed
                continue
            except OSError:  # the runtime will meet it too, and say so
                break


def kill(run: str, root: Path = ROOT, wait: Wait = time.sleep) -> None:
    """Kill every process in the cgroups of *run*, frozen ones too, and wait until none is left.

    :raise Unavailable: some do not end.
    """
    for pause in PAUSES:
        places = directories(run, root)
        left = {pid for place in places for pid in _kill_once(place)}
        if not left:
            return
        wait(pause)
    raise Unavailable(f"run {run}", f"processes do not end: {sorted(left)[:20]}")


def remove(run: str, root: Path = ROOT, wait: Wait = time.sleep) -> None:
    """Remove the cgroups of *run*, and the parent if it has no more in it.

    :raise Unavailable: there is something in them.
    """
    for pause in PAUSES:
        left = [path for path in directories(run, root) if not _removed(path)]
        if not left:
            break
        wait(pause)
    else:
        raise Unavailable(f"run {run}", f"{left[0]} cannot be removed")
    for place in _places(run, root):
        _rmdir(place.parent)


def _places(run: str, root: Path) -> list[Path]:
    if not words.is_run(run):
        raise ValueError(f"{run!r} is no run id")
    try:
        # A symbolic link is another name of a hierarchy: cpu of cpu,cpuacct.
        inner = sorted(
            Path(entry) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)
        )
    except FileNotFoundError:
        return []
    hierarchies = [root] if _is_cgroup(root) else [path for path in inner if _is_cgroup(path)]
    return [hierarchy / PARENT / run for hierarchy in hierarchies]


def _is_cgroup(path: Path) -> bool:
    return (path / "cgroup.procs").exists()


def _bottom_up(top: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(top, topdown=False):
        yield Path(path)


def _kill_once(top: Path) -> set[int]:
    """Kill what is in *top* and below now.  :return: what was there."""
    _write(top / "cgroup.kill", "1")
    found: set[int] = set()
    for path in _bottom_up(top):
        state = path / "freezer.state"
        frozen = state.exists()
        if frozen:
            _write(state, "FROZEN")  # or it may fork faster than it is killed
        for pid in _pids(path):
            found.add(pid)
            _kill(pid, path)
        if frozen:
            _write(state, "THAWED")
    return found


def _kill(pid: int, path: Path) -> None:
    # The pid may be another's by now: whoever has the descriptor's number must still be in it.
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # it is gone, or of another pid namespace
        return
    try:
        if pid in _pids(path):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _pids(path: Path) -> set[int]:
    try:
        return {int(line) for line in (path / "cgroup.procs").read_text().split()}
    except OSError:  # removed, or a threaded one, whose processes its parent has
        return set()


def _write(path: Path, text: str) -> None:
    # Never created: where there is no such file, there is no such feature.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, text.encode())
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _mkdir(path: Path) -> None:
    try:
        # Not Path.mkdir(exist_ok=True): it fails if what existed is gone a moment later.
        os.mkdir(path)
    except FileExistsError:
        pass


def _removed(top: Path) -> bool:
    return not [path for path in _bottom_up(top) if not _rmdir(path)]


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True
