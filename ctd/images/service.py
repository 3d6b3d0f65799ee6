"""Images by name: what :class:`ctd.images.interfaces.IImages` promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from zope.interface import implementer

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.fetch.reference import Reference
from ctd.images import records
from ctd.images.interfaces import IImages, Image, PullProgress
from ctd.images.progress import Progress
from ctd.images.pull import Pulled, Puller
from ctd.images.records import Record
from ctd.model import Descriptor, Digest, MediaType, Platform, rfc3339
from ctd.singleflight import SingleFlight
from ctd.storage.interfaces import IContentStore, IGarbageCollector


@attrs.define(eq=False)
class _Running:
    """A pull under way, shared by all who ask for the same."""

    progress: Progress = attrs.field(factory=Progress)
    holds: list[Callable[[], None]] = attrs.field(factory=list)
    users: int = 0


_Key = tuple[str, Platform, str, bool | None]


@implementer(IImages)
class Images:
    """The images of one daemon.

    :param snapshotter: the name of the one used when none is asked for.
    """

    def __init__(
        self,
        database: Database,
        content: IContentStore,
        collector: IGarbageCollector,
        puller: Puller,
        snapshotter: str,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._content = content
        self._collector = collector
        self._puller = puller
        self._snapshotter = snapshotter
        self._now = now
        self._flights: SingleFlight[_Key, Pulled] = SingleFlight()
        self._running: dict[_Key, _Running] = {}
        collector.add_roots(records.roots)

    async def pull(
        self,
        namespace: str,
        reference: str,
        platform: Platform | None = None,
        snapshotter: str | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        plain_http: bool | None = None,
    ) -> Image:
        """See :class:`IImages`."""
        parsed = Reference.parse(reference)
        platform = platform or Platform.here()
        snapshotter = snapshotter or self._snapshotter
        key = (str(parsed), platform, snapshotter, plain_http)
        running = self._running.setdefault(key, _Running())
        running.users += 1
        forget = running.progress.listen(progress) if progress is not None else None
        try:
            pulled = await self._flights.join(
                key,
                lambda: self._puller.pull(
                    parsed, platform, snapshotter, running.progress, running.holds, plain_http
                ),
            )
            record = await self._name(namespace, parsed, snapshotter, pulled)
        except Exception:
            if self._leave(key, running):
                await shielded(self._collector.collect())
            raise
        finally:
            if forget is not None:
                forget()
        self._leave(key, running)
        return record.image

    def _leave(self, key: _Key, running: _Running) -> bool:
        """One user of a pull less; True if it was the last, and the holds are released."""
        running.users -= 1
        if running.users:
            return False
        if self._running.get(key) is running:
            del self._running[key]
        for release in running.holds:
            release()
        return True

    async def _name(
        self, namespace: str, reference: Reference, snapshotter: str, pulled: Pulled
    ) -> Record:
        at = rfc3339(self._now())
        image = Image(namespace, str(reference), pulled.target, at, at, pulled.size)
        record = Record(image, pulled.manifest.digest, pulled.config.digest)

        def change(tx: Transaction) -> Record:
            stored = records.put(tx, record)
            records.set_unpacked(tx, pulled.manifest.digest, snapshotter, pulled.chain_id)
            return stored

        return await self._database.transact(change)

    async def get(self, namespace: str, reference: str) -> Image:
        """See :class:`IImages`."""
        return (await self.record(namespace, reference)).image

    async def record(self, namespace: str, reference: str) -> Record:
        """The image with what was chosen of it.  :raise NotFound: it is not here."""
        name, digest = _named(reference)
        return await self._database.transact(lambda tx: records.find(tx, namespace, name, digest))

    async def list(self, namespace: str | None = None) -> Sequence[Image]:
        """See :class:`IImages`."""
        found = await self._database.transact(lambda tx: records.everything(tx, namespace))
        return [record.image for record in found]

    async def config(self, namespace: str, reference: str) -> Mapping[str, Any]:
        """See :class:`IImages`."""
        record = await self.record(namespace, reference)
        body = await self._content.read(record.config)
        config: Mapping[str, Any] = json.loads(body)
        return config

    async def layers(self, namespace: str, reference: str, snapshotter: str) -> tuple[Record, str]:
        """An image and its topmost chain ID under *snapshotter*, unpacked now if need be."""
        record = await self.record(namespace, reference)
        chain_id = await self._database.transact(
            lambda tx: records.unpacked(tx, record.manifest, snapshotter)
        )
        if chain_id is None:
            chain_id = await self._unpack(record, snapshotter)
        return record, chain_id

    async def _unpack(self, record: Record, snapshotter: str) -> str:
        info = await self._content.info(record.manifest)
        manifest = Descriptor(MediaType.OCI_MANIFEST, record.manifest, info.size)
        holds: list[Callable[[], None]] = []
        try:
            chain_id = await self._puller.unpack(manifest, snapshotter, holds)

            def change(tx: Transaction) -> None:
                records.find(tx, record.image.namespace, record.image.name, None)
                records.set_unpacked(tx, record.manifest, snapshotter, chain_id)

            await self._database.transact(change)
        finally:
            for release in holds:
                release()
        return chain_id

    async def tag(self, namespace: str, source: str, target: str) -> Image:
        """See :class:`IImages`."""
        name, digest = _named(source)
        wanted = str(Reference.parse(target, "target"))
        at = rfc3339(self._now())

        def change(tx: Transaction) -> Record:
            old = records.find(tx, namespace, name, digest)
            image = attrs.evolve(old.image, name=wanted, created_at=at, updated_at=at)
            return records.put(tx, attrs.evolve(old, image=image))

        return (await self._database.transact(change)).image

    async def delete(self, namespace: str, reference: str) -> None:
        """See :class:`IImages`."""
        name, digest = _named(reference)

        def change(tx: Transaction) -> None:
            records.remove(tx, records.find(tx, namespace, name, digest))

        await self._database.transact(change)
        await self._collector.collect()


def _named(reference: str) -> tuple[str, Digest | None]:
    """The full name *reference* stands for, and its digest if it has one."""
    if reference.startswith(("sha256:", "sha512:")):
        return reference, Digest.parse(reference, "ref")
    parsed = Reference.parse(reference)
    return str(parsed), parsed.digest
