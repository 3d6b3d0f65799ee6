"""snapshots.*"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from ctd.errors import NotFound
from ctd.model import rfc3339
from ctd.protocols.call import Call
from ctd.protocols.control.results import Done, ListParams, Page, Result, Time, paged, shaped
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params
from ctd.storage.interfaces import ISnapshotter, SnapshotInfo

Snapshotter = Annotated[
    str | None, Meta(description="Whose snapshots; null: the default snapshotter's.")
]
_EXAMPLE = {
    "namespace": "default",
    "key": "web",
    "kind": "active",
    "parent": "sha256:" + 64 * "a",
    "created_at": "2026-01-02T03:04:05.678901Z",
    "labels": {},
}


class Snapshot(Result, frozen=True, kw_only=True):
    """A root file system, or a layer of one."""

    namespace: Annotated[str, Meta(description="Empty for layers: all namespaces share them.")]
    key: Annotated[str, Meta(description="Its key, or its name if it is committed.")]
    kind: Annotated[str, Meta(description="active, view or committed.")]
    parent: str | None
    created_at: Time
    labels: dict[str, str]


class SnapshotPage(Page, frozen=True, kw_only=True):
    """Some snapshots, by namespace and key."""

    items: list[Snapshot]


class MountResult(Result, frozen=True, kw_only=True):
    """One mount(8)."""

    type: str
    source: str
    options: list[str]
    target: Annotated[str, Meta(description="Where inside the root; empty: the root itself.")]


class Mounts(Result, frozen=True, kw_only=True):
    """What to mount, one on the other."""

    mounts: list[MountResult]


class SnapshotUsage(Result, frozen=True, kw_only=True):
    """What a snapshot holds beyond its parent."""

    size: Annotated[int, Meta(description="Bytes on disk.")]
    inodes: int


class SnapshotParams(Params, frozen=True, kw_only=True):
    """Which snapshot."""

    key: Annotated[str, Meta(min_length=1, max_length=4096, description="A key or a name.")]
    snapshotter: Snapshotter = None


class SnapshotListParams(ListParams, frozen=True, kw_only=True):
    """Which snapshots."""

    snapshotter: Snapshotter = None
    all_namespaces: Annotated[bool, Meta(description="And the layers that all share.")] = False


class Snapshots:
    """The methods of snapshots.

    :param snapshotters: by name.
    :param default: the name of the one used when none is asked for.
    """

    def __init__(self, snapshotters: Mapping[str, ISnapshotter], default: str) -> None:
        self._snapshotters = snapshotters
        self._default = default

    @method("snapshots.list", examples=(Example({}, {"items": [_EXAMPLE], "next": None}),))
    async def list(self, call: Call, params: SnapshotListParams) -> SnapshotPage:
        """The snapshots of a namespace, by key."""
        namespace = None if params.all_namespaces else params.namespace
        found = await self._chosen(params.snapshotter).list(namespace)
        items, next = paged(found, params, lambda s: (s.namespace, s.key), _snapshot)
        return SnapshotPage(items=items, next=next)

    @method("snapshots.info", errors=("not_found",), examples=(Example({"key": "web"}, _EXAMPLE),))
    async def info(self, call: Call, params: SnapshotParams) -> Snapshot:
        """A snapshot's record."""
        chosen = self._chosen(params.snapshotter)
        return _snapshot(await chosen.info(params.namespace, params.key))

    @method(
        "snapshots.usage",
        errors=("not_found",),
        examples=(Example({"key": "web"}, {"size": 8192, "inodes": 2}),),
    )
    async def usage(self, call: Call, params: SnapshotParams) -> SnapshotUsage:
        """What a snapshot holds beyond its parent."""
        chosen = self._chosen(params.snapshotter)
        return shaped(await chosen.usage(params.namespace, params.key), SnapshotUsage)

    @method(
        "snapshots.mounts",
        errors=("not_found",),
        examples=(
            Example(
                {"key": "web"},
                {
                    "mounts": [
                        {
                            "type": "bind",
                            "source": "/var/lib/ctd/snapshots/native/7/fs",
                            "options": ["rbind", "rw"],
                            "target": "",
                        }
                    ]
                },
            ),
        ),
    )
    async def mounts(self, call: Call, params: SnapshotParams) -> Mounts:
        """How to mount an active snapshot or a view, the same each time."""
        chosen = self._chosen(params.snapshotter)
        mounts = await chosen.mounts(params.namespace, params.key)
        return shaped({"mounts": mounts}, Mounts)

    @method(
        "snapshots.remove",
        errors=("not_found", "failed_precondition"),
        examples=(Example({"key": "web"}, {}),),
    )
    async def remove(self, call: Call, params: SnapshotParams) -> Done:
        """Remove a snapshot and its files; nothing may lie on it, and it must not be mounted."""
        await self._chosen(params.snapshotter).remove(params.namespace, params.key)
        return Done()

    def _chosen(self, name: str | None) -> ISnapshotter:
        chosen = self._snapshotters.get(name if name is not None else self._default)
        if chosen is None:
            raise NotFound("snapshotter", str(name))
        return chosen


def _snapshot(info: SnapshotInfo) -> Snapshot:
    return Snapshot(
        namespace=info.namespace,
        key=info.key,
        kind=info.kind.value,
        parent=info.parent,
        created_at=rfc3339(info.created_at),
        labels=dict(info.labels),
    )
