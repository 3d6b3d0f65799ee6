"""The snapshotters, on real directories and real mounts."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ctd.database import Database
from ctd.errors import CtdError, FailedPrecondition, NotFound
from ctd.storage.interfaces import SHARED
from ctd.storage.schema import SCHEMA
from ctd.storage.snapshots.native import NativeSnapshotter
from ctd.storage.snapshots.overlay import MAX_LAYERS, OverlaySnapshotter, escaped
from ctd.storage.sync import Syncer
from ctd.threads import Workers
from tests.conformance.mounted import inside
from tests.conformance.snapshotter import NS, SnapshotterSuite, tree, write
from tests.unit.storage.stage import HeldWorkers, Power, PoweredWorkers, StagedDatabase, WallClock


class StagedSnapshots(TestCase):
    """A snapshotter in a directory of its own, which can be left and opened again."""

    kind: Any = OverlaySnapshotter

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.synced = 0

    async def sync(self) -> None:
        await self.power.step(lambda: None)
        self.synced += 1

    def open(self, power: Power | None = None, workers: Any = None) -> Any:
        self.power = power or Power()
        self.database = StagedDatabase(self.root / "metadata.db", self.power)
        return self.kind(
            self.database, workers or PoweredWorkers(self.power), self.root, WallClock(), self.sync
        )

    async def make_snapshotter(self) -> Any:
        it = self.open()
        await it.recover()
        return it

    def assert_consistent(self) -> None:
        """Directories and rows are the same."""
        rows = self.database.rows("SELECT id, state FROM snapshots")
        self.assertEqual({r["state"] for r in rows} - {"ready"}, set())
        self.assertEqual(
            {p.name for p in (self.root / "snapshots" / self.kind.name).iterdir()},
            {str(r["id"]) for r in rows},
        )


class OverlayTests(SnapshotterSuite, StagedSnapshots):
    """The suite on overlayfs."""

    def tearDown(self) -> None:
        self.assert_consistent()


class NativeTests(SnapshotterSuite, StagedSnapshots):
    """The suite on copied directories."""

    kind = NativeSnapshotter

    def tearDown(self) -> None:
        self.assert_consistent()


class ThreadedOverlayTests(SnapshotterSuite, TestCase):
    """The suite on overlayfs, with the real database, threads and syncs."""

    async def make_snapshotter(self) -> Any:
        root = Path(self.mktemp())
        root.mkdir()
        database = Database(reactor, root / "metadata.db", [SCHEMA])
        workers = Workers(reactor, "test", 4)
        syncer = Syncer(workers, root)
        await database.open()
        workers.start()
        self.addCleanup(workers.stop)
        self.addCleanup(lambda: Deferred.fromCoroutine(database.close()))
        self.addCleanup(syncer.close)
        it = OverlaySnapshotter(database, workers, root.absolute(), WallClock(), syncer.sync)
        await it.recover()
        return it


class OverlayMountTests(StagedSnapshots):
    """What only overlayfs has."""

    async def test_options(self) -> None:
        """Base last, upper and work directory of its own, the index off."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "one")
        await it.commit(NS, "base", "one")
        await it.prepare(NS, "two", "base")
        await it.commit(NS, "top", "two")
        [mount] = await it.prepare(NS, "three", "top")
        at = self.root / "snapshots" / "overlayfs"
        self.assertEqual(
            mount.options,
            (
                "index=off",
                f"lowerdir={at}/2/fs:{at}/1/fs",
                f"upperdir={at}/3/fs",
                f"workdir={at}/3/work",
            ),
        )

    async def test_odd_root(self) -> None:
        r"""A root with ``:``, ``,`` and ``\`` in its name can be mounted from."""
        self.root = self.root / "a:b,c\\d"
        self.root.mkdir()
        it = await self.make_snapshotter()
        inside(await it.prepare(NS, "one"), write(a="1"))
        await it.commit(NS, "base", "one")
        mounts = await it.prepare(NS, "two", "base")
        inside(mounts, write(b="2"))
        self.assertEqual(inside(mounts, tree), {"a": "1", "b": "2"})

    async def test_too_many_layers(self) -> None:
        """More layers than the kernel takes are refused, before anything is made."""
        it = await self.make_snapshotter()
        parent = None
        for number in range(MAX_LAYERS + 1):
            await it.prepare(NS, "making", parent)
            await it.commit(NS, f"layer{number}", "making")
            parent = f"layer{number}"
        with self.assertRaises(FailedPrecondition):
            await it.prepare(NS, "key", parent)
        await it.prepare(NS, "key")
        with self.assertRaises(FailedPrecondition):
            await it.commit(NS, "name", "key", parent)
        self.assert_consistent()


