"""How a container comes to be: its root file system, its bundle, its shim, its first process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from ctd.concurrency import shielded
from ctd.model import Mount, ProcessDefaults, User
from ctd.protocols import shim as words
from ctd.runtime import bundle
from ctd.runtime.host import Host
from ctd.runtime.interfaces import ContainerRequest, IRootfsSource, IShims, ShimSpec
from ctd.runtime.places import Places
from ctd.runtime.records import Record
from ctd.runtime.spec import cgroups_path, container_spec
from ctd.runtime.table import Entry, Table
from ctd.threads import IWorkers


@attrs.frozen
class _Root:
    """What a container is made on.  :ivar config: a client's own configuration, or None."""

    mounts: Sequence[Mount]
    defaults: ProcessDefaults = attrs.field(factory=ProcessDefaults)
    image: str | None = None
    config: Mapping[str, Any] | None = None


class Maker:
    """Makes containers that are recorded as being made; who calls it undoes what it leaves."""

    def __init__(
        self,
        table: Table,
        shims: IShims,
        places: Places,
        rootfs: IRootfsSource,
        workers: IWorkers,
        host: Host,
    ) -> None:
        self._table = table
        self._shims = shims
        self._places = places
        self._rootfs = rootfs
        self._workers = workers
        self._host = host

    async def make(self, entry: Entry) -> None:
        """Bring *entry* from being made to created.  Errors as for ``IContainers.create``."""
        record = entry.record
        root = await self._root(record)
        if root.config is not None:
            config = _own(root.config, record.run)
        else:
            config = await self._generated(record, root)
        # Neither can be called back: what they make must be there before it can be undone.
        await shielded(self._workers.run(bundle.write, self._places, record.run, config))
        spec = ShimSpec(record.run, record.namespace, record.id, record.runtime)
        entry.shim = shim = await shielded(self._shims.fork(spec))
        request = record.request
        state = await shim.create(root.mounts, request.stdio, request.terminal)
        made = attrs.evolve(record, image=root.image, process=config["process"])
        await self._table.complete(entry, made, state.pid)

    async def _root(self, record: Record) -> _Root:
        request = record.request
        if request.image is not None:
            made = await self._rootfs.prepare(
                record.namespace, record.run, request.image, record.snapshotter
            )
            return _Root(made.mounts, made.defaults, made.image)
        if request.rootfs is not None:
            await self._workers.run(bundle.check_rootfs, request.rootfs)
            return _Root([_bind(request.rootfs)])
        assert request.bundle is not None
        config, directory = await self._workers.run(bundle.read, request.bundle)
        return _Root([_bind(directory)], config=config)

    async def _generated(self, record: Record, root: _Root) -> dict[str, Any]:
        request = record.request
        user = await self._user(request, root)
        return container_spec(request, root.defaults, user, record.run, self._host)

    async def _user(self, request: ContainerRequest, root: _Root) -> User:
        wanted = root.defaults.user if request.user is None else request.user
        return await self._rootfs.user(root.mounts, wanted)


def _bind(directory: str) -> Mount:
    return Mount("bind", directory, ("rbind", "rw"))


def _own(config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """A client's configuration, with the root where the shim mounts it and a cgroup of its own."""
    linux = dict(config.get("linux") or {})
    linux["cgroupsPath"] = cgroups_path(run)
    return {**config, "root": {**config["root"], "path": words.ROOTFS}, "linux": linux}
