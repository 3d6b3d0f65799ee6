"""The content store, on real directories and a database without its thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase

from ctd.database import Database
from ctd.errors import AlreadyExists, DataLoss, NotFound, ResourceExhausted
from ctd.model import Descriptor, Digest
from ctd.storage.content import ContentStore
from ctd.storage.disk import boot_id
from ctd.storage.errors import DigestMismatch, IngestBusy
from ctd.storage.ingest import BATCH, WAITING
from ctd.storage.schema import SCHEMA
from ctd.threads import Workers
from tests.conformance.content import DATA, ContentStoreSuite, described
from tests.unit.storage.stage import HeldWorkers, Power, PoweredWorkers, StagedDatabase, WallClock


class StagedTestCase(TestCase):
    """A store in a directory of its own, which can be left and opened again."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.now = WallClock()

    def open(self, power: Power | None = None, workers: Any = None) -> ContentStore:
        power = power or Power()
        self.database = StagedDatabase(self.root / "metadata.db", power)
        return ContentStore(
            self.database,  # type: ignore[arg-type]
            workers or PoweredWorkers(power),
            self.root,
            self.now,
        )

    def files(self) -> list[str]:
        """Every file and leaf directory below the content root."""
        content = self.root / "content"
        return sorted(
            str(p.relative_to(content))
            for p in content.rglob("*")
            if p.is_file() or (p.parent.name == "ingest")
        )

    def blob(self, data: bytes) -> Path:
        digest = Digest.of(data)
        return self.root / "content" / "blobs" / digest.algorithm / digest.hex


class StagedContentTests(ContentStoreSuite, StagedTestCase):
    """The suite, step by step in one thread."""

    async def make_store(self) -> ContentStore:
        store = self.open()
        await store.recover()
        return store

    def tearDown(self) -> None:
        """No test leaves a file that has no record, or the other way round."""
        known = {
            Path("blobs", *r["digest"].split(":"))
            for r in self.database.rows("SELECT digest FROM blobs")
        }
        known |= {
            Path("ingest", r["id"], "data") for r in self.database.rows("SELECT id FROM ingests")
        }
        self.assertEqual({f for f in map(Path, self.files()) if f.parent.name != "ingest"}, known)


class ThreadedContentTests(ContentStoreSuite, TestCase):
    """The suite, with the real database and real threads."""

    async def make_store(self) -> ContentStore:
        root = Path(self.mktemp())
        root.mkdir()
        database = Database(reactor, root / "metadata.db", [SCHEMA])
        workers = Workers(reactor, "test", 2)
        await database.open()
        workers.start()
        self.addCleanup(workers.stop)
        self.addCleanup(lambda: Deferred.fromCoroutine(database.close()))
        store = ContentStore(database, workers, root, WallClock())
        await store.recover()
        return store


class EventTests(StagedTestCase):
    """What is told of content."""

    async def test_events(self) -> None:
        """Each blob is created once and deleted once, in the shared namespace."""
        store = self.open()
        await store.recover()
        await store.put(described(DATA), DATA)
        await store.put(described(DATA), DATA)
        await store.delete(Digest.of(DATA))
        digest = str(Digest.of(DATA))
        self.assertEqual(
            [(e.namespace, e.topic, e.subject, e.data) for e in self.database.events],
            [
                ("", "content.created", digest, {"size": len(DATA)}),
                ("", "content.deleted", digest, {}),
            ],
        )


