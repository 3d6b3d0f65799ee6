"""Garbage collection: what no root leads to is removed.

Roots are what the registered functions give, what is held, and every active
and view snapshot.  They lead to a blob's children and a snapshot's parents.

Marking and taking out of sight are one transaction, so nothing can change
between them.  Files are deleted after it, and a deletion that is cut off is
finished or done again at the next start.

Holds close the gap between an operation that finds a resource and the root
that will keep it.  The database runs its transactions one after another, and
the collector looks at the holds inside its own.  So if a hold is taken before
a look at the resource is asked for, either the hold is there when the
collector's transaction runs, and the resource stays, or that transaction ran
before the look, which finds nothing.  The same goes for the end: who records
a root and releases the hold after that leaves no moment without one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import attrs
from zope.interface import implementer

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.model import Digest
from ctd.storage import blobs
from ctd.storage.content import ContentStore
from ctd.storage.interfaces import (
    Collected,
    IGarbageCollector,
    Resource,
    SnapshotKind,
)
from ctd.storage.snapshots.directories import DirectorySnapshotter
from ctd.storage.snapshots.records import Record

K = TypeVar("K", bound=Hashable)

#: How long an ingest that nobody writes is kept to be resumed.
INGEST_AGE = timedelta(hours=24)


@attrs.frozen
class _Garbage:
    blobs: Mapping[Digest, int]
    snapshots: Mapping[str, Sequence[Record]]
    kept: int


@implementer(IGarbageCollector)
class GarbageCollector:
    """See :class:`ctd.storage.interfaces.IGarbageCollector`.

    :param snapshotters: by name.
    """

    def __init__(
        self,
        database: Database,
        content: ContentStore,
        snapshotters: Mapping[str, DirectorySnapshotter],
    ) -> None:
        self._database = database
        self._content = content
        self._snapshotters = snapshotters
        self._roots: list[Callable[[Transaction], Sequence[Resource]]] = []
        self._holds: dict[Resource, int] = {}

    def add_roots(self, roots: Callable[[Transaction], Sequence[Resource]]) -> None:
        """See :class:`ctd.storage.interfaces.IGarbageCollector`."""
        self._roots.append(roots)

    def hold(self, resources: Sequence[Resource]) -> Callable[[], None]:
        """See :class:`ctd.storage.interfaces.IGarbageCollector`.

        What is given back can be called again.
        """
        held = list(resources)
        for resource in held:
            self._holds[resource] = self._holds.get(resource, 0) + 1

        def release() -> None:
            for resource in held:
                self._holds[resource] -= 1
                if not self._holds[resource]:
                    del self._holds[resource]
            held.clear()

        return release

    async def collect(self, dry_run: bool = False) -> Collected:
        """See :class:`ctd.storage.interfaces.IGarbageCollector`.

        Ingests nobody writes are aborted after :data:`INGEST_AGE`.
        """
        return await shielded(self._collect(dry_run))

    async def _collect(self, dry_run: bool) -> Collected:
        garbage = await self._database.transact(lambda tx: self._mark(tx, dry_run))
        if not dry_run:
            await self._content.unlink(list(garbage.blobs))
            for name, records in garbage.snapshots.items():
                await self._snapshotters[name].clear([record.id for record in records])
            await self._content.expire(INGEST_AGE)
        removed = [Resource("content", str(digest)) for digest in garbage.blobs]
        for name, records in garbage.snapshots.items():
            removed += [_resource(name, record) for record in records]
        return Collected(tuple(removed), garbage.kept, sum(garbage.blobs.values()))

    def _mark(self, tx: Transaction, dry_run: bool) -> _Garbage:
        # dict.copy is one step to the reactor's thread, which may take and release holds.
        roots = set(self._holds.copy())
        for function in self._roots:
            roots.update(function(tx))
        sizes = {blob.digest: blob.size for blob in blobs.all(tx)}
        kept = reachable({r.key for r in roots if r.kind == "content"}, _children(tx))
        dead = {digest: size for digest, size in sizes.items() if str(digest) not in kept}
        snapshots = {
            name: self._dead_snapshots(tx, name, snapshotter, roots)
            for name, snapshotter in self._snapshotters.items()
        }
        total = len(sizes) + sum(
            len(s.records.ready_records(tx)) for s in self._snapshotters.values()
        )
        gone = len(dead) + sum(map(len, snapshots.values()))
        if not dry_run:
            for digest in dead:
                blobs.erase(tx, digest)
            for name, records in snapshots.items():
                for record in records:
                    self._snapshotters[name].records.retire(tx, record)
        return _Garbage(dead, snapshots, total - gone)

    def _dead_snapshots(
        self,
        tx: Transaction,
        name: str,
        snapshotter: DirectorySnapshotter,
        roots: set[Resource],
    ) -> Sequence[Record]:
        """Those to remove, leaves first."""
        records = {record.id: record for record in snapshotter.records.ready_records(tx)}
        parents = snapshotter.records.parents(tx)
        alive = {id for id in parents if id not in records}  # being made
        alive.update(
            id
            for id, record in records.items()
            if record.kind is not SnapshotKind.COMMITTED or _resource(name, record) in roots
        )
        edges = {id: [below] for id, below in parents.items() if below is not None}
        kept = reachable(alive, edges)
        dead = {id for id in records if id not in kept}
        ordered: list[Record] = []
        while dead:
            leaves = dead - {parents[id] for id in dead}
            ordered += [records[id] for id in sorted(leaves)]
            dead -= leaves
        return ordered


def _resource(snapshotter: str, record: Record) -> Resource:
    return Resource(f"snapshot/{snapshotter}", f"{record.namespace}/{record.key}")


def _children(tx: Transaction) -> Mapping[str, Sequence[str]]:
    children: dict[str, list[str]] = {}
    for row in tx.all("SELECT parent, child FROM blob_children"):
        children.setdefault(row["parent"], []).append(row["child"])
    return children


def reachable(roots: Iterable[K], edges: Mapping[K, Sequence[K]]) -> set[K]:
    """*roots* and all that they lead to."""
    reached: set[K] = set()
    waiting = list(roots)
    while waiting:
        it = waiting.pop()
        if it not in reached:
            reached.add(it)
            waiting += edges.get(it, ())
    return reached
