"""The records of snapshots, one table for all snapshotters: steps of transactions.

A row's state is ``making`` until its files are there, then ``ready``;
``removing`` while its files are being deleted; ``lost`` if its files are gone
but others lie on it.  Only ``ready`` ones are seen; ``making`` ones keep
their key and their parent.  Events are emitted where a snapshot begins or
ceases to be seen, but not for keys that begin with :data:`INTERNAL`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import attrs

from ctd.database import Transaction
from ctd.errors import AlreadyExists, FailedPrecondition, NotFound
from ctd.model import rfc3339
from ctd.storage.interfaces import SHARED, SnapshotInfo, SnapshotKind

#: How the keys of the unpacker's own snapshots begin: they have no events, and
#: do not outlive the daemon that made them.
INTERNAL = "unpack-"

_CHAIN = """
WITH RECURSIVE chain (id, depth) AS (
    SELECT :id, 0
    UNION ALL
    SELECT snapshots.parent, depth + 1 FROM chain JOIN snapshots ON snapshots.id = chain.id
    WHERE snapshots.parent IS NOT NULL
)
SELECT chain.id, state FROM chain JOIN snapshots ON snapshots.id = chain.id ORDER BY depth
"""

_ABOVE = """
WITH RECURSIVE above (id) AS (
    SELECT :id
    UNION
    SELECT snapshots.id FROM above JOIN snapshots ON snapshots.parent = above.id
    WHERE snapshots.kind = 'committed'
)
UPDATE snapshots SET state = 'lost' WHERE state = 'ready' AND id IN above
"""


@attrs.frozen
class Record:
    """A row.  :ivar parent: its parent's row id."""

    id: int
    namespace: str
    key: str
    kind: SnapshotKind
    parent: int | None
    created_at: datetime
    labels: Mapping[str, str] = attrs.field(hash=False)
    size: int | None
    inodes: int | None


def _record(row: sqlite3.Row) -> Record:
    return Record(
        row["id"],
        row["namespace"],
        row["key"],
        SnapshotKind(row["kind"]),
        row["parent"],
        datetime.fromisoformat(row["created_at"]),
        json.loads(row["labels"]),
        row["size"],
        row["inodes"],
    )


@attrs.frozen
class Start:
    """What a start finds to do.

    :ivar clear: ids whose files and then rows are to be removed.
    :ivar missing: ready snapshots that have no directory.
    """

    clear: Sequence[int]
    missing: Sequence[Record]