class EscapingTests(SynchronousTestCase):
    """Paths in options."""

    @given(st.lists(st.text(alphabet="ab:,\\/ ", min_size=1), min_size=1))
    def test_split(self, paths: list[str]) -> None:
        """Escaped paths joined with colons can be told apart again, and hold no bare comma."""
        found, current, quoted = [], "", False
        for c in ":".join(map(escaped, paths)):
            if quoted:
                current, quoted = current + c, False
            elif c == "\\":
                quoted = True
            elif c == ":":
                found, current = [*found, current], ""
            else:
                self.assertNotEqual(c, ",")
                current += c
        self.assertEqual([*found, current], paths)


class EventTests(StagedSnapshots):
    """What is told of snapshots."""

    async def test_events(self) -> None:
        """Prepared, committed, removed: each in the namespace it happens in."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "key")
        await it.commit(NS, "name", "key", target=SHARED)
        await it.remove(SHARED, "name")
        self.assertEqual(
            [(e.namespace, e.topic, e.subject) for e in self.database.events],
            [
                (NS, "snapshot.prepared", "key"),
                (SHARED, "snapshot.committed", "name"),
                (SHARED, "snapshot.removed", "name"),
            ],
        )
        self.assertEqual({e.data["snapshotter"] for e in self.database.events}, {"overlayfs"})

    async def test_unpacker(self) -> None:
        """The unpacker's own snapshots are nobody's news; the layers they become are."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "unpack-1")
        await it.remove(NS, "unpack-1")
        await it.prepare(NS, "unpack-2")
        await it.commit(NS, "chain", "unpack-2")
        self.assertEqual(self.database.topics(), [("snapshot.committed", "chain")])


class SyncTests(StagedSnapshots):
    """What is on disk when."""

    async def test_commit_syncs(self) -> None:
        """A commit syncs; one that cannot succeed does not even try."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "key")
        with self.assertRaises(NotFound):
            await it.commit(NS, "name", "nothing")
        self.assertEqual(self.synced, 0)
        await it.commit(NS, "name", "key")
        self.assertEqual(self.synced, 1)

    async def test_copies_are_synced(self) -> None:
        """A copied snapshot is on disk before it is seen: half a copy would look whole."""
        self.kind = NativeSnapshotter
        it = await self.make_snapshotter()
        await it.prepare(NS, "key")
        await it.commit(NS, "base", "key")
        await it.prepare(NS, "top", "base")
        self.assertEqual(self.synced, 2)

    async def test_failed_sync(self) -> None:
        """A commit whose files are not on disk is none."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "key")
        self.power.cut_at, self.power.fails = self.power.steps + 2, OSError(errno.EIO, "broken")
        with self.assertRaises(OSError):
            await it.commit(NS, "name", "key")
        self.assertEqual([s.key for s in await it.list()], ["key"])


class CancellationTests(StagedSnapshots):
    """Operations whose caller goes away."""

    async def test_prepare(self) -> None:
        """A cancelled prepare is taken back before the canceller hears of it."""
        workers = HeldWorkers()
        it = self.open(workers=workers)
        recovering = Deferred.fromCoroutine(it.recover())
        workers.work_all()
        await recovering
        preparing = Deferred.fromCoroutine(it.prepare(NS, "key"))
        preparing.cancel()
        self.assertNoResult(preparing)
        workers.work_all()
        with self.assertRaises(CancelledError):
            await preparing
        self.assertEqual(list(await it.list()), [])
        self.assert_consistent()

    async def test_remove(self) -> None:
        """A cancelled removal goes to its end."""
        workers = HeldWorkers()
        it = self.open(workers=workers)
        for coroutine in (it.recover(), it.prepare(NS, "key")):
            running = Deferred.fromCoroutine(coroutine)
            workers.work_all()
            await running
        removing = Deferred.fromCoroutine(it.remove(NS, "key"))
        removing.cancel()
        workers.work_all()
        with self.assertRaises(CancelledError):
            await removing
        self.assert_consistent()


