"""Layers made into committed snapshots: what :class:`ctd.storage.interfaces.IUnpacker` promises."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.concurrency import settled
from ctd.errors import InvalidArgument, NotFound
from ctd.singleflight import SingleFlight
from ctd.storage.arrival import Source
from ctd.storage.interfaces import (
    SHARED,
    ISource,
    IUnpacker,
    Layer,
    SnapshotKind,
    UnpackProgress,
)
from ctd.storage.snapshots.directories import DirectorySnapshotter
from ctd.storage.unpack.faults import Budget
from ctd.storage.unpack.layer import COMPRESSION, LayerUnpacking
from ctd.storage.unpack.pool import WorkerPool
from ctd.storage.unpack.requests import Request, Requests


@implementer(IUnpacker)
class Unpacker:
    """See :class:`ctd.storage.interfaces.IUnpacker`.

    A layer whose worker is killed is begun again from the file, once.

    :param snapshotters: by name.
    :param budget: what one layer may have.
    """

    def __init__(
        self,
        snapshotters: Mapping[str, DirectorySnapshotter],
        pool: WorkerPool,
        budget: Budget = Budget(),  # noqa: B008 (frozen)
    ) -> None:
        self._snapshotters = snapshotters
        self._pool = pool
        self._budget = budget
        self._flights: SingleFlight[tuple[str, str], str] = SingleFlight()
        self._requests: dict[tuple[str, str], Requests] = {}

    async def unpack(
        self,
        snapshotter: str,
        layer: Layer,
        parent: Awaitable[str | None],
        source: ISource,
        progress: Callable[[UnpackProgress], None] | None = None,
    ) -> str:
        """See :class:`ctd.storage.interfaces.IUnpacker`.

        :param source: from :meth:`ctd.storage.interfaces.IContentStore.source`.
        :raise InvalidArgument: there is no such snapshotter, or no such media type.
        """
        if snapshotter not in self._snapshotters:
            known = ", ".join(sorted(self._snapshotters))
            raise InvalidArgument("snapshotter", f"{snapshotter!r} is not one of {known}")
        if layer.blob.media_type not in COMPRESSION:
            raise InvalidArgument("layer", f"ctd cannot unpack {layer.blob.media_type!r}")
        assert isinstance(source, Source)  # the content store's own: it can be followed
        storage = self._snapshotters[snapshotter]
        key = (snapshotter, layer.chain_id)
        requests = self._requests.setdefault(key, Requests())
        request = Request(layer, source, progress)
        requests.add(request, parent)
        try:
            return await self._flights.join(key, lambda: self._fly(storage, requests))
        finally:
            requests.remove(request)
            if not requests.all and self._requests.get(key) is requests:
                del self._requests[key]

    async def _fly(self, storage: DirectorySnapshotter, requests: Requests) -> str:
        chain_id = requests.all[0].layer.chain_id
        while not await _is_committed(storage, chain_id):
            await self._serve(storage, requests)
        return chain_id

    async def _serve(self, storage: DirectorySnapshotter, requests: Requests) -> None:
        """Unpack the blob of the first who asks; ends early if all who have it in mind go."""
        request = requests.all[0]
        blob = request.layer.blob.digest
        unpacking = LayerUnpacking(
            storage, self._pool, self._budget, request.layer, request.source, requests
        )
        work = Deferred.fromCoroutine(unpacking.run())

        def left(request: Request) -> None:
            if requests.all and all(r.layer.blob.digest != blob for r in requests.all):
                work.cancel()

        requests.left = left
        outcome: list[Failure | None] = []
        over: Deferred[None] = Deferred(lambda _: None)

        def ended(result: Failure | None) -> None:
            outcome.append(result)
            if not over.called:
                over.callback(None)

        work.addBoth(ended)
        try:
            await over
        except CancelledError:
            work.cancel()
            await settled(work)
            raise
        finally:
            requests.left = lambda request: None
        [result] = outcome
        if isinstance(result, Failure) and not result.check(CancelledError):
            result.raiseException()


async def _is_committed(storage: DirectorySnapshotter, chain_id: str) -> bool:
    try:
        info = await storage.info(SHARED, chain_id)
    except NotFound:
        return False
    return info.kind is SnapshotKind.COMMITTED
