"""daemon.*"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import attrs
from msgspec import Meta
from zope.interface import Interface

from ctd.images.interfaces import IImages
from ctd.protocols.call import Call
from ctd.protocols.control.results import Result, Time, shaped
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params
from ctd.runtime.interfaces import IContainers
from ctd.stalls import LIMIT, Stalls
from ctd.storage.interfaces import IContentStore, ISnapshotter


@attrs.frozen
class About:
    """The daemon's own facts.

    :ivar platform: ``linux/amd64``.
    :ivar runtime: the default OCI runtime.
    :ivar snapshotter: the default snapshotter.
    :ivar shim_protocol: the versions of the shim protocol it speaks.
    :ivar started_at: RFC 3339, UTC.
    :ivar uptime: in seconds.
    """

    version: str
    pid: int
    root: str
    state: str
    socket: str
    platform: str
    runtime: str
    snapshotter: str
    shim_protocol: tuple[int, ...]
    started_at: str
    uptime: float
    stalls: Stalls


class IDaemon(Interface):
    """The daemon as a whole; the composition root has it."""

    def about() -> About:
        """Its facts now."""


class InfoParams(Params, frozen=True, kw_only=True):
    """Nothing."""


class StallResult(Result, frozen=True, kw_only=True):
    """How long the daemon's event loop could not run, in seconds."""

    longest: Annotated[float, Meta(description="The longest since the start.")]
    over_limit: Annotated[int, Meta(description=f"How many were over {LIMIT:g} s.")]


class Counts(Result, frozen=True, kw_only=True):
    """How many there are, in all namespaces."""

    containers: int
    running: int
    images: int
    blobs: int
    snapshots: int


class Info(Result, frozen=True, kw_only=True):
    """The daemon."""

    version: str
    pid: int
    root: Annotated[str, Meta(description="The directory of persistent state.")]
    state: Annotated[str, Meta(description="The directory of volatile state.")]
    socket: str
    platform: str
    runtime: Annotated[str, Meta(description="The default OCI runtime.")]
    snapshotter: Annotated[str, Meta(description="The default snapshotter.")]
    snapshotters: list[str]
    shim_protocol: Annotated[
        list[int], Meta(description="The versions of the shim protocol spoken.")
    ]
    started_at: Time
    uptime: Annotated[float, Meta(description="In seconds.")]
    stalls: StallResult
    counts: Counts


class Daemon:
    """The daemon's methods."""

    def __init__(
        self,
        daemon: IDaemon,
        containers: IContainers,
        images: IImages,
        content: IContentStore,
        snapshotters: Mapping[str, ISnapshotter],
    ) -> None:
        self._daemon = daemon
        self._containers = containers
        self._images = images
        self._content = content
        self._snapshotters = snapshotters

    @method(
        "daemon.info",
        examples=(
            Example(
                {},
                {
                    "version": "0.1.0",
                    "pid": 812,
                    "root": "/var/lib/ctd",
                    "state": "/run/ctd",
                    "socket": "/run/ctd/ctd.sock",
                    "platform": "linux/amd64",
                    "runtime": "runc",
                    "snapshotter": "overlayfs",
                    "snapshotters": ["native", "overlayfs"],
                    "shim_protocol": [1],
                    "started_at": "2026-01-02T03:04:05.678901Z",
                    "uptime": 12.5,
                    "stalls": {"longest": 0.012, "over_limit": 0},
                    "counts": {
                        "containers": 2,
                        "running": 1,
                        "images": 1,
                        "blobs": 3,
                        "snapshots": 2,
                    },
                },
            ),
        ),
    )
    async def info(self, call: Call, params: InfoParams) -> Info:
        """The daemon: version, directories, defaults, how much it holds, how well it runs."""
        containers = await self._containers.list(None)
        images = await self._images.list(None)
        blobs = await self._content.list()
        snapshots = [await s.list(None) for s in self._snapshotters.values()]
        about = self._daemon.about()
        facts = attrs.asdict(about, recurse=False)
        facts |= {
            "stalls": attrs.asdict(about.stalls),
            "shim_protocol": list(about.shim_protocol),
            "snapshotters": sorted(self._snapshotters),
            "counts": {
                "containers": len(containers),
                "running": sum(c.status == "running" for c in containers),
                "images": len(images),
                "blobs": len(blobs),
                "snapshots": sum(map(len, snapshots)),
            },
        }
        return shaped(facts, Info)
