"""What the daemon's side of containers is tested on: a world of shims that outlives daemons.

:class:`World` is what is on the machine: directories, shims, exit records, root
file systems.  A :class:`FakeShims` is one daemon's view of it, a :class:`Daemon`
the whole of a daemon's runtime on a database that is kept between daemons.
Each step of any of them goes through one :class:`Stage`, where it can be cut
off, fail, or be held up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.database import NewEvent, migrate
from ctd.errors import AlreadyExists, CtdError, FailedPrecondition, NotFound, Unavailable
from ctd.model import Mount, ProcessDefaults, User
from ctd.runtime import bundle
from ctd.runtime.containers import Containers
from ctd.runtime.errors import ShimGone
from ctd.runtime.host import Host
from ctd.runtime.interfaces import (
    INIT,
    ContainerRequest,
    ExecRequest,
    Exit,
    IRootfsSource,
    IShim,
    IShimListener,
    IShims,
    ProcessState,
    Rootfs,
    ShimSpec,
    Stdio,
)
from ctd.runtime.making import Maker
from ctd.runtime.oci import find_runtime
from ctd.runtime.places import Places
from ctd.runtime.processes import Processes
from ctd.runtime.schema import SCHEMA
from ctd.runtime.table import Table
from ctd.threads import IWorkers
from tests.unit.storage.stage import Power, StagedDatabase

T = TypeVar("T")

NS = "default"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
AT = "2026-01-02T03:04:05.000000Z"
STARTED = "2026-01-02T03:04:06.000000Z"
#: What wedged shims were asked: if it were collected its coroutines would go on.
_NEVER: list[Deferred[Any]] = []
ENDED = "2026-01-02T03:04:07.000000Z"


def request(id: str = "web", **fields: Any) -> ContainerRequest:
    """A container of the image ``alpine``."""
    return ContainerRequest(NS, id, image="alpine", args=("sleep", "9"), **fields)


def exec_request(id: str = "sh", container: str = "web", **fields: Any) -> ExecRequest:
    """A process in ``web``."""
    return ExecRequest(NS, container, id, ("true",), **fields)


class Stage(Power):
    """Power whose steps can be held up too.

    :ivar hold_at: the number of the step that is held up until :meth:`release`.
    :ivar late: whether what is held up is done at the release only, or at once.
    :ivar trace: the names of the steps taken.
    """

    def __init__(self, cut_at: int | None = None, **how: Any) -> None:
        super().__init__(cut_at, **how)
        self.hold_at: int | None = None
        self.late = False
        self.trace: list[str] = []
        self._held: list[Callable[[], None]] = []
        self._holds_database = False

    def step(self, work: Callable[[], T]) -> Deferred[T]:
        self.trace.append(work.__qualname__)
        transaction = "transact" in work.__qualname__
        behind = transaction and self._holds_database  # transactions end in their order
        if self.steps + 1 != self.hold_at and not behind:
            return super().step(work)
        self.steps += 1
        self._holds_database |= transaction
        done: Deferred[T] = Deferred(lambda _: None)
        result: list[T | Failure] = []

        def do() -> None:
            try:
                result.append(work())
            except Exception:  # noqa: BLE001 (for whoever waits)
                result.append(Failure())

        def finish() -> None:
            if not result:
                do()
            if not done.called:
                done.callback(result[0])  # type: ignore[arg-type]

        if not self.late and not behind:
            do()
        self._held.append(finish)
        return done

    @property
    def holds(self) -> bool:
        """Whether a step is held up."""
        return bool(self._held)

    def release(self) -> None:
        """Let what is held up go on."""
        held, self._held = self._held, []
        self._holds_database = False
        for finish in held:
            finish()


class RuntimeDatabase(StagedDatabase):
    """A database with the runtime's tables, kept while daemons come and go."""

    def __init__(self) -> None:
        super().__init__()
        migrate(self.connection, ":memory:", [SCHEMA])


