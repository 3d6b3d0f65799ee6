"""Garbage collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ctd.errors import NotFound
from ctd.model import Digest
from ctd.storage.content import ContentStore
from ctd.storage.gc import GarbageCollector, reachable
from ctd.storage.interfaces import SHARED, IGarbageCollector, Resource
from ctd.storage.snapshots.native import NativeSnapshotter
from ctd.storage.snapshots.overlay import OverlaySnapshotter
from tests.conformance.content import described
from tests.unit.storage.stage import Power, PoweredWorkers, StagedDatabase, WallClock

NS = "default"


def content(data: bytes) -> Resource:
    """The blob of *data*."""
    return Resource("content", str(Digest.of(data)))


def layer(name: str) -> Resource:
    """A shared overlay snapshot."""
    return Resource("snapshot/overlayfs", f"/{name}")


class CollectionTests(TestCase):
    """Collections on a real store and real directories."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.roots: list[Resource] = []
        self.now = WallClock()

    async def open(self, power: Power | None = None) -> GarbageCollector:
        self.power = power or Power()
        workers: Any = PoweredWorkers(self.power)
        self.database = StagedDatabase(self.root / "metadata.db", self.power)
        database: Any = self.database

        async def sync() -> None:
            pass

        self.content = ContentStore(database, workers, self.root, self.now)
        self.overlay = OverlaySnapshotter(database, workers, self.root, self.now, sync)
        self.native = NativeSnapshotter(database, workers, self.root, self.now, sync)
        for part in (self.content, self.overlay, self.native):
            await part.recover()
        collector = GarbageCollector(
            database, self.content, {"overlayfs": self.overlay, "native": self.native}
        )
        collector.add_roots(lambda tx: self.roots)
        return collector

    async def put(self, data: bytes, *children: bytes) -> None:
        await self.content.put(described(data), data, [Digest.of(c) for c in children])

    async def layer(self, name: str, parent: str | None = None) -> None:
        await self.overlay.prepare(NS, f"unpack-{name}", parent)
        await self.overlay.commit(NS, name, f"unpack-{name}", target=SHARED)

    async def left(self) -> set[str]:
        names = {i.key for i in await self.overlay.list()}
        return names | {
            (await self.content.read(i.digest)).decode() for i in await self.content.list()
        }

    async def test_interface(self) -> None:
        """The collector is one."""
        verifyObject(IGarbageCollector, await self.open())

    async def test_children(self) -> None:
        """A root keeps what it leads to, over any number of steps; the rest goes."""
        collector = await self.open()
        await self.put(b"index", b"manifest")
        await self.put(b"manifest", b"config", b"layer")
        for data in (b"config", b"layer", b"stale"):
            await self.put(data)
        self.roots = [content(b"index")]
        collected = await collector.collect()
        self.assertEqual(collected.removed, (content(b"stale"),))
        self.assertEqual((collected.kept, collected.size), (4, 5))
        self.assertEqual(await self.left(), {"index", "manifest", "config", "layer"})
        self.roots = []
        self.assertEqual(len((await collector.collect()).removed), 4)
        self.assertEqual([p for p in (self.root / "content").rglob("*") if p.is_file()], [])

    async def test_snapshots(self) -> None:
        """Active and view snapshots keep what they lie on; the rest goes, leaves first."""
        collector = await self.open()
        await self.layer("base")
        await self.layer("middle", "base")
        await self.layer("top", "middle")
        await self.overlay.view(NS, "key", "base")
        collected = await collector.collect()
        self.assertEqual(collected.removed, (layer("top"), layer("middle")))
        self.assertEqual(await self.left(), {"base", "key"})
        self.assertEqual(
            [s for t, s in self.database.topics() if t == "snapshot.removed"], ["top", "middle"]
        )
        await self.overlay.remove(NS, "key")
        await collector.collect()
        self.assertEqual(list((self.root / "snapshots" / "overlayfs").iterdir()), [])

    async def test_snapshot_root(self) -> None:
        """A committed snapshot that is a root stays, with its parents."""
        collector = await self.open()
        await self.layer("base")
        await self.layer("top", "base")
        self.roots = [layer("top")]
        self.assertEqual((await collector.collect()).removed, ())

    async def test_unpacking(self) -> None:
        """What the unpacker works on stays."""
        collector = await self.open()
        await self.overlay.prepare(NS, "unpack-1")
        self.assertEqual((await collector.collect()).removed, ())

    async def test_dry_run(self) -> None:
        """A dry run says what would go, and removes nothing."""
        collector = await self.open()
        await self.put(b"stale")
        await self.layer("base")
        dry = await collector.collect(dry_run=True)
        self.assertEqual(await self.left(), {"stale", "base"})
        self.assertEqual(await collector.collect(), dry)
        self.assertEqual(await self.left(), set())

    async def test_held(self) -> None:
        """What is held stays as often as it is held, and what it leads to."""
        collector = await self.open()
        await self.put(b"manifest", b"layer")
        await self.put(b"layer")
        await self.layer("base")
        held = [content(b"manifest"), layer("base")]
        first, second = collector.hold(held), collector.hold(held)
        first()
        first()
        self.assertEqual((await collector.collect()).removed, ())
        second()
        self.assertEqual(len((await collector.collect()).removed), 3)

    async def test_held_then_found(self) -> None:
        """Who holds, looks, and finds, can use it, at whatever step of a collection he comes."""
        outcomes = []
        for at in range(1, 5):
            self.setUp()
            collector = await self.open()
            await self.put(b"layer")
            found: list[bool] = []

            def come(collector: Any = collector, found: list[bool] = found) -> None:
                collector.hold([content(b"layer")])
                looking = Deferred.fromCoroutine(self.content.info(Digest.of(b"layer")))
                looking.addCallback(lambda _: found.append(True))
                looking.addErrback(lambda f: found.append(not f.check(NotFound)))

            self.power.visit_at, self.power.visit = self.power.steps + at, come
            await collector.collect()
            outcomes += found
            self.assertEqual(await self.left(), {"layer"} if found[0] else set())
        self.assertEqual(outcomes, [True, False, False, False])

    async def test_comes_back(self) -> None:
        """A blob that is stored anew before its old file is unlinked keeps the new one."""
        collector = await self.open()
        await self.put(b"layer")
        unlink = self.content.unlink

        async def slow(digests: Any) -> None:
            await self.put(b"layer")
            await unlink(digests)

        self.content.unlink = slow  # type: ignore[method-assign]
        await collector.collect()
        self.assertEqual(await self.left(), {"layer"})

    async def test_old_ingests(self) -> None:
        """An ingest that nobody came back to for a day is forgotten."""
        collector = await self.open()
        await (await self.content.ingest("a", described(b"data"))).close()
        await collector.collect()
        self.assertEqual(len(await self.content.ingests()), 1)
        self.now.advance(hours=25)
        await collector.collect()
        self.assertEqual(list(await self.content.ingests()), [])

    async def test_cut(self) -> None:
        """A collection that is cut at any step is finished by the next start and collection."""
        for cut_at in range(1, 15):
            for after in (False, True):
                self.setUp()
                collector = await self.open()
                await self.put(b"kept")
                await self.put(b"stale")
                await self.layer("base")
                await self.layer("top", "base")
                self.roots = [content(b"kept")]
                self.power.cut_at, self.power.after = self.power.steps + cut_at, after
                Deferred.fromCoroutine(collector.collect())
                collector = await self.open()
                await collector.collect()
                self.assertEqual(await self.left(), {"kept"})
                self.assertEqual(list((self.root / "snapshots" / "overlayfs").iterdir()), [])
                files = [p for p in (self.root / "content").rglob("*") if p.is_file()]
                self.assertEqual(len(files), 1)


class ReachabilityTests(TestCase):
    """Marking, over any graph."""

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20),
        st.sets(st.integers(0, 7), max_size=3),
        st.sets(st.integers(0, 7), max_size=3),
    )
    def test_closure(self, edges: list[tuple[int, int]], roots: set[int], held: set[int]) -> None:
        """Just what roots and holds lead to stays, circles and missing children or not."""
        graph: dict[int, list[int]] = {}
        for parent, child in edges:
            graph.setdefault(parent, []).append(child)
        reached = roots | held
        while more := {c for p in reached for c in graph.get(p, ())} - reached:
            reached |= more
        self.assertEqual(reachable([*roots, *held], graph), reached)