class LossTests(StagedSnapshots):
    """Directories that somebody took away."""

    async def lose(self, id: int) -> Any:
        at = self.root / "snapshots" / self.kind.name / str(id)
        at.rename(self.root / f"taken-{id}")
        return await self.make_snapshotter()

    async def three(self) -> None:
        it = await self.make_snapshotter()
        inside(await it.prepare(NS, "one"), write(a="1"))
        await it.commit(NS, "base", "one")
        inside(await it.prepare(NS, "two", "base"), write(b="2"))
        await it.commit(NS, "top", "two")
        await it.prepare(NS, "key", "top")
        await it.view(NS, "view", "base")

    async def test_layer(self) -> None:
        """A layer without files goes, with the layers on it; what lies on those says so."""
        await self.three()
        it = await self.lose(1)
        self.assertEqual([s.key for s in await it.list()], ["key", "view"])
        for key in ("key", "view"):
            with self.assertRaises(FailedPrecondition):
                await it.mounts(NS, key)
        await it.prepare(NS, "again")
        await it.commit(NS, "base", "again")
        await it.remove(NS, "key")
        await it.remove(NS, "view")
        await self.make_snapshotter()
        self.assert_consistent()
        self.assertEqual([s.key for s in await it.list()], ["base"])

    async def test_active(self) -> None:
        """An active overlay snapshot without its directory gets an empty one."""
        await self.three()
        it = await self.lose(3)
        self.assertEqual(inside(await it.mounts(NS, "key"), tree), {"a": "1", "b": "2"})

    async def test_native(self) -> None:
        """A copy does not need what it was copied from."""
        self.kind = NativeSnapshotter
        await self.three()
        it = await self.lose(1)
        self.assertEqual([s.key for s in await it.list()], ["key", "top", "view"])
        self.assertEqual(inside(await it.mounts(NS, "key"), tree), {"a": "1", "b": "2"})
        with self.assertRaises(FailedPrecondition):
            await it.mounts(NS, "view")


class CutTests(StagedSnapshots):
    """Every operation cut at each of its steps, before it and after it."""

    async def scenario(self, it: Any) -> None:
        await it.recover()
        await it.prepare(NS, "one")
        await it.commit(NS, "base", "one")
        await it.prepare(NS, "two", "base")
        await it.commit(NS, "top", "two", target=SHARED)
        await it.view(NS, "view", "top")
        await it.prepare(NS, "unpack-1", "base")
        await it.usage(NS, "base")
        for namespace, key in [
            (NS, "view"), (NS, "unpack-1"), (SHARED, "top"), (NS, "base"),
        ]:  # fmt: skip
            await it.remove(namespace, key)

    async def clean(self) -> None:
        """All that is listed can be used, nothing else is there, and all works again."""
        it = await self.make_snapshotter()
        self.assert_consistent()
        for info in await it.list():
            self.assertFalse(info.key.startswith("unpack-"), info)
            if info.kind.value != "committed":
                self.assertEqual(inside(await it.mounts(info.namespace, info.key), tree), {})
        left = list(await it.list())
        while left:
            for info in left:
                try:
                    await it.remove(info.namespace, info.key)
                except FailedPrecondition:
                    continue
            left = list(await it.list())
        self.assert_consistent()
        await self.scenario(await self.make_snapshotter())
        self.assert_consistent()

    async def steps(self) -> int:
        it = self.open()
        await self.scenario(it)
        return self.power.steps

    async def test_cut(self) -> None:
        """A daemon killed at any step leaves what the next one puts right."""
        for kind in (OverlaySnapshotter, NativeSnapshotter):
            self.kind = kind
            self.setUp()
            for cut_at in range(1, await self.steps() + 1):
                for after in (False, True):
                    self.setUp()
                    Deferred.fromCoroutine(self.scenario(self.open(Power(cut_at, after=after))))
                    await self.clean()

    async def test_fail(self) -> None:
        """A step that fails fails its operation; nothing half made is seen or stays."""
        for kind in (OverlaySnapshotter, NativeSnapshotter):
            self.kind = kind
            self.setUp()
            for cut_at in range(3, await self.steps() + 1):
                for after in (False, True):
                    self.setUp()
                    power = Power(cut_at, after=after, fails=OSError(errno.EIO, "broken"))
                    running = Deferred.fromCoroutine(self.scenario(self.open(power)))
                    running.addErrback(lambda f: f.trap(OSError, CtdError))
                    self.successResultOf(running)
                    self.flushLoggedErrors(OSError)
                    await self.clean()

    async def test_orphans(self) -> None:
        """Directories that no record knows are removed; other names are left alone."""
        it = await self.make_snapshotter()
        at = self.root / "snapshots" / "overlayfs"
        (at / "77" / "fs").mkdir(parents=True)
        (at / "lost+found").mkdir()
        await it.recover()
        self.assertEqual([p.name for p in at.iterdir()], ["lost+found"])

    async def test_what_cannot_be_removed(self) -> None:
        """A directory that cannot be removed does not keep the daemon from starting."""
        it = await self.make_snapshotter()
        stuck = self.root / "snapshots" / "overlayfs" / "77" / "fs"
        stuck.mkdir(parents=True)
        removing = "ctd.storage.snapshots.directories.remove_tree"
        with patch(removing, side_effect=OSError(errno.EPERM, "immutable")):
            await it.recover()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        await it.recover()
        self.assertFalse(stuck.exists())
