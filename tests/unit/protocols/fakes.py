"""Parts that keep their state in memory, and raise what real ones raise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from ctd.database import NewEvent, Transaction
from ctd.errors import AlreadyExists, FailedPrecondition, NotFound
from ctd.events.interfaces import Event, IJournal, Page, Selection, Trimmed
from ctd.images.interfaces import IImages, Image, PullProgress
from ctd.model import Descriptor, Digest, Mount, Platform
from ctd.protocols.control.daemon import About, IDaemon
from ctd.protocols.peers import Peer
from ctd.runtime.interfaces import (
    INIT,
    Container,
    ContainerRequest,
    ExecRequest,
    Exit,
    IContainers,
    IProcesses,
    Process,
)
from ctd.stalls import Stalls
from ctd.storage.interfaces import (
    BlobInfo,
    Collected,
    IContentStore,
    IGarbageCollector,
    IIngest,
    IngestInfo,
    ISnapshotter,
    ISource,
    Resource,
    SnapshotInfo,
    SnapshotKind,
    Usage,
)

NOW = "2026-01-02T03:04:05.678901Z"
AT = datetime(2026, 1, 2, tzinfo=UTC)
ROOT = Peer(1, 0, 0)
EVERYTHING = Selection()


class ClientTransport(StringTransport):
    """A transport that can be aborted and says how it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def fileno(self) -> int:
        return 99


