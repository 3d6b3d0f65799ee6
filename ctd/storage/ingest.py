"""Writing one blob: a file that is hashed as it grows, behind an asynchronous face.

The bytes go to the file in batches, one thread call at a time, while the
reactor goes on taking more; so network, hashing and disk work side by side.
Write-back is started early and often, from another thread because that may
block, and leaves little for the ``fdatasync`` at the end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.concurrency import shielded
from ctd.errors import FailedPrecondition, ResourceExhausted
from ctd.kernel import sync_file_range
from ctd.model import Descriptor, Digest
from ctd.storage.arrival import Arrival
from ctd.storage.disk import full_disk_is_typed
from ctd.storage.errors import DigestMismatch, IngestDiscarded, SizeMismatch
from ctd.storage.interfaces import BlobInfo, IIngest
from ctd.threads import IWorkers

#: Bytes handed to a thread at once, at least; the most that wait; those between write-backs.
BATCH = 1 << 20
WAITING = 4 << 20
WRITE_BACK = 8 << 20

#: Bytes hashed again in one thread call when an ingest is reopened.
REHASH = 64 << 20


class IngestFile:
    """An ingest's file, for worker threads, one call at a time (but see :meth:`write_back`).

    :ivar size: the bytes in the file, all of them hashed.
    """

    def __init__(self, directory: Path, expected: Descriptor) -> None:
        self.directory = directory
        self.path = directory / "data"
        self.size = 0
        self._expected = expected
        self._hasher = expected.digest.hasher()
        self._fd = -1
        self._written_back = 0

    def open(self) -> None:
        """Open the file, made if it is not there."""
        with full_disk_is_typed():
            self.directory.mkdir(0o700, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size > self._expected.size:
            os.ftruncate(self._fd, 0)

    def rehash(self) -> bool:
        """Hash up to :data:`REHASH` bytes of what was there before; whether that was all."""
        end = self.size + REHASH
        while self.size < end:
            data = os.pread(self._fd, BATCH, self.size)
            if not data:
                os.lseek(self._fd, self.size, os.SEEK_SET)
                self._written_back = self.size
                return True
            self._hasher.update(data)
            self.size += len(data)
        return False

    def reader(self) -> int:
        """A read-only descriptor of the file."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def append(self, batch: Sequence[bytes]) -> None:
        """Write and hash; after an error, what went into the file is hashed too."""
        for data in batch:
            rest = memoryview(data)
            while rest:
                with full_disk_is_typed():
                    written = os.write(self._fd, rest)
                self._hasher.update(rest[:written])
                self.size += written
                rest = rest[written:]

    def wants_write_back(self) -> bool:
        """Whether enough was written since the last :meth:`write_back`."""
        return self.size - self._written_back >= WRITE_BACK

    def write_back(self) -> None:
        """Begin to put on disk what is in the file; may run beside the other calls."""
        begin, self._written_back = self._written_back, self.size
        sync_file_range(self._fd, begin, self._written_back - begin)

    def digest(self) -> Digest:
        """What the file's bytes hash to."""
        return Digest(self._expected.digest.algorithm, self._hasher.hexdigest())

    def sync(self) -> None:
        """Put the file's bytes on disk."""
        with full_disk_is_typed():
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Give the descriptor back.  Can be repeated."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class IngestHome(Protocol):
    """What an ingest ends in."""

    async def name(self, ingest: Ingest, labels: Mapping[str, str]) -> BlobInfo:
        """Put the verified file under its digest."""

    async def keep(self, ingest: Ingest) -> None:
        """Leave the file for a later writer."""

    async def drop(self, ingest: Ingest, reason: Failure) -> None:
        """Remove the file and the record."""