@attrs.define(eq=False)
class LiveShim:
    """A shim as it is on the machine, whatever daemons do.

    :ivar wedged: it lives and answers nothing.
    :ivar deaf: it lives and cannot be connected to.
    :ivar busy: processes that it is being made to run still, by its former connection.
    """

    run: str
    pid: int
    processes: dict[str, ProcessState] = attrs.field(factory=dict)
    wedged: bool = False
    deaf: bool = False
    busy: dict[str, ProcessState] = attrs.field(factory=dict)


class World:
    """The machine.

    :ivar directories: the runs that have any.
    :ivar records: the exit records on disk.
    :ivar rootfs: the root file systems, by namespace, key and snapshotter.
    :ivar refuse: what the method of that name of every shim raises.
    :ivar unkillable: runs of which something does not end.
    :ivar ends_on_kill: whether a SIGKILL is followed by an exit.
    """

    def __init__(self) -> None:
        self.shims: dict[str, LiveShim] = {}
        self.directories: set[str] = set()
        self.records: dict[str, dict[str, Exit]] = {}
        self.rootfs: set[tuple[str, str, str | None]] = set()
        self.images = {"alpine"}
        self.refuse: dict[str, CtdError] = {}
        self.unkillable: set[str] = set()
        self.ends_on_kill = True
        self.listeners: list[FakeShims] = []
        self.signals: list[tuple[str, str, int, bool]] = []
        self._pid = 1000

    def pid(self) -> int:
        """A new process's."""
        self._pid += 1
        return self._pid

    def nothing_left(self) -> bool:
        """Whether no trace of any container is on the machine."""
        return not (self.shims or self.directories or self.records or self.rootfs)

    def end(self, run: str, process: str = INIT, status: int = 0) -> None:
        """A process ends: its shim records that, then tells whoever listens."""
        shim = self.shims[run]
        state = shim.processes[process]
        if state.exit is not None:
            return
        on_disk = Exit(status, "exited", ENDED, state.started_at)
        self.records.setdefault(run, {})[process] = on_disk
        told = attrs.evolve(on_disk, started_at=None)
        shim.processes[process] = attrs.evolve(state, status="stopped", exit=told)
        if process == INIT:
            for other in list(shim.processes):
                self.end(run, other, 137)
        for daemon in list(self.listeners):
            daemon.tell(run, lambda to: to.exited(run, process, told))

    def kill_shim(self, run: str) -> None:
        """The shim is killed; its processes run on."""
        del self.shims[run]
        for daemon in list(self.listeners):
            daemon.died(run)

    def hang_up(self, run: str) -> None:
        """Every connection to the shim is lost, and made again only by :meth:`reconnect`."""
        for daemon in self.listeners:
            if run in daemon.attached:
                daemon.attached[run].connected = False

    def reconnect(self, run: str) -> None:
        """The connections are there again."""
        for daemon in self.listeners:
            if run in daemon.attached:
                daemon.attached[run].connected = True
                states = tuple(self.shims[run].processes.values())
                daemon.tell(run, lambda to, states=states: to.reconnected(run, states))

    def reboot(self) -> None:
        """Everything volatile is gone: shims, processes, mounts."""
        self.shims.clear()
        self.directories = set(self.records)


