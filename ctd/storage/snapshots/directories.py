"""What snapshotters that keep a directory a snapshot have in common.

Layout: ``snapshots/<snapshotter>/<row id>/`` below the daemon's root; what is
in it is the subclass's.  A snapshot's row is there before its directory, and
goes after it; see :mod:`ctd.storage.snapshots.records` for the states.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.errors import FailedPrecondition, NotFound
from ctd.model import Mount
from ctd.storage.disk import make_directory
from ctd.storage.interfaces import SnapshotInfo, SnapshotKind, Usage
from ctd.storage.snapshots.records import Record, SnapshotRecords
from ctd.storage.trees import measure, remove_tree
from ctd.threads import IWorkers


class DirectorySnapshotter(ABC):
    """The common part; see :class:`ctd.storage.interfaces.ISnapshotter` for the methods.

    :meth:`recover` is to be awaited before anything else.

    :cvar layered: whether a snapshot needs its parents' directories; else it
        has a copy of their files.
    :cvar max_layers: the most that a snapshot may lie on, or None.
    :param database: with :data:`ctd.storage.schema.SCHEMA`.
    :param root: the daemon's root.
    :param sync: puts everything written to the file system of *root* on disk:
        :meth:`ctd.storage.sync.Syncer.sync`.
    """

    _log = Logger()

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]]
    layered: ClassVar[bool]
    max_layers: ClassVar[int | None]

    def __init__(
        self,
        database: Database,
        workers: IWorkers,
        root: Path,
        now: Callable[[], datetime],
        sync: Callable[[], Awaitable[None]],
    ) -> None:
        self.root = root / "snapshots" / self.name
        self.records = SnapshotRecords(self.name)
        self._database = database
        self._workers = workers
        self._now = now
        self._sync = sync

    @abstractmethod
    def _build(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> None:
        """Make the directory of *id*, in a worker thread.  *parents* are topmost first."""

    @abstractmethod
    def _mounts(self, id: int, kind: SnapshotKind, parents: Sequence[int]) -> Sequence[Mount]:
        """The mounts of *id*."""

    def _rebuild(self, record: Record) -> bool:
        """Make the lost directory of *record* anew, in a worker thread, if that is sound."""
        return False

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[Mount]:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""
        return await self._create(namespace, key, SnapshotKind.ACTIVE, parent, labels)

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[Mount]:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""
        return await self._create(namespace, key, SnapshotKind.VIEW, parent, labels)

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""

        def find(tx: Transaction) -> tuple[Record, Sequence[int]]:
            record = self.records.get(tx, namespace, key)
            if record.kind is SnapshotKind.COMMITTED:
                raise NotFound("active snapshot", key)
            return record, self.records.chain(tx, record.parent)

        record, parents = await self._database.transact(find)
        return self._mounts(record.id, record.kind, parents)

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
    ) -> None:
        """See :class:`ctd.storage.interfaces.ISnapshotter`.

        *parent* is looked up in *target*; nothing may write to the snapshot any more.
        """
        where = namespace if target is None else target

        def check(tx: Transaction) -> tuple[Record, int | None]:
            record = self.records.committable(tx, namespace, key, where, name)
            if parent is None:
                return record, record.parent
            if "rebase" not in self.capabilities:
                raise FailedPrecondition("snapshot", key, f"{self.name} cannot give it a parent")
            if record.parent is not None:
                raise FailedPrecondition("snapshot", key, "it was prepared with a parent")
            below = self.records.parent(tx, where, parent).id
            self._check_depth(key, self.records.chain(tx, below))
            return record, below

        def record(tx: Transaction) -> None:
            it, below = check(tx)
            now = self._now()
            self.records.commit(tx, it, where, name, below, labels or {}, now)

        async def work() -> None:
            await self._database.transact(check)
            await self._sync()
            await self._database.transact(record)

        await shielded(work())

    async def remove(self, namespace: str, key: str) -> None:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""

        def retire(tx: Transaction) -> int:
            record = self.records.get(tx, namespace, key)
            self.records.retire(tx, record)
            return record.id

        async def work() -> None:
            await self.clear([await self._database.transact(retire)])

        await shielded(work())

    async def info(self, namespace: str, key: str) -> SnapshotInfo:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""
        return await self._database.transact(lambda tx: self.records.info(tx, namespace, key))

    async def list(self, namespace: str | None = None) -> Sequence[SnapshotInfo]:
        """See :class:`ctd.storage.interfaces.ISnapshotter`."""
        return await self._database.transact(lambda tx: self.records.list(tx, namespace))

    async def usage(self, namespace: str, key: str) -> Usage:
        """See :class:`ctd.storage.interfaces.ISnapshotter`.

        Measured at each call; for a committed snapshot only at the first.
        """
        record = await self._database.transact(lambda tx: self.records.get(tx, namespace, key))
        if record.size is not None and record.inodes is not None:
            return Usage(record.size, record.inodes)
        held = await self._workers.run(measure, self.files(record.id))
        if record.kind is SnapshotKind.COMMITTED:
            await self._database.transact(
                lambda tx: self.records.measured(tx, record.id, held.size, held.inodes)
            )
        return Usage(held.size, held.inodes)

    async def layers(self, namespace: str, name: str) -> Sequence[str]:
        """The directories that make up the committed snapshot *name*, topmost first.

        Looked up as a parent is.  They are to be read only, and stay while
        something lies on the snapshot or holds it.

        :raise NotFound: there is no such name.
        """

        def find(tx: Transaction) -> Sequence[int]:
            return self.records.chain(tx, self.records.parent(tx, namespace, name).id)

        chain = await self._database.transact(find)
        return [str(self.files(id)) for id in (chain if self.layered else chain[:1])]

    async def clear(self, ids: Sequence[int]) -> None:
        """Remove the files, then the rows, of retired snapshots.

        :raise OSError: some cannot be removed; the next start tries again.
        """
        failure: OSError | None = None
        for id in ids:
            try:
                await self._workers.run(remove_tree, self.root / str(id))
            except OSError as error:
                failure = error
            else:
                await self._database.transact(self._eraser(id))
        if failure is not None:
            raise failure

    async def recover(self) -> None:
        """See :class:`ctd.storage.interfaces.ISnapshotter`.

        A snapshot whose directory somebody took away is dropped, and with
        layers those that lie on it as well, so that it can be made again.
        """
        directories = await self._workers.run(self._scan)
        start = await self._database.transact(lambda tx: self.records.start(tx, directories))
        for record in start.missing:
            self._log.error("snapshot {key} has no directory", key=record.key, id=record.id)
            if not await self._rebuilt(record):
                await self._database.transact(self._loser(record))
        buried = await self._database.transact(self.records.bury)
        try:
            await self.clear([*start.clear, *buried])
        except OSError:
            self._log.failure("a removed snapshot's directory stays")

    def _check_depth(self, key: str, parents: Sequence[int]) -> None:
        if self.max_layers is not None and len(parents) > self.max_layers:
            raise FailedPrecondition(
                "snapshot",
                key,
                f"it would lie on {len(parents)} layers; {self.name} takes {self.max_layers}",
            )

    def files(self, id: int) -> Path:
        """Where the files of a snapshot are."""
        return self.root / str(id) / "fs"

    async def _rebuilt(self, record: Record) -> bool:
        try:
            return await self._workers.run(self._rebuild, record)
        except OSError:
            self._log.failure("snapshot {key} cannot be made anew", key=record.key)
            return False

    def _loser(self, record: Record) -> Callable[[Transaction], None]:
        return lambda tx: self.records.lose(tx, record, layered=self.layered)

    def _eraser(self, id: int) -> Callable[[Transaction], None]:
        return lambda tx: self.records.erase(tx, id)

    def _scan(self) -> builtins.list[int]:
        make_directory(self.root)
        return [int(d.name) for d in self.root.iterdir() if d.name.isascii() and d.name.isdigit()]

    async def _create(
        self,
        namespace: str,
        key: str,
        kind: SnapshotKind,
        parent: str | None,
        labels: Mapping[str, str] | None,
    ) -> Sequence[Mount]:
        def begin(tx: Transaction) -> tuple[Record, Sequence[int]]:
            below = None if parent is None else self.records.parent(tx, namespace, parent).id
            parents = self.records.chain(tx, below)
            self._check_depth(key, parents)
            now = self._now()
            return self.records.begin(tx, namespace, key, kind, below, labels or {}, now), parents

        made: list[tuple[Record, Sequence[int]]] = []

        async def work() -> None:
            record, parents = await self._database.transact(begin)
            try:
                await self._workers.run(self._build, record.id, kind, parents)
                if parents and not self.layered:
                    await self._sync()  # or a power loss leaves a torn copy
                await self._database.transact(lambda tx: self.records.ready(tx, record))
            except BaseException:
                await self._give_up(record)
                raise
            made.append((record, parents))

        try:
            await shielded(work())
        except CancelledError:
            if made:
                await self.remove(namespace, key)
            raise
        [(record, parents)] = made
        return self._mounts(record.id, kind, parents)

    async def _give_up(self, record: Record) -> None:
        try:
            await self.clear([record.id])
        except Exception:  # noqa: BLE001 (the caller has an error of its own to tell)
            self._log.failure("snapshot {key} is left to the next start", key=record.key)
