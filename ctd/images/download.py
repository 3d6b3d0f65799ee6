"""Blobs brought from a registry into the content store: once each, resumed where they broke."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from ctd.errors import AlreadyExists, NotFound
from ctd.fetch.errors import RegistryUnavailable, TransferBroken
from ctd.fetch.interfaces import IRegistry
from ctd.fetch.reference import Reference
from ctd.model import Descriptor, Digest
from ctd.singleflight import SingleFlight
from ctd.storage.errors import IngestBusy
from ctd.storage.interfaces import IContentStore, IIngest

#: How often a transfer that broke without bringing anything is tried, and the first pause.
ATTEMPTS = 5
PAUSE = 0.2


class Downloads:
    """All downloads of one daemon.

    :param limit: how many run at a time.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, registry: IRegistry, content: IContentStore, limit: int
    ) -> None:
        self._clock = clock
        self._registry = registry
        self._content = content
        self._slots = DeferredSemaphore(limit)
        self._flights: SingleFlight[Digest, None] = SingleFlight()
        self._progress: dict[Digest, list[Callable[[int], None]]] = {}

    async def fetch(
        self,
        reference: Reference,
        blob: Descriptor,
        progress: Callable[[int], None],
        plain_http: bool | None = None,
    ) -> None:
        """Have *blob* in the content store, verified.

        :param progress: told how many bytes have come; by the download that
            runs, whoever began it.
        :param plain_http: see :class:`ctd.fetch.interfaces.IRegistry`; a download
            that runs already goes on as it was begun.
        :raise TransferBroken: it broke again and again; what came is kept, and
            the next fetch goes on from there.
        :raise RegistryUnavailable: likewise, before a byte came.
        """
        listeners = self._progress.setdefault(blob.digest, [])
        listeners.append(progress)
        try:
            await self._flights.join(blob.digest, lambda: self._fetch(reference, blob, plain_http))
        finally:
            listeners.remove(progress)
            if not listeners:
                self._progress.pop(blob.digest, None)

    async def forget(self, blobs: Sequence[Descriptor], *, empty: bool) -> None:
        """Drop what has come of *blobs*, except those that are being brought here now.

        :param empty: only where nothing has come.
        """
        wanted = {blob.digest for blob in blobs}
        for ingest in await self._content.ingests():
            here = ingest.expected in wanted and ingest.expected not in self._flights
            if here and not (empty and ingest.offset):
                try:
                    await self._content.abort(ingest.ref)
                except (NotFound, IngestBusy):
                    pass

    def _tell(self, digest: Digest, offset: int) -> None:
        for listener in self._progress.get(digest, ()):
            listener(offset)

    async def _fetch(self, reference: Reference, blob: Descriptor, plain_http: bool | None) -> None:
        await self._slots.acquire()
        try:
            ingest = await self._content.ingest(str(blob.digest), blob)
            try:
                await self._transfer(reference, blob, ingest, plain_http)
                await ingest.commit()
            finally:
                await ingest.close()
        except AlreadyExists:
            pass
        finally:
            self._slots.release()
        self._tell(blob.digest, blob.size)

    async def _transfer(
        self, reference: Reference, blob: Descriptor, ingest: IIngest, plain_http: bool | None
    ) -> None:
        failures = 0
        while ingest.offset < blob.size:
            before = ingest.offset
            try:
                await self._stream(reference, blob, ingest, plain_http)
            except (TransferBroken, RegistryUnavailable) as error:
                failures = failures + 1 if ingest.offset == before else 1
                if failures >= ATTEMPTS:
                    raise
                self._log.warn("{error}; trying again", error=error)
                await _sleep(self._clock, PAUSE * 2**failures)

    async def _stream(
        self, reference: Reference, blob: Descriptor, ingest: IIngest, plain_http: bool | None
    ) -> None:
        stream = await self._registry.blob(reference, blob, ingest.offset, plain_http)
        async with stream:
            skip = ingest.offset - stream.offset
            async for chunk in stream:
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                await ingest.write(chunk[skip:] if skip else chunk)
                skip = 0
                self._tell(blob.digest, ingest.offset)


def _sleep(clock: IReactorTime, seconds: float) -> Deferred[None]:
    return deferLater(clock, seconds, lambda: None)
