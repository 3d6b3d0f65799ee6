"""The content store: blobs as files under their digests, records in the database.

Layout, below ``content`` in the daemon's root: ``blobs/<algorithm>/<hex>``,
``ingest/<id>/data`` and ``quarantine/``.  A file is renamed into ``blobs``
only after its size and digest were checked and its bytes synced; its record
follows, in one transaction with its event.  So a file without a record is a
whole blob whose record was cut off (or whose deletion was), and
:meth:`ContentStore.recover` may adopt it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.errors import InvalidArgument, ResourceExhausted
from ctd.model import Descriptor, Digest
from ctd.storage import blobs
from ctd.storage.arrival import Arrivals, Source
from ctd.storage.disk import boot_id
from ctd.storage.errors import DigestMismatch, SizeMismatch
from ctd.storage.files import ContentFiles
from ctd.storage.ingest import Ingest, IngestFile
from ctd.storage.ingests import Ingests
from ctd.storage.interfaces import READ_LIMIT, BlobInfo, IContentStore, IngestInfo
from ctd.storage.naming import Naming
from ctd.storage.recovery import Found, Left, Repair, plan, put_right, scan
from ctd.storage.trees import remove_tree
from ctd.threads import IWorkers


@implementer(IContentStore)
class ContentStore:
    """See :class:`ctd.storage.interfaces.IContentStore`.

    :meth:`recover` is to be awaited before anything else.

    :param database: with :data:`ctd.storage.schema.SCHEMA`.
    :param root: the daemon's root; the store's own is ``content`` in it.
    """

    _log = Logger()

    def __init__(
        self, database: Database, workers: IWorkers, root: Path, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._workers = workers
        self._now = now
        self._boot = boot_id()
        self._files = ContentFiles(root / "content")
        self._naming = Naming(database, workers, self._files)
        self._arrivals = Arrivals(self._look, self._close)
        self._ingests = Ingests(
            database, workers, self._files, self._naming, self._arrivals, now, self._boot
        )

    async def info(self, digest: Digest) -> BlobInfo:
        """See :class:`ctd.storage.interfaces.IContentStore`."""
        return await self._database.transact(lambda tx: blobs.get(tx, digest))

    async def list(self) -> Sequence[BlobInfo]:
        """See :class:`ctd.storage.interfaces.IContentStore`."""
        return await self._database.transact(blobs.all)

    async def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        """See :class:`ctd.storage.interfaces.IContentStore`.

        Gives less than *length* where the blob ends.

        :raise DataLoss: the file is shorter than it was.
        """
        if offset < 0:
            raise InvalidArgument("offset", f"{offset} is negative")
        if length is not None and length < 0:
            raise InvalidArgument("length", f"{length} is negative")
        rest = max(0, (await self.info(digest)).size - offset)
        if (rest if length is None else length) > READ_LIMIT:
            raise ResourceExhausted("bytes in one read", READ_LIMIT)
        wanted = rest if length is None else min(length, rest)
        return await self._workers.run(self._files.read, digest, offset, wanted)

    async def ingest(self, ref: str, expected: Descriptor) -> Ingest:
        """See :class:`ctd.storage.interfaces.IContentStore`.

        Another ref that is open for the same digest counts as busy too: who
        follows a digest follows one writer.
        """
        return await self._ingests.open(ref, expected)

    def source(self, expected: Descriptor) -> Source:
        """See :class:`ctd.storage.interfaces.IContentStore`; it can be followed."""
        return Source(expected, self._arrivals)

    async def put(
        self, descriptor: Descriptor, data: bytes, children: Sequence[Digest] = ()
    ) -> BlobInfo:
        """See :class:`ctd.storage.interfaces.IContentStore`.

        :raise SizeMismatch: *data* has another size than the descriptor says.
        """
        if len(data) != descriptor.size:
            raise SizeMismatch(str(descriptor.digest), descriptor.size, len(data))
        return await shielded(self._put(descriptor, data, children))

    async def ingests(self) -> Sequence[IngestInfo]:
        """See :class:`ctd.storage.interfaces.IContentStore`."""
        return await self._ingests.list()

    async def abort(self, ref: str) -> None:
        """See :class:`ctd.storage.interfaces.IContentStore`."""
        await self._ingests.abort(ref)

    async def expire(self, age: timedelta) -> None:
        """Abort the ingests that nobody writes and that were begun longer than *age* ago."""
        await self._ingests.expire(age)

    async def delete(self, digest: Digest) -> None:
        """See :class:`ctd.storage.interfaces.IContentStore`."""
        await shielded(self._naming.delete(digest))

    async def unlink(self, digests: Sequence[Digest]) -> None:
        """Remove the files of blobs whose records were erased, unless they have come back."""
        await self._naming.unlink(digests)

    async def recover(self) -> None:
        """At start: finish or remove what was cut off; see :mod:`ctd.storage.recovery`."""
        found = await self._workers.run(scan, self._files.root)
        repair = await self._database.transact(lambda tx: self._plan(tx, found))
        for digest in repair.adopt:
            self._log.info("blob {digest} has no record: adopted", digest=str(digest))
        for digest in repair.lost:
            self._log.error("blob {digest} has no file: dropped", digest=str(digest))
        for file in repair.aside:
            self._log.error("{file} is no whole blob: put into quarantine", file=str(file))
        await self._workers.run(put_right, self._files.root, repair)
        await self._database.transact(lambda tx: self._record(tx, repair))

    def _plan(self, tx: Transaction, found: Found) -> Repair:
        left = [
            Left(row["ref"], row["id"], Digest.parse(row["digest"]), row["boot"])
            for row in tx.all("SELECT * FROM ingests")
        ]
        return plan(found, {b.digest: b.size for b in blobs.all(tx)}, left, self._boot)

    def _record(self, tx: Transaction, repair: Repair) -> None:
        for digest, size in repair.adopt.items():
            blobs.add(tx, digest, size, self._now(), {})
        for digest in (*repair.lost, *repair.damaged):
            blobs.erase(tx, digest)
        for ref in repair.forget:
            blobs.end(tx, ref)

    async def _put(
        self, descriptor: Descriptor, data: bytes, children: Sequence[Digest]
    ) -> BlobInfo:
        digest = descriptor.digest
        if (actual := await self._workers.run(Digest.of, data, digest.algorithm)) != digest:
            raise DigestMismatch(str(digest), str(actual))

        def again(tx: Transaction) -> BlobInfo | None:
            there = blobs.find(tx, digest)
            if there is not None:
                blobs.link(tx, digest, children)
            return there

        def record(tx: Transaction) -> BlobInfo:
            info = blobs.add(tx, digest, len(data), self._now(), {})
            blobs.link(tx, digest, children)
            return info

        async with self._naming.turn(digest):
            there = await self._database.transact(again)
            if there is None:
                file = IngestFile(self._files.ingest(secrets.token_hex(8)), descriptor)
                try:
                    await self._workers.run(self._files.fill, file, data)
                    there = await self._naming.place(file, digest, record)
                except BaseException:
                    await self._workers.run(remove_tree, file.directory)
                    raise
                finally:
                    file.close()
        arrival = self._arrivals.get(digest, len(data))
        if arrival is not None:
            arrival.stored()
        return there

    async def _look(self, expected: Descriptor) -> tuple[int, int] | None:
        there = await self._database.transact(lambda tx: blobs.find(tx, expected.digest))
        if there is None:
            return None
        if there.size != expected.size:
            raise SizeMismatch(str(expected.digest), expected.size, there.size)
        try:
            return await self._workers.run(self._files.open, expected.digest), there.size
        except FileNotFoundError:  # deleted meanwhile
            return None

    def _close(self, fd: int) -> None:
        closing = Deferred.fromCoroutine(self._workers.run(os.close, fd))
        closing.addErrback(lambda f: self._log.failure("closing a blob's file", failure=f))