class BackpressureTests(StagedTestCase):
    """Writing, with a disk that is slow."""

    async def ingest(self, size: int) -> Any:
        self.workers = HeldWorkers()
        store = self.open(workers=self.workers)
        opening = Deferred.fromCoroutine(store.recover())
        self.workers.work_all()
        await opening
        self.store = store
        opening = Deferred.fromCoroutine(
            store.ingest("a", Descriptor("", Digest.of(b"\0" * size), size))
        )
        self.workers.work_all()
        return await opening

    async def test_gathers(self) -> None:
        """Small writes are handed to a thread together, about a MiB at a time."""
        ingest = await self.ingest(8 << 20)
        for _ in range(BATCH // 4096 - 1):
            await ingest.write(b"\0" * 4096)
        self.assertEqual(self.workers.waiting, [])
        await ingest.write(b"\0" * 4096)
        self.assertEqual(len(self.workers.waiting), 1)
        for _ in range(2 * BATCH // 4096):
            await ingest.write(b"\0" * 4096)
        self.assertEqual(len(self.workers.waiting), 1)
        self.workers.work()
        self.assertEqual(len(self.workers.waiting), 1)

    async def test_waits(self) -> None:
        """A writer waits while more than four MiB have not reached the file."""
        ingest = await self.ingest(16 << 20)
        writes = [
            Deferred.fromCoroutine(ingest.write(b"\0" * BATCH)) for _ in range(WAITING // BATCH)
        ]
        self.assertTrue(all(w.called for w in writes))
        late = Deferred.fromCoroutine(ingest.write(b"\0" * BATCH))
        self.assertNoResult(late)
        self.workers.work()
        self.assertTrue(late.called)

    async def test_cancelled_write(self) -> None:
        """A write that is cancelled while it waits was taken; the ingest goes on."""
        size = 6 * BATCH
        ingest = await self.ingest(size)
        await ingest.write(b"\0" * WAITING)
        late = Deferred.fromCoroutine(ingest.write(b"\0" * BATCH))
        late.cancel()
        with self.assertRaises(CancelledError):
            await late
        self.assertEqual(ingest.offset, WAITING + BATCH)
        last = Deferred.fromCoroutine(ingest.write(b"\0" * BATCH))
        self.workers.work_all()
        await last
        committing = Deferred.fromCoroutine(ingest.commit())
        self.workers.work_all()
        self.assertEqual((await committing).size, size)

    async def test_cancelled_commit(self) -> None:
        """A commit that is cancelled is finished before the canceller hears of it."""
        ingest = await self.ingest(BATCH)
        writing = Deferred.fromCoroutine(ingest.write(b"\0" * BATCH))
        committing = Deferred.fromCoroutine(ingest.commit())
        committing.cancel()
        self.assertNoResult(committing)
        self.workers.work_all()
        await writing
        with self.assertRaises(CancelledError):
            await committing
        self.assertEqual((await self.store.info(Digest.of(b"\0" * BATCH))).size, BATCH)

    async def test_cancelled_opening(self) -> None:
        """An ingest whose opening is cancelled is closed again and can be opened anew."""
        ingest = await self.ingest(BATCH)
        closing = Deferred.fromCoroutine(ingest.close())
        self.workers.work_all()
        await closing
        expected = ingest.expected
        opening = Deferred.fromCoroutine(self.store.ingest("a", expected))
        opening.cancel()
        with self.assertRaises(IngestBusy):
            await self.store.ingest("a", expected)
        fds = len(os.listdir("/proc/self/fd"))
        self.workers.work_all()
        with self.assertRaises(CancelledError):
            await opening
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), fds)
        opening = Deferred.fromCoroutine(self.store.ingest("a", expected))
        self.workers.work_all()
        await opening

    async def test_discard_while_writing(self) -> None:
        """A discard waits for the thread that writes, then nothing is left."""
        ingest = await self.ingest(2 * BATCH)
        await ingest.write(b"\0" * BATCH)
        discarding = Deferred.fromCoroutine(ingest.discard())
        self.assertNoResult(discarding)
        self.workers.work_all()
        await discarding
        self.assertEqual(self.files(), [])
        self.assertEqual(self.database.rows("SELECT * FROM ingests"), [])


class FullDiskTests(StagedTestCase):
    """A disk without space."""

    async def test_write(self) -> None:
        """A full disk is told as such; what fitted is kept and gone on with."""
        store = self.open()
        await store.recover()
        data = DATA * 20
        ingest = await store.ingest("a", described(data))
        room = [1_500_000]

        def write(fd: int, data: Any) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "full")
            size = min(len(data), room[0])
            room[0] -= size
            return real(fd, data[:size])

        real = os.write
        with patch("ctd.storage.ingest.os.write", write), self.assertRaises(ResourceExhausted):
            for at in range(0, len(data), 100_000):
                await ingest.write(data[at : at + 100_000])
        await ingest.close()
        ingest = await store.ingest("a", described(data))
        self.assertEqual(ingest.offset, 1_500_000)
        await ingest.write(data[ingest.offset :])
        await ingest.commit()
        self.assertEqual(self.blob(data).read_bytes(), data)

    async def test_commit(self) -> None:
        """A disk that is full at the last sync leaves nothing."""
        store = self.open()
        await store.recover()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA)
        full = OSError(errno.ENOSPC, "full")
        with (
            patch("ctd.storage.ingest.os.fdatasync", side_effect=full),
            self.assertRaises(ResourceExhausted),
        ):
            await ingest.commit()
        self.assertEqual(self.files(), [])
        self.assertEqual(self.database.rows("SELECT * FROM ingests"), [])


