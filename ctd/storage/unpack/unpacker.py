"""Layers made into committed snapshots: what :class:`ctd.storage.interfaces.IUnpacker` promises."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.concurrency import settled, shielded
from ctd.errors import AlreadyExists, NotFound, ResourceExhausted
from ctd.model import MediaType, Mount
from ctd.singleflight import SingleFlight
from ctd.storage.arrival import IArrivalListener, Source
from ctd.storage.errors import DiffIDMismatch, LayerMalformed, LayerTooLarge, WorkerDied
from ctd.storage.interfaces import SHARED, ISource, IUnpacker, Layer, SnapshotKind, UnpackProgress
from ctd.storage.snapshots.directories import DirectorySnapshotter
from ctd.storage.unpack import words
from ctd.storage.unpack.faults import Budget, NeedsParent
from ctd.storage.unpack.places import APART, FULL, NOTHING
from ctd.storage.unpack.pool import Job, WorkerPool

#: How often a layer is begun again whose worker was killed.
ATTEMPTS = 2

_COMPRESSION = {
    MediaType.OCI_LAYER: "none",
    MediaType.OCI_LAYER_GZIP: "gzip",
    MediaType.OCI_LAYER_ZSTD: "zstd",
    MediaType.DOCKER_LAYER: "none",
    MediaType.DOCKER_LAYER_GZIP: "gzip",
    MediaType.DOCKER_LAYER_ZSTD: "zstd",
}

Report = Callable[[UnpackProgress], None]


class _Parent:
    """The chain ID below, on its way; may be asked for any number of times."""

    def __init__(self, parent: Awaitable[str | None]) -> None:
        self._value: str | None = None

        async def wait() -> None:
            self._value = await parent

        self._failure: Failure | None = None
        self._coming = Deferred.fromCoroutine(wait())
        self._coming.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        self._failure = failure

    @property
    def is_none(self) -> bool:
        """Whether it is known that there is none."""
        return bool(self._coming.called) and self._failure is None and self._value is None

    async def get(self) -> str | None:
        """It, or what it failed with."""
        await settled(self._coming)
        if self._failure is not None:
            self._failure.raiseException()
        return self._value

    def drop(self) -> None:
        """Wait for it no more."""
        self._coming.cancel()


@implementer(IUnpacker)
class Unpacker:
    """See :class:`ctd.storage.interfaces.IUnpacker`."""

    _log = Logger()

    def __init__(
        self,
        snapshotters: Mapping[str, DirectorySnapshotter],
        pool: WorkerPool,
        budget: Budget = Budget(),  # noqa: B008
    ) -> None:
        self._snapshotters = snapshotters
        self._pool = pool
        self._budget = budget
        self._flights: SingleFlight[tuple[str, str], str] = SingleFlight()

    async def unpack(
        self,
        snapshotter: str,
        layer: Layer,
        parent: Awaitable[str | None],
        source: ISource,
        progress: Report | None = None,
    ) -> str:
        """See :class:`ctd.storage.interfaces.IUnpacker`."""
        assert isinstance(source, Source)  # the content store's own: it can be followed
        storage = self._snapshotters[snapshotter]
        work = _Layer(storage, self._pool, self._budget, layer, source, progress)
        return await self._flights.join(
            (snapshotter, layer.chain_id), lambda: work.unpack(_Parent(parent))
        )


class _Layer:
    """One layer's way into one snapshotter."""

    _log = Logger()

    def __init__(
        self,
        storage: DirectorySnapshotter,
        pool: WorkerPool,
        budget: Budget,
        layer: Layer,
        source: Source,
        progress: Report | None,
    ) -> None:
        self._storage = storage
        self._pool = pool
        self._budget = budget
        self._layer = layer
        self._source = source
        self._progress = progress

    async def unpack(self, parent: _Parent) -> str:
        try:
            if not await self._is_there():
                await self._unpack(parent)
            return self._layer.chain_id
        finally:
            parent.drop()

    async def _is_there(self) -> bool:
        try:
            info = await self._storage.info(SHARED, self._layer.chain_id)
        except NotFound:
            return False
        return info.kind is SnapshotKind.COMMITTED

    async def _unpack(self, parent: _Parent) -> None:
        apart = "rebase" in self._storage.capabilities
        attempt = 1
        while True:
            try:
                await self._attempt(parent, apart)
                return
            except NeedsParent:
                apart = False
            except WorkerDied as error:
                if attempt == ATTEMPTS:
                    raise
                attempt += 1
                self._log.warn("{error}; it is begun again", error=error)

    async def _attempt(self, parent: _Parent, apart: bool) -> None:
        """Unpack into a snapshot of our own, apart from the parent or on it; then commit that."""
        layer, storage = self._layer, self._storage
        below = None if apart else await parent.get()
        key = f"unpack-{secrets.token_hex(8)}"
        mounts = await storage.prepare(SHARED, key, below)
        try:
            seen = (NOTHING if parent.is_none else APART) if apart else (FULL if below else NOTHING)
            await self._apply(mounts, seen, parent)
            await self._source.verified()
            rebased = await parent.get() if apart else None
            await storage.commit(SHARED, layer.chain_id, key, rebased)
        except AlreadyExists:
            await shielded(storage.remove(SHARED, key))
        except BaseException:
            await self._discard(key)
            raise

    async def _discard(self, key: str) -> None:
        try:
            await shielded(self._storage.remove(SHARED, key))
        except NotFound:
            pass  # committed, and cancelled at that moment

    async def _apply(self, mounts: Sequence[Mount], seen: str, parent: _Parent) -> None:
        layer = self._layer
        follower = _Follower(self._source, self._progress)
        begin = {
            "mounts": [{"type": m.type, "source": m.source, "options": m.options} for m in mounts],
            "base": str(self._storage.root),
            "below": seen,
            "compression": _COMPRESSION[layer.blob.media_type],
            "algorithm": layer.diff_id.algorithm,
            "budget": self._budget._asdict(),
        }
        try:
            async with self._pool.slot() as slot, self._pool.job(follower, **begin) as job:
                follower.follow(job)
                applied = await follower.applied
                slot.release()
                if applied["diff_id"] != layer.diff_id.hex:
                    actual = f"{layer.diff_id.algorithm}:{applied['diff_id']}"
                    await self._source.verified()
                    raise DiffIDMismatch(str(layer.blob.digest), str(layer.diff_id), actual)
                job.say(parent=await self._parts(parent) if seen == APART else [])
                await follower.done
        except _Failed as failed:
            if failed.error in (words.MALFORMED, words.TOO_LARGE):
                await self._source.verified()  # or that is the fault
            raise self._typed(failed) from None
        finally:
            follower.stop()

    async def _parts(self, parent: _Parent) -> list[str]:
        """The parent's directories, relative to the snapshotter's."""
        name = await parent.get()
        if name is None:
            return []
        root = f"{self._storage.root}/"
        return [d.removeprefix(root) for d in await self._storage.layers(SHARED, name)]

    def _typed(self, failed: _Failed) -> Exception:
        digest, fields = str(self._layer.blob.digest), failed.fields
        match failed.error:
            case words.MALFORMED:
                return LayerMalformed(digest, fields["entry"], fields["reason"])
            case words.TOO_LARGE:
                return LayerTooLarge(digest, fields["budget"], fields["limit"])
            case words.NEEDS_PARENT:
                return NeedsParent()
            case words.FULL_DISK:
                return ResourceExhausted("space on disk")
        return WorkerDied(digest, fields["reason"])


