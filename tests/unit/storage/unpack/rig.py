"""A real unpacker on a real disk: content store, snapshotters, worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ctd.storage.content import ContentStore
from ctd.storage.interfaces import SHARED
from ctd.storage.snapshots.native import NativeSnapshotter
from ctd.storage.snapshots.overlay import OverlaySnapshotter
from ctd.storage.unpack.faults import Budget
from ctd.storage.unpack.pool import WorkerPool
from ctd.storage.unpack.unpacker import Unpacker
from tests.conformance.mounted import inside
from tests.unit.storage.stage import Power, PoweredWorkers, StagedDatabase, WallClock
from tests.unit.storage.unpack.archives import Made
from tests.unit.storage.unpack.listing import listing


def children(pid: int) -> set[int]:
    """All processes below *pid*."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                found |= {int(child)} | children(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
    return found


def runs(pid: int) -> bool:
    """Whether a process runs: it is there, and is not dead and still to be reaped by init."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    return "State:\tZ" not in status


def open_files() -> set[str]:
    """This process's descriptors, and what they are of."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:  # what listed them
            pass
    return found


class UnpackTestCase(TestCase):
    """With everything there; what is left over at the end is an error."""

    budget = Budget()

    async def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.processes = children(os.getpid())
        self.mounts = Path("/proc/self/mounts").read_text()
        power = Power()
        self.database: Any = StagedDatabase(power=power)
        workers = PoweredWorkers(power)
        self.content = ContentStore(self.database, workers, self.root, WallClock())
        await self.content.recover()

        async def sync() -> None:
            pass

        self.snapshotters: dict[str, Any] = {}
        for kind in (OverlaySnapshotter, NativeSnapshotter):
            it = kind(self.database, workers, self.root, WallClock(), sync)
            await it.recover()
            self.snapshotters[it.name] = it
        await deferLater(reactor, 0, lambda: None)  # type: ignore[arg-type]
        self.fds = open_files()
        self.pool = WorkerPool(reactor, 2)  # type: ignore[arg-type]
        self.pool.start()
        self.unpacker = Unpacker(self.snapshotters, self.pool, self.budget)

    async def tearDown(self) -> None:
        """No process, descriptor, mount or snapshot of the unpacker's is left."""
        await self.pool.stop()
        self.assertEqual(children(os.getpid()) - self.processes, set())
        self.assertEqual(open_files() - self.fds, set())
        self.assertEqual(Path("/proc/self/mounts").read_text(), self.mounts)
        rows = self.database.rows("SELECT id, key, kind, state, snapshotter FROM snapshots")
        self.assertEqual([r for r in rows if r["key"].startswith("unpack-")], [])
        self.assertEqual({r["state"] for r in rows} - {"ready"}, set())
        for name in self.snapshotters:
            at = {p.name for p in (self.root / "snapshots" / name).iterdir()}
            self.assertEqual(at, {str(r["id"]) for r in rows if r["snapshotter"] == name})

    async def store(self, made: Made) -> None:
        """Have a blob in the content store."""
        await self.content.put(made.layer.blob, made.blob)

    def begin(
        self,
        made: Made,
        parent: str | Deferred[Any] | None = None,
        on: str = "overlayfs",
        **more: Any,
    ) -> Deferred[str]:
        """Unpack a layer that is there or comes."""
        waiting = parent if isinstance(parent, Deferred) else succeed(parent)
        source = self.content.source(made.layer.blob)
        return Deferred.fromCoroutine(self.unpacker.unpack(on, made.layer, waiting, source, **more))

    async def unpack(
        self, made: Made, parent: str | Deferred[Any] | None = None, on: str = "overlayfs"
    ) -> str:
        """Store a layer and unpack it."""
        await self.store(made)
        return await self.begin(made, parent, on)

    async def build(self, layers: Sequence[Made], on: str) -> str:
        """Unpack layers on one another, all at once; gives the topmost's chain ID."""
        below: Deferred[Any] = Deferred()
        below.callback(None)
        running = []
        for made in layers:
            await self.store(made)
            done: Deferred[Any] = Deferred()
            work = self.begin(made, below, on)
            work.addCallback(lambda chain_id, done=done: (done.callback(chain_id), chain_id)[1])
            running.append(work)
            below = done
        for work in running:
            chain_id = await work
        return chain_id

    async def look(self, chain_id: str, on: str, look: Callable[[str], Any] = listing) -> Any:
        """What the file system of *chain_id* looks like."""
        storage = self.snapshotters[on]
        mounts = await storage.view(SHARED, "look", chain_id)
        try:
            return inside(mounts, look)
        finally:
            await storage.remove(SHARED, "look")

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something to be true."""
        for _ in range(1000):
            if value := condition():
                return value
            await deferLater(reactor, 0.01, lambda: None)  # type: ignore[arg-type]
        raise AssertionError("it did not come true")

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        await deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]

    def jobs(self) -> set[int]:
        """The processes of the jobs that run: the worker's children."""
        mine = children(os.getpid()) - self.processes
        return {p for p in mine if children(p) == set() and len(mine) > 1}