class RecoveryTests(StagedTestCase):
    """What a new store makes of what an old one left."""

    async def reopened(self) -> ContentStore:
        store = self.open()
        await store.recover()
        return store

    async def test_orphan(self) -> None:
        """A whole blob without a record is adopted, with an event."""
        store = await self.reopened()
        await store.put(described(DATA), DATA)
        self.database._transact(lambda tx: tx.execute("DELETE FROM blobs"))
        store = await self.reopened()
        self.assertEqual(await store.read(Digest.of(DATA)), DATA)
        self.assertEqual(self.database.topics(), [("content.created", str(Digest.of(DATA)))])

    async def test_lost_file(self) -> None:
        """A record without a file is dropped, with an event."""
        store = await self.reopened()
        await store.put(described(DATA), DATA)
        self.blob(DATA).unlink()
        with self.assertRaises(NotFound):
            await store.read(Digest.of(DATA))
        store = await self.reopened()
        self.assertEqual(list(await store.list()), [])
        self.assertEqual(self.database.topics(), [("content.deleted", str(Digest.of(DATA)))])

    async def test_damaged_file(self) -> None:
        """A file of the wrong size is put aside and its record dropped; the blob may come again."""
        store = await self.reopened()
        await store.put(described(DATA), DATA)
        self.blob(DATA).write_bytes(b"short")
        with self.assertRaises(DataLoss):
            await store.read(Digest.of(DATA))
        store = await self.reopened()
        self.assertEqual(list(await store.list()), [])
        self.assertEqual(self.files(), [f"quarantine/sha256-{Digest.of(DATA).hex}"])
        await store.put(described(DATA), DATA)
        self.assertEqual(await store.read(Digest.of(DATA)), DATA)

    async def test_strays(self) -> None:
        """What cannot be a blob is put aside: other names, directories, links."""
        await self.reopened()
        blobs = self.root / "content" / "blobs" / "sha256"
        (blobs / "README").write_text("hello")
        (blobs / ("a" * 64)).symlink_to("/etc/passwd")
        (blobs / ("b" * 64)).mkdir()
        await self.reopened()
        self.assertEqual(list(blobs.iterdir()), [])
        self.assertTrue(Path("/etc/passwd").exists())

    async def test_unknown_ingest(self) -> None:
        """A directory of an ingest that is not recorded is removed."""
        await self.reopened()
        directory = self.root / "content" / "ingest" / "cafe"
        directory.mkdir()
        (directory / "data").write_bytes(b"x")
        await self.reopened()
        self.assertEqual(self.files(), [])

    async def test_kept_ingest(self) -> None:
        """An ingest of this boot is resumed by the next daemon."""
        store = await self.reopened()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:5000])
        await ingest.close()
        store = await self.reopened()
        self.assertEqual((await store.ingest("a", described(DATA))).offset, 5000)

    async def test_ingest_of_another_boot(self) -> None:
        """An ingest from before the machine was started again is dropped: it may have holes."""
        store = await self.reopened()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:5000])
        await ingest.close()
        self.assertEqual(self.database.rows("SELECT boot FROM ingests"), [{"boot": boot_id()}])
        self.database._transact(lambda tx: tx.execute("UPDATE ingests SET boot = 'another'"))
        store = await self.reopened()
        self.assertEqual(list(await store.ingests()), [])
        self.assertEqual(self.files(), [])

    async def test_expire(self) -> None:
        """An ingest nobody comes back to is aborted after its time, not while it is written."""
        store = await self.reopened()
        open_one = await store.ingest("open", described(b"open"))
        left = await store.ingest("left", described(DATA))
        await left.close()
        self.now.advance(hours=25)
        young = await store.ingest("young", described(b"young"))
        await young.close()
        await store.expire(self.now() - self.now().replace(hour=2))
        self.assertEqual([i.ref for i in await store.ingests()], ["open", "young"])
        await open_one.discard()


