"""What can go wrong while a layer is unpacked, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import Unavailable
from ctd.model import Digest, MediaType
from ctd.storage.errors import (
    DiffIDMismatch,
    DigestMismatch,
    LayerMalformed,
    LayerTooLarge,
    WorkerDied,
)
from ctd.storage.interfaces import UnpackProgress
from ctd.storage.unpack.faults import Budget
from tests.unit.storage.unpack.archives import (
    BASE,
    Made,
    Member,
    layer_of,
    pack,
)
from tests.unit.storage.unpack.rig import UnpackTestCase, children, runs


class FailingTests(UnpackTestCase):
    """What is wrong is told, and leaves nothing."""

    budget = Budget(bytes=50 << 20, entries=1000)

    async def fails(self, made: Made, error: type[Exception], parent: str | None = None) -> Any:
        """Unpacking fails so on each snapshotter, and no snapshot is there."""
        await self.store(made)
        for on in self.snapshotters:
            before = self.database.rows("SELECT * FROM snapshots")
            with self.assertRaises(error) as caught:
                await self.begin(made, parent, on)
            self.assertEqual(self.database.rows("SELECT * FROM snapshots"), before)
        return caught.exception

    async def test_diff_id(self) -> None:
        """A tar of another digest than the diff ID is refused."""
        wrong = Digest.of(b"other")
        error = await self.fails(layer_of(BASE, diff_id=wrong), DiffIDMismatch)
        self.assertEqual((error.expected, error.actual), (str(wrong), str(Digest.of(BASE))))

    async def test_what_follows_the_archive(self) -> None:
        """What follows an archive's end belongs to its digest."""
        await self.fails(layer_of(BASE + b"more", diff_id=Digest.of(BASE)), DiffIDMismatch)
        await self.unpack(layer_of(BASE + b"more"))

    async def test_torn(self) -> None:
        """A blob cut off anywhere is malformed."""
        whole = layer_of(BASE).blob
        for end in (0, 10, len(whole) // 2, len(whole) - 1):
            made = layer_of(BASE, blob=whole[:end])
            await self.fails(made, LayerMalformed if end else DiffIDMismatch)

    async def test_media_type(self) -> None:
        """A blob that is not of its media type is malformed."""
        gzipped = layer_of(BASE).blob
        for media_type in (MediaType.OCI_LAYER, MediaType.OCI_LAYER_ZSTD):
            await self.fails(layer_of(BASE, media_type, blob=gzipped), LayerMalformed)
        await self.fails(layer_of(BASE, MediaType.OCI_LAYER_GZIP, blob=BASE), LayerMalformed)

    async def test_hostile(self) -> None:
        """A hostile entry is named, with the reason and the layer."""
        name = "x/../../" + "\u00e9" * 3000
        made = layer_of(pack([Member("a", b"x"), Member(name, b"x")]))
        error = await self.fails(made, LayerMalformed)
        self.assertTrue(error.entry.startswith("x/../../"))
        self.assertIn("leads out", error.reason)
        self.assertEqual(error.layer, str(made.layer.blob.digest))

    async def test_too_large(self) -> None:
        """A layer over a budget is too large, however small its blob."""
        error = await self.fails(layer_of(pack([Member("a", bytes(60 << 20))])), LayerTooLarge)
        self.assertEqual((error.budget, error.limit), ("bytes", 50 << 20))
        many = layer_of(pack([Member(f"f{n}") for n in range(1001)]))
        self.assertEqual((await self.fails(many, LayerTooLarge)).budget, "entries")

    async def test_wrong_blob(self) -> None:
        """Where the blob itself is wrong that is told, not what its bytes led to."""
        made = layer_of(BASE)
        damaged = made.blob[:100] + bytes([made.blob[100] ^ 1]) + made.blob[101:]
        for on in self.snapshotters:
            work = self.begin(made, None, on)
            ingest = await self.content.ingest("ref", made.layer.blob)
            await ingest.write(damaged)
            with self.assertRaises(DigestMismatch):
                await ingest.commit()
            with self.assertRaises(DigestMismatch):
                await work

    async def test_parent_fails(self) -> None:
        """What the parent failed with is told."""
        made = layer_of(BASE)
        await self.store(made)
        for on in self.snapshotters:
            with self.assertRaises(ZeroDivisionError):
                await self.begin(made, fail(ZeroDivisionError()), on)

    async def test_after_the_end(self) -> None:
        """When the pool has stopped, unpacking is refused."""
        made = layer_of(BASE)
        await self.store(made)
        await self.pool.stop()
        with self.assertRaises(Unavailable):
            await self.begin(made)


class KillingTests(UnpackTestCase):
    """Workers and jobs that are killed."""

    async def setUp(self) -> None:
        await super().setUp()
        data = os.urandom(1 << 20)
        self.made = layer_of(pack([Member(f"f{n}", data) for n in range(8)]))

    async def half(self) -> tuple[Any, Deferred[str]]:
        """Unpacking that waits for the second half of its blob."""
        ingest = await self.content.ingest("ref", self.made.layer.blob)
        told: list[UnpackProgress] = []
        work = self.begin(self.made, progress=told.append)
        await ingest.write(self.made.blob[: 4 << 20])
        await self.until(lambda: told and told[-1].read == 4 << 20)
        return ingest, work

    async def finish(self, ingest: Any, work: Deferred[str]) -> None:
        await ingest.write(self.made.blob[4 << 20 :])
        await ingest.commit()
        self.assertEqual(await work, self.made.layer.chain_id)
        self.assertEqual(len(await self.look(await work, "overlayfs")), 9)

    async def test_job(self) -> None:
        """A layer whose process is killed is begun again from the file."""
        ingest, work = await self.half()
        [job] = self.jobs()
        os.kill(job, signal.SIGKILL)
        await self.until(lambda: self.jobs() and self.jobs() != {job})
        await self.finish(ingest, work)

    async def test_worker(self) -> None:
        """When the worker is killed its jobs die with it, and another one begins them again."""
        ingest, work = await self.half()
        [job] = self.jobs()
        [worker] = (children(os.getpid()) - self.processes) - {job}
        os.kill(worker, signal.SIGKILL)
        await self.until(lambda: self.jobs() and self.jobs() != {job})
        self.assertFalse(runs(job))
        await self.finish(ingest, work)

    async def test_again_and_again(self) -> None:
        """A layer whose process is killed each time fails, and leaves nothing."""
        ingest, work = await self.half()
        seen: set[int] = set()
        while not work.called:
            for job in self.jobs() - seen:
                seen.add(job)
                os.kill(job, signal.SIGKILL)
            await self.pause(0.005)
        with self.assertRaises(WorkerDied):
            await work
        self.assertEqual(len(seen), 2)
        self.assertEqual(self.database.rows("SELECT * FROM snapshots"), [])
        await ingest.discard()

    async def test_while_it_waits_for_its_parent(self) -> None:
        """A layer killed when all was done but the parent is begun again as well."""
        await self.store(self.made)
        parent: Deferred[Any] = Deferred()
        told: list[UnpackProgress] = []
        work = self.begin(self.made, parent, progress=told.append)
        await self.until(lambda: told)
        await self.pause(0.3)
        [job] = self.jobs()
        os.kill(job, signal.SIGKILL)
        await self.until(lambda: self.jobs() and self.jobs() != {job})
        parent.callback(None)
        self.assertEqual(await work, self.made.layer.chain_id)

    async def test_stopping(self) -> None:
        """Stopping the pool ends what it is at."""
        ingest, work = await self.half()
        await self.pool.stop()
        with self.assertRaises((WorkerDied, Unavailable)):
            await work
        await ingest.discard()


class OrphanTests(SynchronousTestCase):
    """A worker whose daemon is killed."""

    def test_all_end(self) -> None:
        """When the daemon's end of the pipe closes, worker and jobs end, whatever they are at."""
        root = Path(self.mktemp()).absolute()
        root.mkdir()
        worker = subprocess.Popen(
            [sys.executable, "-I", "-m", "ctd.storage.unpack.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(worker.wait)
        assert worker.stdin is not None
        assert worker.stdout is not None
        begin = {
            "mounts": [{"type": "bind", "source": str(root), "options": []}],
            "base": str(root),
            "below": "nothing",
            "compression": "gzip",
            "algorithm": "sha256",
            "daemon": os.getpid(),
            "budget": {},
        }
        worker.stdin.write(json.dumps({"job": 1, "begin": begin}).encode() + b"\n")
        worker.stdin.flush()
        self.assertEqual(json.loads(worker.stdout.readline()), {"job": 1, "want": 0})
        [job] = children(worker.pid)
        self.assertTrue(runs(job))
        worker.stdin.close()
        self.assertEqual(worker.stdout.read(), b"")  # nobody holds it any more
        worker.stdout.close()
        self.assertEqual(worker.wait(), 0)
        self.assertFalse(runs(job))