@implementer(IIngest)
class Ingest:
    """See :class:`ctd.storage.interfaces.IIngest`."""

    def __init__(
        self,
        ref: str,
        expected: Descriptor,
        file: IngestFile,
        arrival: Arrival,
        workers: IWorkers,
        home: IngestHome,
    ) -> None:
        self.ref = ref
        self.offset = file.size
        self.expected = expected
        self.file = file
        self.arrival = arrival
        self._workers = workers
        self._home = home
        self._open = True
        self._batch: list[bytes] = []
        self._unwritten = 0
        self._writing = False
        self._writing_back = False
        self._flushing = False
        self._failure: Failure | None = None
        self._waiting: list[Deferred[None]] = []

    async def write(self, data: bytes) -> None:
        """See :class:`ctd.storage.interfaces.IIngest`."""
        self._check()
        if self.offset + len(data) > self.expected.size:
            raise ResourceExhausted(f"bytes of {self.expected.digest}", self.expected.size)
        if data:
            self._batch.append(data)
            self.offset += len(data)
            self._unwritten += len(data)
        self._go_on()
        self._check()
        while self._unwritten > WAITING:
            await self._progress()
            self._check()

    async def commit(self, labels: Mapping[str, str] | None = None) -> BlobInfo:
        """See :class:`ctd.storage.interfaces.IIngest`."""
        self._check_open()
        self._open = False
        return await shielded(self._commit(labels or {}))

    async def close(self) -> None:
        """See :class:`ctd.storage.interfaces.IIngest`."""
        if self._open:
            self._open = False
            await shielded(self._close())

    async def discard(self) -> None:
        """See :class:`ctd.storage.interfaces.IIngest`."""
        if self._open:
            self._open = False
            await shielded(self._discard())

    async def _commit(self, labels: Mapping[str, str]) -> BlobInfo:
        try:
            await self._flush()
            expected, actual = self.expected, self.file.digest()
            if self.file.size != expected.size:
                raise SizeMismatch(str(expected.digest), expected.size, self.file.size)
            if actual != expected.digest:
                raise DigestMismatch(str(expected.digest), str(actual))
            return await self._home.name(self, labels)
        except BaseException:
            await self._home.drop(self, Failure())
            raise

    async def _close(self) -> None:
        try:
            await self._flush()
        except (OSError, ResourceExhausted):
            pass  # the writer has been told, or will see it when it goes on
        finally:
            await self._home.keep(self)

    async def _discard(self) -> None:
        self._batch.clear()
        await self._rest()
        reason = IngestDiscarded(self.ref, str(self.expected.digest))
        await self._home.drop(self, Failure(reason))

    def _check_open(self) -> None:
        if not self._open:
            raise FailedPrecondition("ingest", self.ref, "it was closed")

    def _check(self) -> None:
        self._check_open()
        if self._failure is not None:
            self._failure.raiseException()

    async def _flush(self) -> None:
        self._flushing = True
        self._go_on()
        await self._rest()
        if self._failure is not None:
            self._failure.raiseException()

    async def _rest(self) -> None:
        while self._writing or self._writing_back:
            await self._progress()

    def _progress(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        return waiter

    def _go_on(self) -> None:
        if not self._writing and self._ready():
            self._writing = True
            Deferred.fromCoroutine(self._write_batches())

    def _ready(self) -> bool:
        return (
            bool(self._batch)
            and self._failure is None
            and (self._flushing or self._unwritten >= BATCH)
        )

    async def _write_batches(self) -> None:
        while self._ready():
            batch, self._batch = self._batch, []
            try:
                await self._workers.run(self.file.append, batch)
            except BaseException:  # noqa: BLE001 (told to the next call of the writer)
                self._failure = Failure()
            self._unwritten -= sum(map(len, batch))
            self.arrival.grew(self.file.size)
            if self.file.wants_write_back() and not self._writing_back:
                self._writing_back = True
                Deferred.fromCoroutine(self._write_back())
            self._wake()
        self._writing = False
        self._wake()

    async def _write_back(self) -> None:
        try:
            await self._workers.run(self.file.write_back)
        except OSError:
            pass  # the sync at the end fails too, and is heard
        finally:
            self._writing_back = False
            self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)