class _Failed(Exception):
    """A job says that it failed, or its process died.  :ivar error: a word of that."""

    def __init__(self, error: str, fields: Mapping[str, Any]) -> None:
        super().__init__(error)
        self.error = error
        self.fields = fields


@implementer(IArrivalListener)
class _Follower:
    """Between a blob that arrives and the job that reads it.

    The job asks for more when it has used up what it was told of, so that at
    most one answer is on its way.

    :ivar applied: what the job says when it has applied all entries.
    :ivar done: fires when it has done all.
    """

    def __init__(self, source: Source, progress: Report | None) -> None:
        self._source = source
        self._progress = progress
        self._job: Job | None = None
        self._wanted: int | None = None
        self._there: tuple[int, int, bool] | None = None
        self._stop: Callable[[], None] | None = None
        self.applied: Deferred[dict[str, Any]] = Deferred(lambda _: None)
        self.done: Deferred[None] = Deferred(lambda _: None)

    def follow(self, job: Job) -> None:
        """Begin."""
        self._job = job
        self._stop = self._source.follow(self)

    def stop(self) -> None:
        """End; the blob's descriptor is closed, and what failed unheard is forgotten."""
        if self._stop is not None:
            self._stop()
        for one in (self.applied, self.done):
            one.addErrback(lambda _: None)

    # IArrivalListener.

    def grown(self, fd: int, size: int, complete: bool) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self._there = (fd, size, complete)
        self._answer()

    def failed(self, reason: Failure) -> None:
        """See :class:`ctd.storage.arrival.IArrivalListener`."""
        self._fail(reason)

    # JobListener.

    def said(self, message: dict[str, Any]) -> None:
        """See :class:`ctd.storage.unpack.pool.JobListener`."""
        match message:
            case {"want": offset}:
                self._wanted = offset
                self._report(offset, 0)
                self._answer()
            case {"progress": [read, entries]}:
                self._report(read, entries)
            case {"applied": applied}:
                if not self.applied.called:
                    self.applied.callback(applied)
            case {"done": _}:
                if not self.done.called:
                    self.done.callback(None)
            case {"failed": fields}:
                self._fail(Failure(_Failed(fields["error"], fields)))
            case {"ended": status}:
                self._fail(Failure(_Failed("died", {"reason": _how(status)})))

    def _answer(self) -> None:
        if self._wanted is None or self._there is None or self._job is None:
            return
        fd, size, complete = self._there
        if size > self._wanted or complete:
            self._wanted = None
            self._job.say(data={"fd": fd, "size": size, "complete": complete})

    def _report(self, read: int, entries: int) -> None:
        if self._progress is not None:
            self._progress(UnpackProgress(read, entries))

    def _fail(self, reason: Failure) -> None:
        for one in (self.applied, self.done):
            if not one.called:
                one.errback(reason)


def _how(status: int) -> str:
    return f"its process was killed by signal {-status}" if status < 0 else "its process ended"