class FakeWatch:
    """Hang-ups that tests tell of."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        self.watched[fd] = gone

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def hang_up(self, fd: int = 99) -> None:
        self.watched.pop(fd)()


@implementer(IDaemon)
class FakeDaemon:
    """A daemon that never changes."""

    def about(self) -> About:
        return About(
            version="1.2.3",
            pid=7,
            root="/root",
            state="/state",
            socket="/state/ctd.sock",
            platform="linux/amd64",
            runtime="runc",
            snapshotter="overlayfs",
            shim_protocol=(1,),
            started_at=NOW,
            uptime=2.5,
            stalls=Stalls(0.25, 1),
        )


@implementer(IContainers)
class FakeContainers:
    """Containers whose processes end when they are told to.

    :ivar requests: what was asked for, as it came.
    :ivar signals: what was sent: id, number, all.
    """

    def __init__(self) -> None:
        self.requests: list[ContainerRequest] = []
        self.signals: list[tuple[str, int, bool]] = []
        self.cancelled = 0
        self._containers: dict[tuple[str, str], Container] = {}
        self._waiting: dict[tuple[str, str], list[Deferred[Exit]]] = {}

    async def create(self, request: ContainerRequest) -> Container:
        self.requests.append(request)
        key = (request.namespace, request.id)
        if key in self._containers:
            raise AlreadyExists("container", request.id)
        self._containers[key] = Container(
            id=request.id,
            namespace=request.namespace,
            image=request.image,
            status="created",
            pid=100 + len(self.requests),
            exit_status=None,
            exit_reason=None,
            created_at=NOW,
            started_at=None,
            exited_at=None,
            bundle="/bundle",
            netns=None,
            labels=request.labels,
            runtime=request.runtime or "runc",
            snapshotter=request.snapshotter or "overlayfs",
            stdio=request.stdio,
            args=request.args or ("sh",),
            terminal=request.terminal,
        )
        return self._containers[key]

    async def start(self, namespace: str, id: str) -> Container:
        container = await self.get(namespace, id)
        if container.status != "created":
            raise FailedPrecondition("container", id, f"it is {container.status}")
        started = attrs.evolve(container, status="running", started_at=NOW)
        self._containers[namespace, id] = started
        return started

    async def get(self, namespace: str, id: str) -> Container:
        try:
            return self._containers[namespace, id]
        except KeyError:
            raise NotFound("container", id) from None

    async def list(self, namespace: str | None = None) -> Sequence[Container]:
        return [c for c in self._containers.values() if namespace in (None, c.namespace)]

    async def wait(self, namespace: str, id: str) -> Exit:
        container = await self.get(namespace, id)
        if container.exit_status is not None:
            return Exit(container.exit_status, container.exit_reason or "", NOW)
        waiter: Deferred[Exit] = Deferred(self._left)
        self._waiting.setdefault((namespace, id), []).append(waiter)
        return await waiter

    def _left(self, waiter: Deferred[Exit]) -> None:
        self.cancelled += 1
        for waiting in self._waiting.values():
            if waiter in waiting:
                waiting.remove(waiter)

    def waiting(self, id: str, namespace: str = "default") -> int:
        """How many wait for its end."""
        return len(self._waiting.get((namespace, id), ()))

    def end(self, id: str, status: int = 0, namespace: str = "default") -> None:
        """Let its first process end."""
        key = (namespace, id)
        self._containers[key] = attrs.evolve(
            self._containers[key], status="stopped", exit_status=status, exit_reason="exited"
        )
        for waiter in self._waiting.pop(key, []):
            waiter.callback(Exit(status, "exited", NOW))

    async def kill(self, namespace: str, id: str, signal: int = 15, all: bool = False) -> None:
        container = await self.get(namespace, id)
        if container.status != "running":
            raise FailedPrecondition("container", id, f"it is {container.status}")
        self.signals.append((id, signal, all))

    async def delete(self, namespace: str, id: str, force: bool = False) -> None:
        container = await self.get(namespace, id)
        if container.status == "running" and not force:
            raise FailedPrecondition("container", id, "it runs")
        del self._containers[namespace, id]


@implementer(IProcesses)
class FakeProcesses:
    """Processes of any container."""

    def __init__(self) -> None:
        self.requests: list[ExecRequest] = []
        self.signals: list[tuple[str, int]] = []
        self.closed: list[str] = []
        self._processes: dict[tuple[str, str, str], Process] = {}

    async def exec(self, request: ExecRequest) -> Process:
        self.requests.append(request)
        key = (request.namespace, request.container, request.id)
        if key in self._processes:
            raise AlreadyExists("process", request.id)
        self._processes[key] = Process(
            id=request.id,
            container=request.container,
            namespace=request.namespace,
            status="running",
            pid=200,
            exit_status=None,
            exit_reason=None,
            started_at=NOW,
            exited_at=None,
            args=request.args,
            terminal=request.terminal,
            stdio=request.stdio,
        )
        return self._processes[key]

    async def get(self, namespace: str, container: str, id: str) -> Process:
        try:
            return self._processes[namespace, container, id]
        except KeyError:
            raise NotFound("process", f"{container}/{id}") from None

    async def list(self, namespace: str, container: str) -> Sequence[Process]:
        return [
            p
            for p in self._processes.values()
            if (p.namespace, p.container) == (namespace, container)
        ]

    async def wait(self, namespace: str, container: str, id: str) -> Exit:
        await self.get(namespace, container, id)
        return Exit(3, "exited", NOW)

    async def kill(self, namespace: str, container: str, id: str, signal: int = 15) -> None:
        await self.get(namespace, container, id)
        self.signals.append((id, signal))

    async def close_stdin(self, namespace: str, container: str, id: str) -> None:
        await self.get(namespace, container, id)
        self.closed.append(id)

    async def delete(self, namespace: str, container: str, id: str) -> None:
        await self.get(namespace, container, id)
        if id == INIT:
            raise FailedPrecondition("process", id, "it goes with its container")
        del self._processes[namespace, container, id]


@implementer(IImages)
class FakeImages:
    """Images; a pull of ``slow`` goes on until :meth:`finish`.

    :ivar registry: what can be pulled.
    """

    def __init__(self) -> None:
        self.registry = {"alpine", "slow"}
        self.pulls: list[dict[str, Any]] = []
        self.cancelled = 0
        self._images: dict[tuple[str, str], Image] = {}
        self._slow: list[Deferred[None]] = []
        self.progress: Callable[[PullProgress], None] | None = None

    async def pull(
        self,
        namespace: str,
        reference: str,
        platform: Platform | None = None,
        snapshotter: str | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        plain_http: bool | None = None,
    ) -> Image:
        self.pulls.append({"platform": platform, "snapshotter": snapshotter, "http": plain_http})
        if reference not in self.registry:
            raise NotFound("image", reference)
        self.progress = progress
        if reference == "slow":
            waiter: Deferred[None] = Deferred(self._cancel)
            self._slow.append(waiter)
            await waiter
        return self.add(reference, namespace)

    def _cancel(self, waiter: Deferred[None]) -> None:
        self.cancelled += 1
        self._slow.remove(waiter)

    def finish(self) -> None:
        """Let slow pulls end."""
        slow, self._slow = self._slow, []
        for waiter in slow:
            waiter.callback(None)

    def add(self, name: str, namespace: str = "default") -> Image:
        """Have an image of that name."""
        target = Descriptor("m", Digest.of(name.encode()), 10, Platform("linux", "amd64"))
        image = Image(namespace, name, target, NOW, NOW, 1000, {"a": "b"})
        self._images[namespace, name] = image
        return image

    async def get(self, namespace: str, reference: str) -> Image:
        try:
            return self._images[namespace, reference]
        except KeyError:
            raise NotFound("image", reference) from None

    async def list(self, namespace: str | None = None) -> Sequence[Image]:
        return [i for i in self._images.values() if namespace in (None, i.namespace)]

    async def config(self, namespace: str, reference: str) -> Mapping[str, Any]:
        await self.get(namespace, reference)
        return {"os": "linux", "rootfs": {"diff_ids": ["sha256:0"]}}

    async def tag(self, namespace: str, source: str, target: str) -> Image:
        await self.get(namespace, source)
        return self.add(target, namespace)

    async def delete(self, namespace: str, reference: str) -> None:
        await self.get(namespace, reference)
        del self._images[namespace, reference]


@implementer(IJournal)
class FakeJournal:
    """A journal in a list.  :ivar oldest: the oldest ``seq`` still kept."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.oldest = 1
        self.followers = 0
        self._waiting: list[Deferred[None]] = []

    def emit(self, topic: str, namespace: str = "default") -> None:
        """Have something happen."""
        self.events.append(Event(len(self.events) + 1, NOW, namespace, topic, "s", {"n": 1}))
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def write(self, tx: Transaction, event: NewEvent) -> int:
        self.emit(event.topic, event.namespace)
        return len(self.events)

    def committed(self, seq: int) -> None:
        pass

    async def last(self) -> int:
        return len(self.events)

    async def list(
        self, since: int = 0, limit: int = 100, selection: Selection = EVERYTHING
    ) -> Page:
        found = [
            e
            for e in self.events
            if e.seq >= max(since + 1, self.oldest) and _selected(e, selection)
        ]
        items = found[:limit]
        trimmed = Trimmed(since, self.oldest) if since + 1 < self.oldest else None
        return Page(items, items[-1].seq if len(found) > limit else None, trimmed)

    async def follow(
        self, since: int | None = None, selection: Selection = EVERYTHING
    ) -> AsyncIterator[Event | Trimmed]:
        self.followers += 1
        try:
            at = len(self.events) if since is None else since
            if at + 1 < self.oldest:
                yield Trimmed(at, self.oldest)
                at = self.oldest - 1
            while True:
                while at < len(self.events):
                    event = self.events[at]
                    at += 1
                    if _selected(event, selection):
                        yield event
                waiter: Deferred[None] = Deferred(lambda _: None)
                self._waiting.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)
        finally:
            self.followers -= 1


