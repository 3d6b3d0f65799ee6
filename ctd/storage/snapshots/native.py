"""Snapshots as plain directories: a parent's files are copied.

Works on every file system; where it can share blocks (reflinks) a copy costs
only its names.
"""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ctd.model import Mount
from ctd.storage.disk import full_disk_is_typed
from ctd.storage.interfaces import ISnapshotter, SnapshotKind
from ctd.storage.snapshots.copying import copy_tree
from ctd.storage.snapshots.directories import DirectorySnapshotter


@implementer(ISnapshotter)
class NativeSnapshotter(DirectorySnapshotter):
    """See :class:`ctd.storage.interfaces.ISnapshotter`; the mounts are bind mounts."""

    name = "native"
    capabilities = frozenset[str]()
    layered = False
    max_layers = None

    def _build(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> None:
        with full_disk_is_typed():
            directory = self.root / str(id)
            directory.mkdir(0o700)
            if kind is SnapshotKind.VIEW and parents:
                return
            if parents:
                copy_tree(self.files(parents[0]), self.files(id), directory / "links")
            else:
                self.files(id).mkdir()
                self.files(id).chmod(0o755)

    def _mounts(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> Sequence[Mount]:
        if kind is SnapshotKind.VIEW:
            return [Mount("bind", str(self.files(parents[0] if parents else id)), ("rbind", "ro"))]
        return [Mount("bind", str(self.files(id)), ("rbind", "rw"))]
