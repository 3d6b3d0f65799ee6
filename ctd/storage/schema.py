"""The tables of storage.  Times are RFC 3339 text, labels JSON objects."""

from __future__ import annotations

from ctd.database import Schema

_FIRST = """
CREATE TABLE blobs (
    digest     TEXT PRIMARY KEY,
    size       INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    labels     TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE blob_children (
    parent TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    child  TEXT NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;

CREATE TABLE ingests (
    ref        TEXT PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    boot       TEXT NOT NULL,
    started_at TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE snapshots (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    snapshotter TEXT NOT NULL,
    namespace   TEXT NOT NULL,
    key         TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
    state       TEXT NOT NULL CHECK (state IN ('making', 'ready', 'lost', 'removing')),
    parent      INTEGER REFERENCES snapshots (id),
    created_at  TEXT NOT NULL,
    labels      TEXT NOT NULL,
    size        INTEGER,
    inodes      INTEGER
);

CREATE UNIQUE INDEX snapshot_names ON snapshots (snapshotter, namespace, key)
    WHERE state IN ('making', 'ready');

CREATE INDEX snapshot_parents ON snapshots (parent);
"""

SCHEMA = Schema("storage", (_FIRST,))