def _selected(event: Event, selection: Selection) -> bool:
    return selection.namespace in (None, event.namespace) and (
        not selection.topics
        or any(
            event.topic == t or (t.endswith("*") and event.topic.startswith(t[:-1]))
            for t in selection.topics
        )
    )


@implementer(IContentStore)
class FakeContent:
    """Blobs in a dict, and ingests that nobody writes."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.left: dict[str, IngestInfo] = {}

    def add(self, data: bytes) -> Digest:
        """Have a blob."""
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    async def info(self, digest: Digest) -> BlobInfo:
        if digest not in self.blobs:
            raise NotFound("blob", str(digest))
        return BlobInfo(digest, len(self.blobs[digest]), AT)

    async def read(self, digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        await self.info(digest)
        data = self.blobs[digest][offset:]
        return data if length is None else data[:length]

    async def ingest(self, ref: str, expected: Descriptor) -> IIngest:
        raise NotImplementedError  # not reached over the control protocol

    def source(self, expected: Descriptor) -> ISource:
        raise NotImplementedError  # not reached over the control protocol

    async def put(
        self, descriptor: Descriptor, data: bytes, children: Sequence[Digest] = ()
    ) -> BlobInfo:
        return await self.info(self.add(data))

    async def list(self) -> Sequence[BlobInfo]:
        return [await self.info(d) for d in sorted(self.blobs)]

    async def ingests(self) -> Sequence[IngestInfo]:
        return list(self.left.values())

    async def abort(self, ref: str) -> None:
        if self.left.pop(ref, None) is None:
            raise NotFound("ingest", ref)

    async def delete(self, digest: Digest) -> None:
        await self.info(digest)
        del self.blobs[digest]


@implementer(ISnapshotter)
class FakeSnapshotter:
    """Snapshots without files."""

    capabilities = frozenset({"rebase"})

    def __init__(self, name: str) -> None:
        self.name = name
        self._snapshots: dict[tuple[str, str], SnapshotInfo] = {}

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[Mount]:
        return self._make(namespace, key, SnapshotKind.ACTIVE, parent, labels)

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[Mount]:
        return self._make(namespace, key, SnapshotKind.VIEW, parent, labels)

    def _make(
        self,
        namespace: str,
        key: str,
        kind: SnapshotKind,
        parent: str | None,
        labels: Mapping[str, str] | None,
    ) -> Sequence[Mount]:
        if (namespace, key) in self._snapshots:
            raise AlreadyExists("snapshot", key)
        self._snapshots[namespace, key] = SnapshotInfo(
            namespace, key, kind, parent, AT, labels or {}
        )
        return [Mount("bind", f"/{key}", ("rbind",))]

    async def mounts(self, namespace: str, key: str) -> Sequence[Mount]:
        await self.info(namespace, key)
        return [Mount("bind", f"/{key}", ("rbind",))]

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
    ) -> None:
        info = await self.info(namespace, key)
        del self._snapshots[namespace, key]
        where = namespace if target is None else target
        self._snapshots[where, name] = SnapshotInfo(
            where, name, SnapshotKind.COMMITTED, parent or info.parent, AT, labels or {}
        )

    async def remove(self, namespace: str, key: str) -> None:
        await self.info(namespace, key)
        if any(s.parent == key for s in self._snapshots.values()):
            raise FailedPrecondition("snapshot", key, "others lie on it")
        del self._snapshots[namespace, key]

    async def info(self, namespace: str, key: str) -> SnapshotInfo:
        try:
            return self._snapshots[namespace, key]
        except KeyError:
            raise NotFound("snapshot", key) from None

    async def list(self, namespace: str | None = None) -> Sequence[SnapshotInfo]:
        return [s for s in self._snapshots.values() if namespace in (None, s.namespace)]

    async def usage(self, namespace: str, key: str) -> Usage:
        await self.info(namespace, key)
        return Usage(4096, 1)

    async def recover(self) -> None:
        pass


@implementer(IGarbageCollector)
class FakeCollector:
    """Garbage that is there until it is collected."""

    def __init__(self) -> None:
        self.garbage = [Resource("content", f"sha256:{n}") for n in range(1500)]

    def add_roots(self, roots: Callable[[Transaction], Sequence[Resource]]) -> None:
        raise NotImplementedError  # not reached over the control protocol

    def hold(self, resources: Sequence[Resource]) -> Callable[[], None]:
        raise NotImplementedError  # not reached over the control protocol

    async def collect(self, dry_run: bool = False) -> Collected:
        found = tuple(self.garbage)
        if not dry_run:
            self.garbage.clear()
        return Collected(found, 5, 10 * len(found))
