"""The content store's files.  For worker threads; only the paths are for everyone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ctd.errors import DataLoss, NotFound
from ctd.model import Digest
from ctd.storage.disk import full_disk_is_typed, sync_directory
from ctd.storage.ingest import IngestFile


class ContentFiles:
    """What is below the content store's *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, digest: Digest) -> Path:
        """Where a blob is."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def ingest(self, id: str) -> Path:
        """The directory of an ingest."""
        return self.root / "ingest" / id

    def open(self, digest: Digest) -> int:
        """A blob's file, open for reading."""
        return os.open(self.blob(digest), os.O_RDONLY | os.O_CLOEXEC)

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly *length* bytes of a blob.

        :raise NotFound: it is not there.
        :raise DataLoss: it ends before that.
        """
        try:
            with self.blob(digest).open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(length)
        except FileNotFoundError:
            raise NotFound("blob", str(digest)) from None
        if len(data) != length:
            raise DataLoss(f"blob {digest}", f"its file ends at byte {offset + len(data)}")
        return data

    def fill(self, file: IngestFile, data: bytes) -> None:
        """Make a small ingest at once."""
        file.open()
        file.append([data])

    def place(self, file: IngestFile, digest: Digest) -> None:
        """Put a verified ingest's bytes on disk and give them their name."""
        file.sync()
        path = self.blob(digest)
        with full_disk_is_typed():
            file.path.rename(path)
            sync_directory(path.parent)
        file.directory.rmdir()

    def unlink(self, digest: Digest) -> None:
        """Remove a blob; not there is fine."""
        self.blob(digest).unlink(missing_ok=True)

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """How many bytes each ingest's file has."""
        sizes = []
        for id in ids:
            try:
                sizes.append((self.ingest(id) / "data").stat().st_size)
            except FileNotFoundError:
                sizes.append(0)
        return sizes