@attrs.frozen
class SnapshotRecords:
    """The rows of one snapshotter."""

    snapshotter: str

    def get(self, tx: Transaction, namespace: str, key: str) -> Record:
        """The snapshot of that key or name.  :raise NotFound: there is none."""
        row = tx.one(
            "SELECT * FROM snapshots"
            " WHERE snapshotter = ? AND namespace = ? AND key = ? AND state = 'ready'",
            (self.snapshotter, namespace, key),
        )
        if row is None:
            raise NotFound("snapshot", key)
        return _record(row)

    def parent(self, tx: Transaction, namespace: str, name: str) -> Record:
        """The committed snapshot *name*, of the namespace or shared.

        :raise NotFound: there is none.
        """
        for where in (namespace, SHARED):
            try:
                found = self.get(tx, where, name)
            except NotFound:
                continue
            if found.kind is SnapshotKind.COMMITTED:
                return found
        raise NotFound("committed snapshot", name)

    def chain(self, tx: Transaction, id: int | None) -> tuple[int, ...]:
        """*id* and those it lies on, topmost first.

        :raise FailedPrecondition: one of them has lost its files.
        """
        rows = tx.all(_CHAIN, {"id": id})
        for row in rows:
            if row["state"] == "lost":
                raise FailedPrecondition(
                    "snapshot", str(row["id"]), "its files are gone: remove what lies on it"
                )
        return tuple(row["id"] for row in rows)

    def begin(
        self,
        tx: Transaction,
        namespace: str,
        key: str,
        kind: SnapshotKind,
        parent: int | None,
        labels: Mapping[str, str],
        now: datetime,
    ) -> Record:
        """A new row, ``making``.  :raise AlreadyExists: *key* is taken."""
        self._free(tx, namespace, key)
        id = tx.insert(
            "INSERT INTO snapshots (snapshotter, namespace, key, kind, state, parent, created_at,"
            " labels) VALUES (?, ?, ?, ?, 'making', ?, ?, ?)",
            (
                self.snapshotter,
                namespace,
                key,
                kind.value,
                parent,
                rfc3339(now),
                json.dumps(dict(labels)),
            ),
        )
        return Record(id, namespace, key, kind, parent, now, dict(labels), None, None)

    def ready(self, tx: Transaction, record: Record) -> None:
        """Its files are there."""
        tx.execute("UPDATE snapshots SET state = 'ready' WHERE id = ?", (record.id,))
        self._emit(tx, "snapshot.prepared", record, {"kind": record.kind.value})

    def commit(
        self,
        tx: Transaction,
        record: Record,
        namespace: str,
        name: str,
        parent: int | None,
        labels: Mapping[str, str],
        now: datetime,
    ) -> None:
        """Make an active snapshot a committed one."""
        tx.execute(
            "UPDATE snapshots SET namespace = ?, key = ?, kind = 'committed', parent = ?,"
            " created_at = ?, labels = ? WHERE id = ?",
            (namespace, name, parent, rfc3339(now), json.dumps(dict(labels)), record.id),
        )
        committed = attrs.evolve(record, namespace=namespace, key=name)
        self._emit(tx, "snapshot.committed", committed, {"from": record.key})

    def committable(
        self, tx: Transaction, namespace: str, key: str, target: str, name: str
    ) -> Record:
        """The active snapshot *key*, if it may be committed as *name*.  Errors as for commit."""
        record = self.get(tx, namespace, key)
        if record.kind is not SnapshotKind.ACTIVE:
            raise FailedPrecondition("snapshot", key, f"it is {record.kind.value}, not active")
        self._free(tx, target, name)
        return record

    def retire(self, tx: Transaction, record: Record) -> None:
        """Take a snapshot out of sight; its files are then to be removed, then its row.

        :raise FailedPrecondition: others lie on it.
        """
        above = tx.one(
            "SELECT key FROM snapshots WHERE parent = ? AND state != 'removing'", (record.id,)
        )
        if above is not None:
            raise FailedPrecondition("snapshot", record.key, f"{above['key']!r} lies on it")
        tx.execute(
            "UPDATE snapshots SET state = 'removing', parent = NULL WHERE id = ?", (record.id,)
        )
        self._emit(tx, "snapshot.removed", record, {})

    def erase(self, tx: Transaction, id: int) -> None:
        """Drop the row of a snapshot whose files are gone."""
        tx.execute("DELETE FROM snapshots WHERE id = ?", (id,))

    def measured(self, tx: Transaction, id: int, size: int, inodes: int) -> None:
        """Remember what a committed snapshot holds."""
        tx.execute(
            "UPDATE snapshots SET size = ?, inodes = ? WHERE id = ? AND kind = 'committed'",
            (size, inodes, id),
        )

    def list(self, tx: Transaction, namespace: str | None = None) -> Sequence[SnapshotInfo]:
        """All, or one namespace's, by namespace and key."""
        rows = tx.all(
            "SELECT s.*, p.key AS parent_key FROM snapshots s LEFT JOIN snapshots p"
            " ON p.id = s.parent WHERE s.snapshotter = ? AND s.state = 'ready'"
            " AND (? IS NULL OR s.namespace = ?) ORDER BY s.namespace, s.key",
            (self.snapshotter, namespace, namespace),
        )
        return [self._info(_record(row), row["parent_key"]) for row in rows]

    def info(self, tx: Transaction, namespace: str, key: str) -> SnapshotInfo:
        """One.  :raise NotFound: there is none."""
        record = self.get(tx, namespace, key)
        above = tx.one("SELECT key FROM snapshots WHERE id = ?", (record.parent,))
        return self._info(record, above["key"] if above else None)

    def ready_records(self, tx: Transaction) -> Sequence[Record]:
        """Every row that is seen."""
        rows = tx.all(
            "SELECT * FROM snapshots WHERE snapshotter = ? AND state = 'ready'",
            (self.snapshotter,),
        )
        return [_record(row) for row in rows]

    def parents(self, tx: Transaction) -> Mapping[int, int | None]:
        """The parent of every row that is not being removed."""
        rows = tx.all(
            "SELECT id, parent FROM snapshots WHERE snapshotter = ? AND state != 'removing'",
            (self.snapshotter,),
        )
        return {row["id"]: row["parent"] for row in rows}

    def start(self, tx: Transaction, directories: Collection[int]) -> Start:
        """Take out of sight what was half made, and find what is to be done.

        That is what was ``making``, the unpacker's own, and directories
        without a row.
        """
        for record in self.ready_records(tx):
            if record.key.startswith(INTERNAL) and record.kind is not SnapshotKind.COMMITTED:
                self.retire(tx, record)
        tx.execute(
            "UPDATE snapshots SET state = 'removing', parent = NULL"
            " WHERE snapshotter = ? AND state = 'making'",
            (self.snapshotter,),
        )
        rows = tx.all("SELECT id, state FROM snapshots WHERE snapshotter = ?", (self.snapshotter,))
        removing = {row["id"] for row in rows if row["state"] == "removing"}
        orphans = set(directories) - {row["id"] for row in rows}
        missing = [r for r in self.ready_records(tx) if r.id not in directories]
        return Start(sorted(removing | orphans), missing)

    def lose(self, tx: Transaction, record: Record, *, layered: bool) -> None:
        """Take a snapshot that has no files out of sight.

        With *layered* the committed ones that lie on it go with it, since they
        are no root file systems without it; else what is a copy of it stays
        without it.
        """
        if layered:
            tx.execute(_ABOVE, {"id": record.id})
        else:
            tx.execute("UPDATE snapshots SET state = 'lost' WHERE id = ?", (record.id,))
            tx.execute(
                "UPDATE snapshots SET parent = NULL WHERE parent = ? AND kind != 'view'",
                (record.id,),
            )

    def bury(self, tx: Transaction) -> Sequence[int]:
        """Retire what is lost and has nothing on it any more, and give the ids."""
        buried: list[int] = []
        while rows := tx.all(
            "SELECT * FROM snapshots s WHERE snapshotter = ? AND state = 'lost' AND NOT EXISTS"
            " (SELECT 1 FROM snapshots WHERE parent = s.id)",
            (self.snapshotter,),
        ):
            for row in rows:
                self.retire(tx, _record(row))
                buried.append(row["id"])
        return buried

    def _free(self, tx: Transaction, namespace: str, key: str) -> None:
        if tx.one(
            "SELECT 1 FROM snapshots WHERE snapshotter = ? AND namespace = ? AND key = ?"
            " AND state IN ('making', 'ready')",
            (self.snapshotter, namespace, key),
        ):
            raise AlreadyExists("snapshot", key)

    def _info(self, record: Record, parent: str | None) -> SnapshotInfo:
        return SnapshotInfo(
            record.namespace, record.key, record.kind, parent, record.created_at, record.labels
        )

    def _emit(self, tx: Transaction, topic: str, record: Record, data: Mapping[str, str]) -> None:
        if not record.key.startswith(INTERNAL):
            data = {"snapshotter": self.snapshotter, **data}
            tx.emit(topic, record.key, dict(data), namespace=record.namespace)
