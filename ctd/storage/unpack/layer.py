"""One layer's way into one snapshotter: prepare, apply, verify, commit; or leave nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from twisted.logger import Logger

from ctd.concurrency import shielded
from ctd.errors import AlreadyExists, NotFound, ResourceExhausted, Unavailable
from ctd.model import MediaType, Mount
from ctd.storage.arrival import Source
from ctd.storage.errors import DiffIDMismatch, LayerMalformed, LayerTooLarge, WorkerDied
from ctd.storage.interfaces import SHARED, Layer
from ctd.storage.snapshots.directories import DirectorySnapshotter
from ctd.storage.snapshots.records import INTERNAL
from ctd.storage.unpack import words
from ctd.storage.unpack.faults import Budget, NeedsParent
from ctd.storage.unpack.follower import DIED, Follower, JobFailed
from ctd.storage.unpack.places import APART, FULL, NOTHING
from ctd.storage.unpack.pool import WorkerPool
from ctd.storage.unpack.requests import Requests

#: How often a layer is begun whose worker is killed.
ATTEMPTS = 2

COMPRESSION = {
    MediaType.OCI_LAYER: "none",
    MediaType.OCI_LAYER_GZIP: "gzip",
    MediaType.OCI_LAYER_ZSTD: "zstd",
    MediaType.DOCKER_LAYER: "none",
    MediaType.DOCKER_LAYER_GZIP: "gzip",
    MediaType.DOCKER_LAYER_ZSTD: "zstd",
}


class LayerUnpacking:
    """Unpacks *layer*, read from *source*, for *requests*."""

    _log = Logger()

    def __init__(
        self,
        storage: DirectorySnapshotter,
        pool: WorkerPool,
        budget: Budget,
        layer: Layer,
        source: Source,
        requests: Requests,
    ) -> None:
        self._storage = storage
        self._pool = pool
        self._budget = budget
        self._layer = layer
        self._source = source
        self._requests = requests

    async def run(self) -> None:
        """Do it; it is committed then, by this or another.  Errors are IUnpacker's."""
        apart = "rebase" in self._storage.capabilities
        attempt = 1
        while True:
            try:
                await self._attempt(apart)
                return
            except NeedsParent:
                self._log.info("{layer} needs what lies below", layer=self._layer.blob.digest)
                apart = False
            except WorkerDied as error:
                if attempt == ATTEMPTS:
                    raise
                attempt += 1
                self._log.warn("{error}; it is begun again", error=error)

    async def _attempt(self, apart: bool) -> None:
        """Unpack into a snapshot of our own, apart from the parent or on it; then commit that."""
        layer, storage, requests = self._layer, self._storage, self._requests
        below = None if apart else await requests.parent()
        if apart and not requests.first:
            seen = APART
        else:
            seen = NOTHING if below is None else FULL
        follower = Follower(self._source, requests.tell)
        key = f"{INTERNAL}{secrets.token_hex(8)}"
        try:
            await follower.arrived()
            mounts = await storage.prepare(SHARED, key, below)
            try:
                await self._apply(follower, mounts, seen)
                await self._source.verified()
                rebased = await requests.parent() if apart else None
                await storage.commit(SHARED, layer.chain_id, key, rebased)
            except AlreadyExists:
                await self._discard(key)
            except BaseException:
                await self._discard(key)
                raise
        finally:
            follower.stop()

    async def _discard(self, key: str) -> None:
        try:
            await shielded(self._storage.remove(SHARED, key))
        except NotFound:
            pass  # committed, and cancelled at that moment
        except OSError:
            self._log.failure("snapshot {key} is left to the next start", key=key)

    async def _apply(self, follower: Follower, mounts: Sequence[Mount], seen: str) -> None:
        layer = self._layer
        begin = {
            "mounts": [{"type": m.type, "source": m.source, "options": m.options} for m in mounts],
            "base": str(self._storage.root),
            "below": seen,
            "compression": COMPRESSION[layer.blob.media_type],
            "algorithm": layer.diff_id.algorithm,
            "budget": self._budget._asdict(),
        }
        try:
            async with self._pool.slot() as slot, self._pool.job(follower, **begin) as job:
                follower.feed(job)
                applied = await follower.applied
                slot.release()
                if applied["diff_id"] != layer.diff_id.hex:
                    actual = f"{layer.diff_id.algorithm}:{applied['diff_id']}"
                    await self._source.verified()  # or that is the fault
                    raise DiffIDMismatch(str(layer.blob.digest), str(layer.diff_id), actual)
                parts = await follower.unless_failed(self._parts()) if seen == APART else []
                job.say(parent=parts)
                await follower.done
        except JobFailed as failed:
            if failed.error in (words.MALFORMED, words.TOO_LARGE):
                await self._source.verified()  # or that is the fault
            raise self._typed(failed) from None

    async def _parts(self) -> list[str]:
        """The parent's directories, relative to the snapshotter's."""
        name = await self._requests.parent()
        if name is None:
            return []
        root = f"{self._storage.root}/"
        return [d.removeprefix(root) for d in await self._storage.layers(SHARED, name)]

    def _typed(self, failed: JobFailed) -> Exception:
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
            case _ if failed.error == DIED:
                return WorkerDied(digest, fields["reason"])
        return Unavailable(f"unpacking {digest}", fields["reason"])
