"""The composition root: makes every part, gives each what it needs, orders start and stop.

The only module that sees all parts.  ``twistd ctd`` comes in at
:func:`makeService`, which picks the reactor; nothing below does.
"""

from __future__ import annotations

import fcntl
import grp
import os
import resource
import secrets
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

import ctd
from ctd.concurrency import settled
from ctd.config import Config
from ctd.database import Database
from ctd.errors import CtdError, InvalidArgument
from ctd.events.journal import SCHEMA as EVENTS
from ctd.events.journal import Journal
from ctd.fetch.connections import Connections
from ctd.fetch.credentials import DockerCredentials
from ctd.fetch.registry import Registry
from ctd.images.download import Downloads
from ctd.images.pull import Puller
from ctd.images.records import SCHEMA as IMAGES
from ctd.images.rootfs import ImageRootfs
from ctd.images.service import Images
from ctd.model import Platform, rfc3339, utcnow
from ctd.protocols.control.daemon import About, IDaemon
from ctd.protocols.control.table import Parts, control_methods
from ctd.protocols.hangup import HangUps
from ctd.protocols.listen import ControlSocket
from ctd.protocols.peers import Access
from ctd.protocols.server import ControlFactory
from ctd.protocols.shim import VERSIONS as SHIM_PROTOCOLS
from ctd.runtime.containers import Containers
from ctd.runtime.host import host
from ctd.runtime.making import Maker
from ctd.runtime.places import Places
from ctd.runtime.processes import Processes
from ctd.runtime.schema import SCHEMA as RUNTIME
from ctd.runtime.shims import Shims
from ctd.runtime.table import Table
from ctd.runtime.template import Template
from ctd.stalls import StallMeter
from ctd.storage.content import ContentStore
from ctd.storage.disk import boot_id
from ctd.storage.gc import GarbageCollector
from ctd.storage.schema import SCHEMA as STORAGE
from ctd.storage.snapshots.native import NativeSnapshotter
from ctd.storage.snapshots.overlay import OverlaySnapshotter
from ctd.storage.sync import Syncer
from ctd.storage.unpack.pool import WorkerPool
from ctd.storage.unpack.unpacker import Unpacker
from ctd.threads import Workers

#: Threads for blocking work; they wait for disks more than they compute.
THREADS = 8


@attrs.define(auto_exc=True)
class DirectoryInUse(CtdError):
    """Another daemon works on this root or state directory: its containers are there."""

    kind = "failed_precondition"
    directory: str

    def __str__(self) -> str:
        return f"another ctd works on {self.directory}: stop it, or give another --root and --state"


