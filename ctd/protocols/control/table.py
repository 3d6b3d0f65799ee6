"""All of it: every service of the control protocol in one table."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ctd.events.interfaces import IJournal
from ctd.images.interfaces import IImages
from ctd.protocols.control.containers import Containers
from ctd.protocols.control.content import Content
from ctd.protocols.control.daemon import Daemon, IDaemon
from ctd.protocols.control.events import Events
from ctd.protocols.control.gc import GarbageCollection
from ctd.protocols.control.images import Images
from ctd.protocols.control.namespaces import Namespaces
from ctd.protocols.control.processes import Processes
from ctd.protocols.control.rpc import Rpc
from ctd.protocols.control.snapshots import Snapshots
from ctd.protocols.methods import MethodTable
from ctd.runtime.interfaces import IContainers, IProcesses
from ctd.storage.interfaces import IContentStore, IGarbageCollector, ISnapshotter


@attrs.frozen
class Parts:
    """What the methods work on.

    :ivar snapshotters: by name; *snapshotter* is the default one's.
    """

    daemon: IDaemon
    images: IImages
    containers: IContainers
    processes: IProcesses
    journal: IJournal
    content: IContentStore
    snapshotters: Mapping[str, ISnapshotter]
    snapshotter: str
    collector: IGarbageCollector


def control_methods(parts: Parts) -> MethodTable:
    """The methods of the control protocol."""
    table = MethodTable(
        Daemon(parts.daemon, parts.containers, parts.images, parts.content, parts.snapshotters),
        Images(parts.images),
        Containers(parts.containers),
        Processes(parts.processes),
        Events(parts.journal),
        Content(parts.content),
        Snapshots(parts.snapshotters, parts.snapshotter),
        GarbageCollection(parts.collector),
        Namespaces(parts.containers, parts.images),
    )
    table.add(Rpc(table))
    return table
