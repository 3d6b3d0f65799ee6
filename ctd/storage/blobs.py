"""The records of content: each function is a step of a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime

from ctd.database import Transaction
from ctd.errors import NotFound
from ctd.model import Descriptor, Digest, rfc3339
from ctd.storage.interfaces import SHARED, BlobInfo


def blob(row: sqlite3.Row) -> BlobInfo:
    """A row of ``blobs`` as a value."""
    return BlobInfo(
        Digest.parse(row["digest"]),
        row["size"],
        datetime.fromisoformat(row["created_at"]),
        json.loads(row["labels"]),
    )


def all(tx: Transaction) -> Sequence[BlobInfo]:
    """Every blob, by digest."""
    return [blob(row) for row in tx.all("SELECT * FROM blobs ORDER BY digest")]


def find(tx: Transaction, digest: Digest) -> BlobInfo | None:
    """The blob's record, if there is one."""
    row = tx.one("SELECT * FROM blobs WHERE digest = ?", (str(digest),))
    return None if row is None else blob(row)


def get(tx: Transaction, digest: Digest) -> BlobInfo:
    """The blob's record.  :raise NotFound: there is none."""
    found = find(tx, digest)
    if found is None:
        raise NotFound("blob", str(digest))
    return found


def add(
    tx: Transaction, digest: Digest, size: int, now: datetime, labels: Mapping[str, str]
) -> BlobInfo:
    """Record a blob whose file is in place."""
    at = rfc3339(now)
    tx.execute(
        "INSERT INTO blobs VALUES (?, ?, ?, ?)", (str(digest), size, at, json.dumps(dict(labels)))
    )
    tx.emit("content.created", str(digest), {"size": size}, namespace=SHARED)
    return BlobInfo(digest, size, datetime.fromisoformat(at), dict(labels))


def link(tx: Transaction, parent: Digest, children: Sequence[Digest]) -> None:
    """Let *parent* keep *children* alive."""
    tx.many(
        "INSERT OR IGNORE INTO blob_children VALUES (?, ?)",
        [(str(parent), str(child)) for child in children],
    )


def erase(tx: Transaction, digest: Digest) -> None:
    """Drop a blob's record.  :raise NotFound: there is none."""
    if not tx.execute("DELETE FROM blobs WHERE digest = ?", (str(digest),)):
        raise NotFound("blob", str(digest))
    tx.emit("content.deleted", str(digest), namespace=SHARED)


def begin(
    tx: Transaction, ref: str, expected: Descriptor, id: str, boot: str, now: datetime
) -> None:
    """Record an ingest whose file is to be made."""
    tx.execute(
        "INSERT INTO ingests VALUES (?, ?, ?, ?, ?, ?)",
        (ref, id, str(expected.digest), expected.size, boot, rfc3339(now)),
    )


def begun(tx: Transaction, ref: str) -> sqlite3.Row | None:
    """The record of an ingest, if there is one."""
    return tx.one("SELECT * FROM ingests WHERE ref = ?", (ref,))


def end(tx: Transaction, ref: str) -> int:
    """Drop the record of an ingest, and tell how many there were."""
    return tx.execute("DELETE FROM ingests WHERE ref = ?", (ref,))
