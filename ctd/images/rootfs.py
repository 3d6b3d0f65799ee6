"""Root file systems made from images: what the runtime asks for, on top of storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zope.interface import implementer

from ctd.errors import InvalidArgument, NotFound
from ctd.images.documents import ImageConfig
from ctd.images.peek import read_files, read_process_files
from ctd.images.service import Images
from ctd.images.users import lookup
from ctd.model import Mount, User
from ctd.runtime.interfaces import IRootfsSource, Rootfs
from ctd.storage.interfaces import (
    SHARED,
    IContentStore,
    IGarbageCollector,
    ISnapshotter,
    Resource,
)
from ctd.threads import IWorkers

_FILES = ("/etc/passwd", "/etc/group")


@implementer(IRootfsSource)
class ImageRootfs:
    """Writable snapshots on images' layers.

    :param default: the snapshotter used when none is asked for.
    :param spot: an empty directory, to mount on where nobody sees it.
    """

    def __init__(
        self,
        images: Images,
        content: IContentStore,
        collector: IGarbageCollector,
        snapshotters: Mapping[str, ISnapshotter],
        default: str,
        workers: IWorkers,
        spot: Path,
    ) -> None:
        self._images = images
        self._content = content
        self._collector = collector
        self._snapshotters = snapshotters
        self._default = default
        self._workers = workers
        self._spot = spot

    def _snapshotter(self, name: str) -> ISnapshotter:
        try:
            return self._snapshotters[name]
        except KeyError:
            known = ", ".join(sorted(self._snapshotters))
            raise InvalidArgument("snapshotter", f"{name!r} is not one of {known}") from None

    async def prepare(
        self, namespace: str, key: str, image: str, snapshotter: str | None
    ) -> Rootfs:
        """See :class:`IRootfsSource`."""
        name = snapshotter or self._default
        storage = self._snapshotter(name)
        record, chain_id = await self._images.layers(namespace, image, name)
        release = self._collector.hold(
            [
                Resource(f"snapshot/{name}", f"{SHARED}/{chain_id}"),
                Resource("content", str(record.config)),
            ]
        )
        try:
            body = await self._content.read(record.config)
            config = ImageConfig.parse(record.config, body)
            mounts = await storage.prepare(namespace, key, chain_id or None)
        finally:
            release()
        return Rootfs(tuple(mounts), config.defaults, record.image.name, str(record.manifest), name)

    async def user(self, mounts: Sequence[Mount], user: str, pid: int | None = None) -> User:
        """See :class:`IRootfsSource`."""
        if pid is None:
            files = await self._workers.run(read_files, mounts, _FILES, str(self._spot))
        else:
            files = await self._workers.run(read_process_files, pid, _FILES)
        return await self._workers.run(lookup, user, *files)  # a hostile image's are large

    async def release(self, namespace: str, key: str, snapshotter: str) -> None:
        """See :class:`IRootfsSource`."""
        try:
            await self._snapshotter(snapshotter).remove(namespace, key)
        except NotFound:
            pass
