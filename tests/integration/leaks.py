"""What a daemon may not leave behind: mounts, processes, cgroups, descriptors, files.

All of it is found by the daemon's own directory, or by what was there before it
started, so that several daemons can be watched on one machine.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from pathlib import Path

from tests.integration.harness import Daemon, eventually

CGROUPS = Path("/sys/fs/cgroup")
_RUN = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")

#: What grows with images, not with what was done: looked into one by one.
_STORES = ("content/blobs", "snapshots")

#: Made with the first container, and kept for the next ones.
_KEPT = ("root/runs", "state/runtime", "state/shims")


class Watch:
    """What there was when the daemon had just started, to compare with later."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._cgroups = cgroups()
        self._files = files_of(daemon)
        self._descriptors = descriptors(daemon.pid)

    def check(self, seconds: float = 10.0) -> None:
        """Wait for the daemon to be at rest, with nothing left of what was.

        To be called when every container is deleted; the daemon may run or be stopped.
        """
        leaks: list[str] = []

        def none() -> bool:
            leaks[:] = self.leaks()
            return not leaks

        try:
            eventually(none, seconds)
        except AssertionError:
            raise AssertionError("left behind:\n  " + "\n  ".join(leaks)) from None

    def leaks(self) -> list[str]:
        """What is left now, each with what sort of thing it is."""
        daemon = self._daemon
        runs = daemon.process is not None and daemon.process.poll() is None
        found = [f"mount {target}" for target in mounts_below(daemon.directory)]
        own = {daemon.pid, *(pid for pid, _ in daemon.children())} if runs else set()
        for pid, mount in foreign_mounts(daemon.directory):
            found.append(f"mount in the namespace of {pid}: {mount}")
        for pid, command in processes_of(daemon.directory).items():
            if pid not in own:
                found.append(f"process {pid}: {command}")
        if runs:
            found += [f"zombie {pid}" for pid in own if state_of(pid) == "Z"]
            found += self._open_descriptors()
            found += unknown_snapshots(daemon) + unknown_blobs(daemon)
        more = cgroups() - self._cgroups
        if more:
            more -= foreign(more, daemon.directory)
        found += [f"cgroup {path}" for path in sorted(more)]
        found += [f"file {path}" for path in sorted(files_of(daemon) - self._files)]
        return found

    def _open_descriptors(self) -> list[str]:
        # Pipes belong to workers, which may have been started meanwhile; the
        # root directory is opened with the first commit, for syncfs(2).
        more = descriptors(self._daemon.pid) - self._descriptors
        del more[str(self._daemon.root)]
        return [f"descriptor {what} ({count} more)" for what, count in more.items()]


