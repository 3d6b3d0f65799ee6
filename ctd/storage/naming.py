"""The two sides of a blob's name, file and record, changed as one.

Naming: rename, then record.  Deleting: record, then unlink.  Both under a lock
a digest, so that what is cut off between is always a file without a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ctd.database import Database, Transaction
from ctd.model import Digest
from ctd.storage import blobs
from ctd.storage.files import ContentFiles
from ctd.storage.ingest import IngestFile
from ctd.storage.interfaces import BlobInfo
from ctd.storage.locks import Locks
from ctd.threads import IWorkers


class Naming:
    """Gives verified files their digests' names, and takes them away.

    :ivar turn: the lock a digest; :meth:`place` is called inside it.
    """

    def __init__(self, database: Database, workers: IWorkers, files: ContentFiles) -> None:
        self.turn: Locks[Digest] = Locks()
        self._database = database
        self._workers = workers
        self._files = files

    async def place(
        self, file: IngestFile, digest: Digest, record: Callable[[Transaction], BlobInfo]
    ) -> BlobInfo:
        """Name a verified file that has no record yet; *record* adds that."""
        try:
            await self._workers.run(self._files.place, file, digest)
            return await self._database.transact(record)
        except BaseException:
            await self._workers.run(self._files.unlink, digest)
            raise

    async def delete(self, digest: Digest) -> None:
        """Take a name away, and the file with it.  :raise NotFound: it is not there."""
        async with self.turn(digest):
            await self._database.transact(lambda tx: blobs.erase(tx, digest))
            await self._workers.run(self._files.unlink, digest)

    async def unlink(self, digests: Sequence[Digest]) -> None:
        """Remove the files of blobs whose records were erased, unless they have come back."""
        for digest in digests:
            async with self.turn(digest):
                if not await self._database.transact(self._finder(digest)):
                    await self._workers.run(self._files.unlink, digest)

    def _finder(self, digest: Digest) -> Callable[[Transaction], BlobInfo | None]:
        return lambda tx: blobs.find(tx, digest)
