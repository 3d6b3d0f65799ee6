"""Snapshots on overlayfs: a directory a layer, joined by the kernel when mounted.

A snapshot's directory holds ``fs``, its files and whiteouts, and, if it is
active, ``work``, which overlayfs needs beside it (Linux
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zope.interface import implementer

from ctd.model import Mount
from ctd.storage.disk import full_disk_is_typed
from ctd.storage.interfaces import ISnapshotter, SnapshotKind
from ctd.storage.snapshots.directories import DirectorySnapshotter
from ctd.storage.snapshots.records import Record

#: The most lower layers of one mount (OVL_MAX_STACK in Linux's fs/overlayfs/params.h).
MAX_LAYERS = 500

_INDEX = Path("/sys/module/overlay/parameters/index")


def escaped(path: str | Path) -> str:
    r"""*path* as overlayfs reads it in an option: ``:``, ``,`` and ``\`` behind a backslash."""
    return "".join(f"\\{c}" if c in ":,\\" else c for c in str(path))


@implementer(ISnapshotter)
class OverlaySnapshotter(DirectorySnapshotter):
    """See :class:`ctd.storage.interfaces.ISnapshotter`.

    The mounts' options are those of mount(8): ``lowerdir=TOP:...:BASE``,
    ``upperdir=``, ``workdir=``, with paths escaped.  Through fsconfig(2),
    where a value has at most 255 bytes, each lower directory is given as a
    ``lowerdir+`` of its own, top first and *not* escaped (Linux 6.5);
    ``upperdir`` and ``workdir`` stay escaped.
    """

    name = "overlayfs"
    capabilities = frozenset({"rebase"})
    layered = True
    max_layers = MAX_LAYERS

    def _build(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> None:
        with full_disk_is_typed():
            directory = self.root / str(id)
            directory.mkdir(0o700, exist_ok=True)
            if kind is SnapshotKind.VIEW and parents:
                return
            files = self.files(id)
            files.mkdir(exist_ok=True)
            if parents:  # the merged root directory is the upper one
                above = self.files(parents[0]).stat()
                os.chown(files, above.st_uid, above.st_gid)
                files.chmod(above.st_mode & 0o7777)
            else:
                files.chmod(0o755)
            if kind is SnapshotKind.ACTIVE:
                (directory / "work").mkdir(0o700, exist_ok=True)

    def _rebuild(self, record: Record) -> bool:
        # Not synced when it was made: after a power loss a new one may be gone,
        # and one that was written to without a sync has lost that anyway.
        if record.kind is SnapshotKind.COMMITTED:
            return False
        self._build(record.id, record.kind, [] if record.parent is None else [record.parent])
        return True

    def _mounts(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> Sequence[Mount]:
        if not parents:
            return [_bind(self.files(id), "rw" if kind is SnapshotKind.ACTIVE else "ro")]
        if kind is SnapshotKind.VIEW and len(parents) == 1:
            return [_bind(self.files(parents[0]), "ro")]
        options = ["index=off"] if _INDEX.exists() else []
        options.append("lowerdir=" + ":".join(escaped(self.files(p)) for p in parents))
        if kind is SnapshotKind.ACTIVE:
            options.append(f"upperdir={escaped(self.files(id))}")
            options.append(f"workdir={escaped(self.root / str(id) / 'work')}")
        else:
            options.append("ro")
        return [Mount("overlay", "overlay", tuple(options))]


def _bind(path: Path, access: str) -> Mount:
    return Mount("bind", str(path), ("rbind", access))