@implementer(IShims)
class FakeShims:
    """One daemon's view of the world's shims.  :ivar attached: those it speaks with."""

    def __init__(self, world: World, stage: Stage) -> None:
        self.world = world
        self.stage = stage
        self.attached: dict[str, FakeShim] = {}
        self._listener: IShimListener | None = None
        world.listeners.append(self)

    def listen(self, listener: IShimListener) -> None:
        self._listener = listener

    def tell(self, run: str, what: Callable[[Any], None]) -> None:
        """Tell the listener, if this daemon is connected to the shim."""
        shim = self.attached.get(run)
        if shim is not None and shim.connected:
            what(self._listener)

    def died(self, run: str) -> None:
        """A shim has died."""
        if self.attached.pop(run, None) is not None and self._listener is not None:
            self._listener.died(run)

    async def fork(self, spec: ShimSpec) -> IShim:
        def fork() -> IShim:
            if "fork" in self.world.refuse:
                raise self.world.refuse["fork"]
            assert spec.run in self.world.directories
            assert spec.run not in self.world.shims
            live = self.world.shims[spec.run] = LiveShim(spec.run, self.world.pid())
            return self._attached(live)

        return await self.stage.step(fork)

    def _attached(self, live: LiveShim) -> IShim:
        shim = self.attached[live.run] = FakeShim(self.world, self.stage, live)
        return shim

    async def attach(self, run: str) -> IShim:
        def attach() -> IShim:
            if run in self.attached:
                return self.attached[run]
            if run not in self.world.shims:
                raise ShimGone(run, "there is none")
            if self.world.shims[run].deaf:
                raise Unavailable(f"shim {run}", "it does not answer")
            return self._attached(self.world.shims[run])

        return await self.stage.step(attach)

    async def found(self) -> Sequence[str]:
        return await self.stage.step(lambda: sorted(self.world.directories))

    async def records(self, run: str) -> Mapping[str, Exit]:
        return await self.stage.step(lambda: dict(self.world.records.get(run, {})))

    async def end(self, run: str, runtime: str | None) -> None:
        def end() -> None:
            self.attached.pop(run, None)
            if run in self.world.unkillable:
                raise self.world.refuse["end"]
            self.world.shims.pop(run, None)

        await self.stage.step(end)

    async def destroy(self, run: str, runtime: str | None = None) -> None:
        await self.end(run, runtime)

        def destroy() -> None:
            self.world.directories.discard(run)
            self.world.records.pop(run, None)

        await self.stage.step(destroy)


@implementer(IShim)
class FakeShim:
    """A connection to a shim.  :ivar connected: False while it is lost."""

    def __init__(self, world: World, stage: Stage, live: LiveShim) -> None:
        self.run = live.run
        self.pid = live.pid
        self.connected = True
        self._world = world
        self._stage = stage
        self._live = live

    async def _ask(self, method: str, work: Callable[[], T]) -> T:
        def asked() -> T:
            if self._world.shims.get(self.run) is not self._live or not self.connected:
                raise ShimGone(self.run, "the connection is lost")
            if method in self._world.refuse:
                raise self._world.refuse[method]
            return work()

        asked.__qualname__ = f"shim.{method}"
        if self._live.wedged:
            never: Deferred[T] = Deferred()
            _NEVER.append(never)
            return await never
        return await self._stage.step(asked)

    def _process(self, process: str) -> ProcessState:
        try:
            return self._live.processes[process]
        except KeyError:
            raise NotFound("process", process) from None

    async def create(self, mounts: Sequence[Mount], stdio: Stdio, terminal: bool) -> ProcessState:
        def create() -> ProcessState:
            state = ProcessState(INIT, "created", self._world.pid())
            return self._live.processes.setdefault(INIT, state)

        return await self._ask("create", create)

    async def start(self) -> ProcessState:
        def start() -> ProcessState:
            state = self._process(INIT)
            if state.started_at is None:
                state = attrs.evolve(state, status="running", started_at=STARTED)
            self._live.processes[INIT] = state
            return state

        return await self._ask("start", start)

    async def exec(
        self, process: str, spec: Mapping[str, Any], stdio: Stdio, terminal: bool
    ) -> ProcessState:
        def exec() -> ProcessState:
            if self._process(INIT).status != "running":
                raise FailedPrecondition("process", process, "the container does not run")
            state = ProcessState(process, "running", self._world.pid(), STARTED)
            return self._live.processes.setdefault(process, state)

        return await self._ask("exec", exec)

    async def kill(self, process: str, signal: int, all: bool = False) -> None:
        def kill() -> None:
            if self._process(process).exit is not None:
                raise FailedPrecondition("process", process, "it does not run")
            self._world.signals.append((self.run, process, signal, all))
            if signal == 9 and self._world.ends_on_kill:
                self._world.end(self.run, process, 137)

        await self._ask("kill", kill)

    async def close_stdin(self, process: str) -> None:
        await self._ask("close_stdin", lambda: self._process(process))

    async def state(self) -> Sequence[ProcessState]:
        return await self._ask("state", lambda: tuple(self._live.processes.values()))

    async def delete(self, process: str) -> None:
        def delete() -> None:
            if process in self._live.busy:  # what concerns one process is done in order
                self._live.processes[process] = self._live.busy.pop(process)
            state = self._live.processes.get(process)
            if state is not None and state.status == "running":
                raise FailedPrecondition("process", process, "it runs")
            self._live.processes.pop(process, None)

        await self._ask("delete", delete)

    async def shutdown(self) -> None:
        def shutdown() -> None:
            if INIT in self._live.processes:
                raise FailedPrecondition("process", INIT, "it is there")
            self._world.kill_shim(self.run)

        await self._ask("shutdown", shutdown)


