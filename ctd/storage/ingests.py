"""The ingests under way: begun, resumed, ended, aborted."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.errors import AlreadyExists, NotFound
from ctd.model import Descriptor, Digest, rfc3339
from ctd.storage import blobs
from ctd.storage.arrival import Arrivals
from ctd.storage.errors import IngestBusy, IngestDiscarded
from ctd.storage.files import ContentFiles
from ctd.storage.ingest import Ingest, IngestFile
from ctd.storage.interfaces import BlobInfo, IngestInfo
from ctd.storage.naming import Naming
from ctd.storage.trees import remove_tree
from ctd.threads import IWorkers


class Ingests:
    """The content store's writers; the :class:`ctd.storage.ingest.IngestHome` of each.

    The record is made before the file and goes after it, so that no file is
    ever unknown; the other way round, a record without a file is dropped at
    the next start.

    :param boot: this boot's id: an ingest from another one is not resumed.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        workers: IWorkers,
        files: ContentFiles,
        naming: Naming,
        arrivals: Arrivals,
        now: Callable[[], datetime],
        boot: str,
    ) -> None:
        self._database = database
        self._workers = workers
        self._files = files
        self._naming = naming
        self._arrivals = arrivals
        self._now = now
        self._boot = boot
        self._writers: dict[str, Digest] = {}

    async def open(self, ref: str, expected: Descriptor) -> Ingest:
        """See :meth:`ctd.storage.interfaces.IContentStore.ingest`."""
        if ref in self._writers or expected.digest in self._writers.values():
            raise IngestBusy(ref)
        self._writers[ref] = expected.digest
        opened: list[Ingest] = []

        async def work() -> None:
            opened.append(await self._open(ref, expected))

        try:
            await shielded(work())
        except CancelledError:
            for ingest in opened:
                await ingest.close()
            raise
        return opened[0]

    async def list(self) -> Sequence[IngestInfo]:
        """See :meth:`ctd.storage.interfaces.IContentStore.ingests`."""
        rows = await self._database.transact(
            lambda tx: tx.all("SELECT * FROM ingests ORDER BY ref")
        )
        sizes = await self._workers.run(self._files.sizes, [row["id"] for row in rows])
        return [
            IngestInfo(
                row["ref"],
                size,
                row["size"],
                Digest.parse(row["digest"]),
                datetime.fromisoformat(row["started_at"]),
            )
            for row, size in zip(rows, sizes, strict=True)
        ]

    async def abort(self, ref: str) -> None:
        """See :meth:`ctd.storage.interfaces.IContentStore.abort`."""
        if ref in self._writers:
            raise IngestBusy(ref)
        await shielded(self._abort(ref))

    async def expire(self, age: timedelta) -> None:
        """Abort the ingests that nobody writes and that were begun longer than *age* ago."""
        before = rfc3339(self._now() - age)
        rows = await self._database.transact(
            lambda tx: tx.all("SELECT ref FROM ingests WHERE started_at < ?", (before,))
        )
        for row in rows:
            try:
                await self.abort(row["ref"])
            except (IngestBusy, NotFound):
                continue

    async def name(self, ingest: Ingest, labels: Mapping[str, str]) -> BlobInfo:
        """Put a verified file under its digest."""
        digest = ingest.expected.digest

        def record(tx: Transaction) -> BlobInfo:
            blobs.end(tx, ingest.ref)
            return blobs.add(tx, digest, ingest.expected.size, self._now(), labels)

        async with self._naming.turn(digest):
            there = await self._database.transact(lambda tx: blobs.find(tx, digest))
            if there is None:
                there = await self._naming.place(ingest.file, digest, record)
            else:
                await self._scrap(ingest.ref, ingest.file)
        self._leave(ingest)
        ingest.arrival.committed()
        return there

    async def keep(self, ingest: Ingest) -> None:
        """Leave an ingest's file for a later writer."""
        self._leave(ingest)
        ingest.arrival.paused()

    async def drop(self, ingest: Ingest, reason: Failure) -> None:
        """Remove an ingest's file and record."""
        await self._scrap(ingest.ref, ingest.file)
        self._leave(ingest)
        ingest.arrival.discarded(reason)

    def _leave(self, ingest: Ingest) -> None:
        ingest.file.close()
        del self._writers[ingest.ref]

    async def _open(self, ref: str, expected: Descriptor) -> Ingest:
        id = secrets.token_hex(8)
        file = IngestFile(self._files.ingest(id), expected)
        resumed = False
        try:
            before = await self._database.transact(lambda tx: self._record(tx, ref, expected, id))
            if before is not None:
                resumed = _same(before, expected)
                if resumed:
                    file = IngestFile(self._files.ingest(before["id"]), expected)
                else:
                    await self._remove(before)
            await self._workers.run(file.open)
            while not await self._workers.run(file.rehash):
                pass
            reader = await self._workers.run(file.reader)
        except BaseException as error:
            if not resumed and not isinstance(error, AlreadyExists):
                await self._scrap(ref, file)
            file.close()
            del self._writers[ref]
            raise
        arrival = self._arrivals.of(expected)
        arrival.opened(reader, file.size)
        return Ingest(ref, expected, file, arrival, self._workers, self)

    def _record(
        self, tx: Transaction, ref: str, expected: Descriptor, id: str
    ) -> sqlite3.Row | None:
        if blobs.find(tx, expected.digest):
            raise AlreadyExists("blob", str(expected.digest))
        before = blobs.begun(tx, ref)
        if before is None or not _same(before, expected):
            blobs.end(tx, ref)
            blobs.begin(tx, ref, expected, id, self._boot, self._now())
        return before

    async def _abort(self, ref: str) -> None:
        row = await self._database.transact(lambda tx: blobs.begun(tx, ref))
        if row is None:
            raise NotFound("ingest", ref)
        if ref in self._writers:
            raise IngestBusy(ref)
        self._writers[ref] = Digest.parse(row["digest"])
        try:
            await self._remove(row)
            await self._database.transact(lambda tx: blobs.end(tx, ref))
        finally:
            del self._writers[ref]

    async def _remove(self, row: sqlite3.Row) -> None:
        await self._workers.run(remove_tree, self._files.ingest(row["id"]))
        arrival = self._arrivals.get(Digest.parse(row["digest"]), row["size"])
        if arrival is not None and not arrival.written:
            arrival.discarded(Failure(IngestDiscarded(row["ref"], row["digest"])))

    async def _scrap(self, ref: str, file: IngestFile) -> None:
        try:
            await self._workers.run(remove_tree, file.directory)
            await self._database.transact(lambda tx: blobs.end(tx, ref))
        except Exception:  # noqa: BLE001 (the caller has its own outcome; recovery does the rest)
            self._log.failure("the rest of ingest {ref} is left to the next start", ref=ref)


def _same(row: sqlite3.Row, expected: Descriptor) -> bool:
    return (row["digest"], row["size"]) == (str(expected.digest), expected.size)