def mounts_below(directory: Path, mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """The mount points below *directory*, in the order they were mounted."""
    try:
        lines = Path(mountinfo).read_text().splitlines()
    except OSError:
        return []
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{directory}/")]


def foreign_mounts(directory: Path) -> list[tuple[int, str]]:
    """Mounts that come from below *directory* in other mount namespaces: one pid of each."""
    seen = {namespace_of(os.getpid())}
    found = []
    for pid in pids():
        namespace = namespace_of(pid)
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        try:
            lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        except OSError:
            continue
        found += [(pid, line.split()[4]) for line in lines if f"{directory}/" in line]
    return found


def processes_of(directory: Path) -> dict[int, str]:
    """Every process that has *directory* in its command, environment, cwd or root, or in mounts.

    Mounts count in other mount namespaces only: those of our own are everybody's,
    and who is found here may be killed.
    """
    found = {}
    ours = namespace_of(os.getpid())
    needle = f"{directory}/".encode()
    for pid in pids():
        if pid == os.getpid():
            continue
        proc = Path(f"/proc/{pid}")
        try:
            command = (proc / "cmdline").read_bytes()
            places = b"\n".join(os.fsencode(os.readlink(proc / n)) + b"/" for n in ("cwd", "root"))
            mine = needle in command + b"\0" + places or needle in (proc / "environ").read_bytes()
            apart = namespace_of(pid) not in (None, ours)
            if mine or (apart and needle in (proc / "mountinfo").read_bytes()):
                found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
    return found


def cgroups() -> set[str]:
    """Every cgroup that has to do with a run: it has ``ctd`` or a run's id in its path."""
    found = set()
    for path, _, _ in os.walk(CGROUPS):
        below = path.removeprefix(str(CGROUPS))
        if "ctd" in below or _RUN.search(below):
            found.add(below)
    return found


def foreign(paths: set[str], directory: Path) -> set[str]:
    """Those of *paths*, cgroups, that other daemons' shims are there for, and what they are in."""
    runs = set()
    for pid in pids():
        try:
            place = Path(os.readlink(f"/proc/{pid}/cwd"))
        except OSError:
            continue
        if directory not in place.parents and _RUN.fullmatch(place.name):
            runs.add(place.name)
    theirs = {path for path in paths if runs & set(_RUN.findall(path))}
    return theirs | {path for path in paths if any(one.startswith(f"{path}/") for one in theirs)}


def files_of(daemon: Daemon) -> set[str]:
    """Files and directories of root and state other than stored blobs, snapshots and metadata."""
    found = set()
    for top in (daemon.root, daemon.state, daemon.fifos):
        for directory, names, files in os.walk(top):
            here = os.path.relpath(directory, daemon.directory)
            if here in {f"root/{store}" for store in _STORES}:
                names.clear()
                continue
            found |= {f"{here}/{name}" for name in [*names, *files]}
    metadata = re.compile(r"root/metadata\.db(-wal|-shm)?")
    return {path for path in found if path not in _KEPT and not metadata.fullmatch(path)}


def unknown_snapshots(daemon: Daemon) -> list[str]:
    """Snapshots that are not committed layers, and directories that are no snapshot's."""
    found = []
    for directory in (daemon.root / "snapshots").glob("*"):
        snapshotter = directory.name
        records = list(daemon.items("snapshots.list", snapshotter=snapshotter, all_namespaces=True))
        found += [
            f"{record['kind']} {snapshotter} snapshot {record['key']}"
            for record in records
            if record["kind"] != "committed"
        ]
        on_disk = [entry for entry in directory.iterdir() if entry.is_dir()]
        if len(on_disk) != len(records):
            found.append(f"{len(on_disk)} directories for {len(records)} {snapshotter} snapshots")
    return found


def unknown_blobs(daemon: Daemon) -> list[str]:
    """Files among the blobs that the content store does not know, and fifos anywhere."""
    known = {blob["digest"] for blob in daemon.items("content.list")}
    blobs = daemon.root / "content" / "blobs"
    found = [f"blob {path}" for path in blobs.glob("*/*") if _digest(path) not in known]
    for directory, _, files in os.walk(daemon.state):
        for name in files:
            path = Path(directory, name)
            if path.exists() and stat.S_ISFIFO(path.lstat().st_mode):
                found.append(f"fifo {path}")
    return found


def _digest(path: Path) -> str:
    return f"{path.parent.name}:{path.name}"


def descriptors(pid: int) -> Counter[str]:
    """Open descriptors of a process, by what they are; pipes and metadata files left out.

    So are TCP connections: a registry's is kept for some time for the next request.
    """
    found: Counter[str] = Counter()
    connections = tcp_inodes()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target in connections or target.startswith("pipe:"):
            continue
        if "/metadata.db" not in target:
            found[re.sub(r"\[\d+\]$", "", target)] += 1
    return found


def tcp_inodes() -> set[str]:
    """Every TCP connection of this network namespace, as /proc/PID/fd shows it."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            found.add(f"socket:[{line.split()[9]}]")
    return found


def namespace_of(pid: int) -> str | None:
    """The mount namespace of a process."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def state_of(pid: int) -> str | None:
    """The state of a process as proc(5) has it: ``Z`` is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return None


def pids() -> list[int]:
    """Every process there is."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