@implementer(IRootfsSource)
class FakeRootfs:
    """Root file systems without files."""

    def __init__(self, world: World, stage: Stage) -> None:
        self._world = world
        self._stage = stage

    async def prepare(
        self, namespace: str, key: str, image: str, snapshotter: str | None
    ) -> Rootfs:
        def prepare() -> Rootfs:
            if image not in self._world.images:
                raise NotFound("image", image)
            made = (namespace, key, snapshotter)
            if made in self._world.rootfs:
                raise AlreadyExists("snapshot", key)
            self._world.rootfs.add(made)
            mounts = (Mount("bind", f"/snapshots/{key}", ("rbind",)),)
            defaults = ProcessDefaults(args=("/bin/sh",))
            name = f"docker.io/library/{image}:latest"
            return Rootfs(mounts, defaults, name, "sha256:0", snapshotter or "overlayfs")

        return await self._stage.step(prepare)

    async def user(self, mounts: Sequence[Mount], user: str, pid: int | None = None) -> User:
        def look_up() -> User:
            if "user" in self._world.refuse:
                raise self._world.refuse["user"]
            return User(0, 0, (), "/root")

        return await self._stage.step(look_up)

    async def release(self, namespace: str, key: str, snapshotter: str) -> None:
        await self._stage.step(lambda: self._world.rootfs.discard((namespace, key, snapshotter)))


@implementer(IWorkers)
class FakeWorkers:
    """Workers whose work is done on the fake machine."""

    def __init__(self, world: World, stage: Stage) -> None:
        self._world = world
        self._stage = stage

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def work() -> Any:
            if function is find_runtime:
                return f"/usr/sbin/{args[0]}"
            if function is bundle.write:
                self._world.directories.add(args[1])
                return None
            return function(*args, **kwargs)

        work.__qualname__ = function.__qualname__
        return await self._stage.step(work)


class Daemon:
    """The runtime of one daemon."""

    def __init__(
        self,
        world: World,
        database: RuntimeDatabase,
        clock: Clock | None = None,
        stage: Stage | None = None,
        boot_id: str = "boot",
    ) -> None:
        self.world = world
        self.clock = clock or Clock()
        self.stage = stage or Stage()
        self.database = database
        database.power = self.stage
        for former in world.listeners:
            former.attached.clear()
        world.listeners.clear()
        self.shims = FakeShims(world, self.stage)
        self.rootfs = FakeRootfs(world, self.stage)
        self.table = Table(database)  # type: ignore[arg-type]
        workers, host = FakeWorkers(world, self.stage), Host()
        places = Places(Path("/root"), Path("/state"))
        maker = Maker(self.table, self.shims, places, self.rootfs, workers, host)
        self.containers = Containers(
            self.clock,
            self.table,
            self.shims,
            places,
            self.rootfs,
            workers,
            maker,
            runtime="runc",
            snapshotter="overlayfs",
            run_ids=lambda: f"{world.pid():012x}",
            boot_id=boot_id,
            now=lambda: NOW,
        )
        self.processes = Processes(self.table, places, self.rootfs, lambda: NOW, host)

    def run(self, id: str = "web") -> str:
        """The run of a container."""
        return self.table.find(NS, id).run


def begin(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """Start a coroutine."""
    return Deferred.fromCoroutine(work)


def rows(connection: sqlite3.Connection, sql: str) -> list[tuple[Any, ...]]:
    """What a query gives."""
    return [tuple(row) for row in connection.execute(sql)]


def told(events: Sequence[NewEvent], prefix: str = "") -> list[str]:
    """The topics and subjects of events, in order."""
    return [f"{e.topic} {e.subject}" for e in events if e.topic.startswith(prefix)]