class Options(usage.Options):
    """Options of ``twistd ctd``."""

    optParameters = [
        ["root", None, "/var/lib/ctd", "Directory for what must last."],
        ["state", None, "/run/ctd", "Directory for what is gone after a reboot."],
        ["socket", None, None, "The control socket.  [default: STATE/ctd.sock]"],
        ["group", None, None, "Group that may use the control socket, beside root."],
        ["runtime", None, "runc", "OCI runtime: a name on PATH, or a path."],
        ["snapshotter", None, "overlayfs", "Snapshotter used when none is asked for."],
        ["workers", None, None, "Unpack worker processes.  [default: one a core]", int],
        ["downloads", None, 6, "Downloads at a time.", int],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["insecure-registry"] = []

    def opt_insecure_registry(self, host: str) -> None:
        """Speak plain HTTP to this registry (HOST[:PORT]).  Can be repeated."""
        self["insecure-registry"].append(host)

    def config(self) -> Config:
        """These options as a configuration."""
        state = Path(self["state"]).absolute()
        socket = self["socket"]
        given: dict[str, Any] = {"workers": self["workers"]} if self["workers"] else {}
        return Config(
            root=Path(self["root"]).absolute(),
            state=state,
            socket=Path(socket).absolute() if socket else state / "ctd.sock",
            group=self["group"],
            runtime=self["runtime"],
            snapshotter=self["snapshotter"],
            downloads=self["downloads"],
            insecure_registries=tuple(self["insecure-registry"]),
            **given,
        )


@implementer(IDaemon)
class Daemon(Service):
    """One daemon: its parts, made in the order they need one another.

    Starting: directories and the lock, the database, what a crash has left,
    the shims of containers that run, and last the control socket, so that a
    client never sees a state that is not yet put right.  Stopping goes the
    other way; containers run on.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        self._config = config
        self._starting: Deferred[None] | None = None
        self._started_at = utcnow()
        self._monotonic = time.monotonic()
        self._stalls = StallMeter(reactor, time.monotonic)
        self._closers: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = []

    def startService(self) -> None:
        """Begin to start; a failure ends the process with status 1."""
        super().startService()  # type: ignore[no-untyped-call]
        self._reactor.callWhenRunning(_stop_on_sigterm, self._reactor)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(CtdError):
            self._log.critical("ctd cannot start: {error}", error=failure.value)
        else:
            self._log.failure("ctd cannot start", failure)
        # twistd ends with status 0 whatever happened; supervisors must see this.
        self._reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
        self._reactor.callWhenRunning(self._reactor.stop)  # services start before it runs

    def stopService(self) -> Deferred[None]:
        """Stop what was started, last things first; containers run on."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await settled(self._starting)
        while self._closers:
            what, close = self._closers.pop()
            try:
                await close()
            except Exception:  # noqa: BLE001 (the others are closed all the same)
                self._log.failure("stopping {what}", what=what)

    def _later(self, what: str, close: Callable[[], Any]) -> None:
        """Have *close* called when the daemon stops, before all that was given earlier."""

        async def closing() -> None:
            result = close()
            if result is not None:
                await result

        self._closers.append((what, closing))

    def about(self) -> About:
        """See :class:`ctd.protocols.control.daemon.IDaemon`."""
        config = self._config
        return About(
            version=ctd.__version__,
            pid=os.getpid(),
            root=str(config.root),
            state=str(config.state),
            socket=str(config.socket),
            platform=str(Platform.here()),
            runtime=config.runtime,
            snapshotter=config.snapshotter,
            shim_protocol=SHIM_PROTOCOLS,
            started_at=rfc3339(self._started_at),
            uptime=time.monotonic() - self._monotonic,
            stalls=self._stalls.stalls,
        )

    async def _start(self) -> None:
        config, reactor = self._config, self._reactor
        gid = _group(config.group)
        self._take_directories()
        _allow_descriptors()
        self._stalls.startService()
        self._later("stall meter", self._stalls.stopService)
        workers = Workers(reactor, "ctd-work", THREADS)
        workers.start()
        self._later("workers", workers.stop)
        journal = Journal(utcnow)
        schemas = [EVENTS, STORAGE, IMAGES, RUNTIME]
        database = Database(reactor, config.root / "metadata.db", schemas, journal)
        await database.open()
        journal.use(database)
        self._later("database", database.close)
        storage = await self._storage(database, workers)
        images = self._images(database, workers, storage)
        rootfs = ImageRootfs(
            images,
            storage.content,
            storage.collector,
            storage.snapshotters,
            config.snapshotter,
            workers,
            self._spot(),
        )
        containers, processes = await self._runtime(database, workers, rootfs)
        parts = Parts(
            daemon=self,
            images=images,
            containers=containers,
            processes=processes,
            journal=journal,
            content=storage.content,
            snapshotters=storage.snapshotters,
            snapshotter=config.snapshotter,
            collector=storage.collector,
        )
        hangups = HangUps(reactor)
        factory = ControlFactory(control_methods(parts), reactor, hangups, Access(gid))
        socket = ControlSocket(reactor, config.socket, factory, gid)
        socket.startService()
        self._later("control socket", socket.stopService)
        self._log.info("ctd {version} listens on {path}", version=ctd.__version__,
                       path=config.socket)  # fmt: skip
        await storage.collector.collect()

    def _take_directories(self) -> None:
        config = self._config
        for directory in (config.root, config.state):
            directory.mkdir(0o700, parents=True, exist_ok=True)
            lock = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._later("directory", partial(os.close, lock))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DirectoryInUse(str(directory)) from None

    def _spot(self) -> Path:
        spot = self._config.state / "peek"
        spot.mkdir(0o700, exist_ok=True)
        return spot

    async def _storage(self, database: Database, workers: Workers) -> _Storage:
        root = self._config.root
        content = ContentStore(database, workers, root, utcnow)
        syncer = Syncer(workers, root)
        self._later("syncer", syncer.close)
        snapshotters: dict[str, Any] = {
            kind.name: kind(database, workers, root, utcnow, syncer.sync)
            for kind in (OverlaySnapshotter, NativeSnapshotter)
        }
        if self._config.snapshotter not in snapshotters:
            known = ", ".join(sorted(snapshotters))
            raise InvalidArgument("--snapshotter", f"is one of {known}")
        await content.recover()
        for snapshotter in snapshotters.values():
            await snapshotter.recover()
        collector = GarbageCollector(database, content, snapshotters)
        pool = WorkerPool(self._reactor, self._config.workers)
        pool.start()
        self._later("unpack workers", pool.stop)
        return _Storage(content, snapshotters, collector, Unpacker(snapshotters, pool))

    def _images(self, database: Database, workers: Workers, storage: _Storage) -> Images:
        config = self._config
        registry = Registry(
            self._reactor,
            Connections(self._reactor),
            DockerCredentials(workers, _docker_config()),
            config.insecure_registries,
        )
        self._later("registry connections", registry.close)
        downloads = Downloads(self._reactor, registry, storage.content, config.downloads)
        puller = Puller(registry, storage.content, storage.unpacker, storage.collector, downloads)
        return Images(
            database, storage.content, storage.collector, puller, config.snapshotter, utcnow
        )

    async def _runtime(
        self, database: Database, workers: Workers, rootfs: ImageRootfs
    ) -> tuple[Containers, Processes]:
        config, reactor = self._config, self._reactor
        places = Places(config.root, config.state)
        template = Template(reactor, reactor)
        template.start()
        self._later("template", template.stop)
        shims = Shims(reactor, template, places, workers)
        self._later("shims", shims.close)
        table = Table(database)
        here = await workers.run(host)
        maker = Maker(table, shims, places, rootfs, workers, here)
        containers = Containers(
            reactor,
            table,
            shims,
            places,
            rootfs,
            workers,
            maker,
            runtime=config.runtime,
            snapshotter=config.snapshotter,
            run_ids=lambda: secrets.token_hex(6),
            boot_id=boot_id(),
            now=utcnow,
        )
        self._later("containers", containers.stop)
        await containers.recover()
        return containers, Processes(table, places, rootfs, utcnow, here)


@attrs.frozen
class _Storage:
    content: ContentStore
    snapshotters: dict[str, Any]
    collector: GarbageCollector
    unpacker: Unpacker


def _stop_on_sigterm(reactor: Any) -> None:
    """Have SIGTERM end the daemon with status 0.

    Twisted's own handler stops the reactor as well, and then has twistd die of
    the signal, which looks to a supervisor like a daemon that did not end well.
    """
    signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(reactor.stop))


def _allow_descriptors() -> None:
    """Take all the descriptors that may be had: each container costs three."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _group(name: str | None) -> int | None:
    """The group's number.  :raise InvalidArgument: there is no such group."""
    if name is None:
        return None
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument("--group", f"there is no group {name!r}") from None


def _docker_config() -> Path:
    """Where docker, podman and skopeo look for credentials too."""
    directory = os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker"
    return Path(directory) / "config.json"


def makeService(options: Options) -> Service:
    """What ``twistd ctd`` runs.

    :raise usage.UsageError: something this machine lacks; said before twistd goes on.
    """
    from twisted.internet import reactor

    if os.geteuid() != 0:
        raise usage.UsageError("ctd runs containers and so needs root")
    return Daemon(reactor, options.config())
