"""The tables of containers and processes."""

from __future__ import annotations

from ctd.database import Schema

SCHEMA = Schema(
    "runtime",
    (
        # request and process are JSON: ctd.runtime.interfaces.ContainerRequest (ExecRequest) as
        # it came, and the OCI "process" object that those executed later start from.
        """
        CREATE TABLE containers (
            number INTEGER PRIMARY KEY,
            run TEXT NOT NULL UNIQUE,
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            boot_id TEXT NOT NULL,
            status TEXT NOT NULL,
            pid INTEGER,
            started_at TEXT,
            exit_status INTEGER,
            exit_reason TEXT,
            exited_at TEXT,
            created_at TEXT NOT NULL,
            runtime TEXT NOT NULL,
            snapshotter TEXT,
            image TEXT,
            request TEXT NOT NULL,
            process TEXT NOT NULL,
            UNIQUE (namespace, id)
        );
        CREATE TABLE processes (
            number INTEGER PRIMARY KEY,
            run TEXT NOT NULL REFERENCES containers (run) ON DELETE CASCADE,
            id TEXT NOT NULL,
            status TEXT NOT NULL,
            pid INTEGER,
            started_at TEXT,
            exit_status INTEGER,
            exit_reason TEXT,
            exited_at TEXT,
            request TEXT NOT NULL,
            UNIQUE (run, id)
        );
        """,
    ),
)