class CutTests(StagedTestCase):
    """Every operation cut at each of its steps, before it and after it."""

    async def scenario(self, store: ContentStore) -> None:
        """Put, ingest with resuming, a wrong blob, and deletions; fails if any of it does."""
        await store.recover()
        await store.put(described(b"manifest"), b"manifest", [Digest.of(DATA)])
        try:
            ingest = await store.ingest("a", described(DATA))
            await ingest.write(DATA[ingest.offset : 5000])
            await ingest.close()
            ingest = await store.ingest("a", described(DATA))
            await ingest.write(DATA[ingest.offset :])
            await ingest.commit()
        except AlreadyExists:
            pass
        wrong = await store.ingest("b", described(b"right"))
        await wrong.write(b"wrong"[wrong.offset :])
        try:
            await wrong.commit()
        except DigestMismatch:
            pass
        other = await store.ingest("c", described(b"gone"))
        await other.close()
        await store.abort("c")
        await store.delete(Digest.of(b"manifest"))

    async def check(self, store: ContentStore) -> None:
        """Everything with a name is whole, everything on disk has a record, all can go on."""
        await store.recover()
        listed = await store.list()
        for info in listed:
            data = await store.read(info.digest)
            self.assertEqual((Digest.of(data), len(data)), (info.digest, info.size))
        ids = {row["id"] for row in self.database.rows("SELECT id FROM ingests")}
        expected = {f"blobs/{i.digest.algorithm}/{i.digest.hex}" for i in listed}
        expected |= {f"ingest/{i}" for i in ids} | {f"ingest/{i}/data" for i in ids}
        self.assertEqual(set(self.files()), expected)

    async def steps(self) -> int:
        power = Power()
        await self.scenario(self.open(power))
        return power.steps

    async def test_cut(self) -> None:
        """A daemon killed at any step leaves what the next one puts right, and all works again."""
        for cut_at in range(1, await self.steps() + 1):
            for after in (False, True):
                self.setUp()
                Deferred.fromCoroutine(self.scenario(self.open(Power(cut_at, after=after))))
                await self.check(self.open())
                await self.scenario(self.open())

    async def test_cut_recovery(self) -> None:
        """A daemon killed while it recovers is no worse."""
        for cut_at in range(8, await self.steps(), 3):
            for second in range(1, 6):
                self.setUp()
                Deferred.fromCoroutine(self.scenario(self.open(Power(cut_at))))
                Deferred.fromCoroutine(self.open(Power(second, after=True)).recover())
                await self.check(self.open())

    async def test_fail(self) -> None:
        """A step that fails fails its operation; nothing untrue stays, and all works again."""
        for cut_at in range(8, await self.steps() + 1):
            for after in (False, True):
                self.setUp()
                power = Power(cut_at, after=after, fails=OSError(errno.EIO, "broken"))
                store = self.open(power)
                running = Deferred.fromCoroutine(self.scenario(store))
                self.assertTrue(running.called, f"step {cut_at} hangs")
                running.addErrback(lambda f: f.trap(OSError))
                self.flushLoggedErrors(OSError)
                await self.check(self.open())
                await self.scenario(self.open())
