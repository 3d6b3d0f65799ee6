"""The table of images, in the metadata database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

import attrs

from ctd.database import Schema, Transaction
from ctd.errors import NotFound
from ctd.images.interfaces import Image
from ctd.model import Descriptor, Digest
from ctd.storage.interfaces import SHARED, Resource

SCHEMA = Schema(
    "images",
    (
        """
        CREATE TABLE images (
            namespace TEXT NOT NULL,
            name TEXT NOT NULL,
            media_type TEXT NOT NULL,
            digest TEXT NOT NULL,
            size INTEGER NOT NULL,
            manifest TEXT NOT NULL,
            config TEXT NOT NULL,
            content_size INTEGER NOT NULL,
            labels TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL,
            PRIMARY KEY (namespace, name)
        );
        CREATE INDEX images_by_manifest ON images (manifest);
        CREATE TABLE unpacked (
            manifest TEXT NOT NULL,
            snapshotter TEXT NOT NULL,
            chain_id TEXT NOT NULL,
            PRIMARY KEY (manifest, snapshotter)
        );
        """,
    ),
)


@attrs.frozen
class Record:
    """An image, and the manifest and configuration that were chosen for this platform."""

    image: Image
    manifest: Digest
    config: Digest


def _record(row: sqlite3.Row) -> Record:
    target = Descriptor(row["media_type"], Digest.parse(row["digest"]), row["size"])
    image = Image(
        row["namespace"],
        row["name"],
        target,
        row["created_at"],
        row["updated_at"],
        row["content_size"],
        json.loads(row["labels"]),
    )
    return Record(image, Digest.parse(row["manifest"]), Digest.parse(row["config"]))


def find(tx: Transaction, namespace: str, name: str, digest: Digest | None) -> Record:
    """The image called *name*, or else the first one that is *digest*.

    :raise NotFound: there is neither.
    """
    row = tx.one("SELECT * FROM images WHERE namespace = ? AND name = ?", (namespace, name))
    if row is None and digest is not None:
        row = tx.one(
            "SELECT * FROM images WHERE namespace = ? AND (digest = ? OR manifest = ?)"
            " ORDER BY name",
            (namespace, str(digest), str(digest)),
        )
    if row is None:
        raise NotFound("image", name)
    return _record(row)


def everything(tx: Transaction, namespace: str | None) -> list[Record]:
    """All images, or one namespace's, by namespace and name."""
    rows = tx.all(
        "SELECT * FROM images WHERE ?1 IS NULL OR namespace = ?1 ORDER BY namespace, name",
        (namespace,),
    )
    return [_record(row) for row in rows]


def put(tx: Transaction, record: Record) -> Record:
    """Give an image its name, with the event that says so; the same one again says nothing."""
    image = record.image
    old = tx.one(
        "SELECT * FROM images WHERE namespace = ? AND name = ?", (image.namespace, image.name)
    )
    if old is not None:
        known = _record(old)
        if (known.image.target, known.manifest) == (image.target, record.manifest):
            return known
        record = attrs.evolve(record, image=attrs.evolve(image, created_at=known.image.created_at))
    tx.execute(
        "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            image.namespace,
            image.name,
            image.target.media_type,
            str(image.target.digest),
            image.target.size,
            str(record.manifest),
            str(record.config),
            image.size,
            json.dumps(dict(image.labels)),
            record.image.created_at,
            image.updated_at,
        ),
    )
    _forget_unpacked(tx)
    tx.emit(
        "image.created" if old is None else "image.updated",
        image.name,
        {"digest": str(image.target.digest)},
        namespace=image.namespace,
    )
    return record


def remove(tx: Transaction, record: Record) -> None:
    """Take a name away, with the event that says so.

    :raise NotFound: somebody else did so before.
    """
    image = record.image
    if not tx.execute(
        "DELETE FROM images WHERE namespace = ? AND name = ?", (image.namespace, image.name)
    ):
        raise NotFound("image", image.name)
    _forget_unpacked(tx)
    tx.emit(
        "image.deleted",
        image.name,
        {"digest": str(image.target.digest)},
        namespace=image.namespace,
    )


def _forget_unpacked(tx: Transaction) -> None:
    tx.execute("DELETE FROM unpacked WHERE manifest NOT IN (SELECT manifest FROM images)")


def set_unpacked(tx: Transaction, manifest: Digest, snapshotter: str, chain_id: str) -> None:
    """Record that *manifest*'s layers are unpacked; *chain_id* is the topmost."""
    tx.execute(
        "INSERT OR REPLACE INTO unpacked VALUES (?, ?, ?)", (str(manifest), snapshotter, chain_id)
    )


def unpacked(tx: Transaction, manifest: Digest, snapshotter: str) -> str | None:
    """The topmost chain ID of *manifest*'s layers, if they were unpacked; empty if it has none."""
    row = tx.one(
        "SELECT chain_id FROM unpacked WHERE manifest = ? AND snapshotter = ?",
        (str(manifest), snapshotter),
    )
    return None if row is None else row[0]


def roots(tx: Transaction) -> Sequence[Resource]:
    """What images keep from being collected: their content and their topmost layers."""
    rows = tx.all("SELECT digest, manifest, config FROM images")
    found = [Resource("content", d) for row in rows for d in row]
    layers = tx.all("SELECT DISTINCT snapshotter, chain_id FROM unpacked WHERE chain_id != ''")
    found += [Resource(f"snapshot/{s}", f"{SHARED}/{chain_id}") for s, chain_id in layers]
    return found
