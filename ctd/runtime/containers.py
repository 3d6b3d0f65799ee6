"""Containers: what :class:`ctd.runtime.interfaces.IContainers` promises."""

from __future__ import annotations

import signal as signals
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredSemaphore,
    TimeoutError,
)
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ctd.concurrency import holding, settled, shielded, within
from ctd.errors import (
    CtdError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ctd.model import rfc3339
from ctd.runtime import lifecycle, reattach, views
from ctd.runtime.checks import check_container
from ctd.runtime.errors import ShimGone
from ctd.runtime.interfaces import (
    INIT,
    Container,
    ContainerRequest,
    Exit,
    IContainers,
    IRootfsSource,
    IShim,
    IShimListener,
    IShims,
    ProcessState,
)
from ctd.runtime.lifecycle import Created, Creating, Deleting, Running, Stopped
from ctd.runtime.making import Maker
from ctd.runtime.oci import find_runtime
from ctd.runtime.places import Places
from ctd.runtime.records import Record
from ctd.runtime.table import Entry, Table
from ctd.threads import IWorkers

#: How many containers are put right at a time after a start.
AT_A_TIME = 128

#: How long the start waits for that, in seconds; what takes longer goes on beside the service.
GRACE = 0.5

#: How long a killed container may take to end before its shim is ended too, in seconds.
KILL_SECONDS = 10.0

#: What may pass: a step that fails with it is taken again.
_LATER = (ShimGone, Unavailable, DeadlineExceeded, ResourceExhausted, OSError, sqlite3.Error)

#: The pause before a shim that does not answer is asked again: doubled up to a limit, in seconds.
PAUSE = 0.5
LONGEST_PAUSE = 30.0


@implementer(IContainers, IShimListener)
class Containers:
    """The containers of one daemon.

    :param runtime: the OCI runtime used when none is asked for.
    :param snapshotter: the snapshotter used when none is asked for.
    :param run_ids: makes the ids of runs: 12 hex digits.
    :param boot_id: of this boot of the machine.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        table: Table,
        shims: IShims,
        places: Places,
        rootfs: IRootfsSource,
        workers: IWorkers,
        maker: Maker,
        *,
        runtime: str,
        snapshotter: str,
        run_ids: Callable[[], str],
        boot_id: str,
        now: Callable[[], datetime],
    ) -> None:
        self._clock = clock
        self._table = table
        self._shims = shims
        self._places = places
        self._rootfs = rootfs
        self._workers = workers
        self._maker = maker
        self._runtime = runtime
        self._snapshotter = snapshotter
        self._run_ids = run_ids
        self._boot_id = boot_id
        self._now = now
        self._background: set[Deferred[None]] = set()
        shims.listen(self)

    # Starting and stopping.

    async def recover(self) -> None:
        """Put every container right: attach to its shim, or record what became of it.

        Waits for that at most :data:`GRACE`; what takes longer goes on.
        """
        await self._table.load()
        found = await self._shims.found()
        records = [entry.record for entry in self._table]
        unfinished = {entry.run for entry in self._table if not finished(entry)}
        slots = DeferredSemaphore(AT_A_TIME)
        steps = reattach.plan(records, found, self._boot_id, unfinished)
        work = [self._begin(self._in_slot(slots, step), "recovery") for step in steps]
        await within(self._clock, GRACE, work)

    async def stop(self) -> None:
        """End what goes on beside the calls; containers run on."""
        while self._background:
            background = list(self._background)
            for work in background:
                work.cancel()
            for work in background:
                await settled(work)

    def _begin(self, work: Coroutine[Any, Any, None], what: str) -> Deferred[None]:
        running = Deferred.fromCoroutine(work)
        self._background.add(running)

        def over(result: Failure | None) -> None:
            self._background.discard(running)
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("{what} failed", result, what=what)

        running.addBoth(over)
        return running

    async def _in_slot(self, slots: DeferredSemaphore, step: reattach.Step) -> None:
        async with holding(slots):
            done = await self._take(step)
        if not done:  # its shim does not answer, or does not end: others are not held up
            await deferLater(self._clock, PAUSE, lambda: None)
            await self._persist(step)

    async def _persist(self, step: reattach.Step) -> None:
        pause = PAUSE
        while not await self._take(step):
            await deferLater(self._clock, pause, lambda: None)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _take(self, step: reattach.Step) -> bool:
        """Take a step of the plan; False: to be taken again later."""
        try:
            await self._step(step)
        except _LATER as error:
            self._log.warn("{error}; it is tried again later", error=error)
            return False
        return True

    async def _until_done(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do what must not be lost, again and again if the disk is full or descriptors lack."""
        pause = PAUSE
        while True:
            try:
                await work()
                return
            except _LATER as error:
                self._log.error("{error}; it is tried again later", error=error)
            await deferLater(self._clock, pause, lambda: None)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _step(self, step: reattach.Step) -> None:
        entry = self._table.by_run(step.run)
        match step:
            case reattach.Destroy():
                await self._shims.destroy(step.run)
            case _ if entry is None:
                pass  # deleted meanwhile
            case reattach.Dismantle():
                await shielded(self._dismantle(entry))
            case reattach.Lose():
                await shielded(self._lose(entry))
            case reattach.Attach():
                await self._attach(entry)

    async def _attach(self, entry: Entry) -> None:
        if isinstance(entry.record.state, Deleting):
            return
        try:
            shim = await self._shims.attach(entry.run)
        except ShimGone:
            await shielded(self._lose(entry))
            return
        entry.shim = shim
        try:
            # If it has died by now or only hung up, attaching again tells.
            await self._learn(entry, await shim.state())
        except (ShimGone, DeadlineExceeded):
            entry.shim = None
            raise

    # What shims tell.

    def exited(self, run: str, process: str, exit: Exit) -> None:
        """See :class:`IShimListener`."""
        entry = self._table.by_run(run)
        if entry is not None:
            self._begin(self._until_done(lambda: self._record(entry, process, exit)), "exit")

    def reconnected(self, run: str, states: Sequence[ProcessState]) -> None:
        """See :class:`IShimListener`."""
        entry = self._table.by_run(run)
        if entry is not None:
            self._begin(self._until_done(lambda: self._learn(entry, states)), "reconnection")

    def died(self, run: str) -> None:
        """See :class:`IShimListener`."""
        entry = self._table.by_run(run)
        if entry is None:
            return
        entry.shim = None
        if not isinstance(entry.record.state, Creating | Deleting):
            self._log.error("the shim of {name} died", name=entry.record.id, run=run)
            self._begin(self._persist(reattach.Lose(run)), "clean-up after a shim")

    async def _record(self, entry: Entry, process: str, exit: Exit) -> None:
        if process == INIT and isinstance(entry.record.state, Created):
            # Perhaps nobody heard that it was started; the record on disk knows.
            exit = (await self._shims.records(entry.run)).get(INIT, exit)
        await self._table.advance(entry, process, lambda it: it.exited(exit))

    async def _learn(self, entry: Entry, states: Sequence[ProcessState]) -> None:
        """Record what a shim knows and the records do not."""
        unsure = reattach.unsure(entry.processes, states, entry.underway)
        if unsure and entry.shim is not None:
            for process in unsure:
                try:
                    await entry.shim.delete(process)  # it waits for an exec that is under way
                except (NotFound, FailedPrecondition):
                    pass  # there is none, or it runs
            states = await entry.shim.state()
        for news in reattach.differences(
            entry.record.state, entry.processes, states, entry.underway
        ):
            await self._table.advance(entry, news.process, *news.happens)

    async def _lose(self, entry: Entry) -> None:
        """Its shim is gone: end what is left of it, and record the exits."""
        entry.shim = None
        await self._shims.end(entry.run, entry.record.runtime)
        exits = await self._shims.records(entry.run)
        at = rfc3339(self._now())
        for news in reattach.losses(entry.record.state, entry.processes, exits, at):
            await self._table.advance(entry, news.process, *news.happens)

    # IContainers.

    async def create(self, request: ContainerRequest) -> Container:
        """See :class:`IContainers`."""
        check_container(request)
        runtime = await self._workers.run(find_runtime, request.runtime or self._runtime)
        snapshotter = None
        if request.image is not None:
            snapshotter = request.snapshotter or self._snapshotter
        entry = await self._table.reserve(
            Record(
                run=self._run_ids(),
                namespace=request.namespace,
                id=request.id,
                boot_id=self._boot_id,
                created_at=rfc3339(self._now()),
                runtime=runtime,
                snapshotter=snapshotter,
                image=None,
                request=request,
            )
        )
        try:
            await self._maker.make(entry)
            if entry.shim is None:
                raise ShimGone(entry.run, "it died when the container was just made")
        except Exception:
            await shielded(self._undo(entry))
            raise
        return views.container(entry, self._places)

    async def _undo(self, entry: Entry) -> None:
        """Leave nothing of a container that could not be made; its error goes on."""
        try:
            async with holding(entry.lock):
                if self._table.by_run(entry.run) is not entry:
                    return  # it was made, and somebody has deleted it
                if isinstance(entry.record.state, Running):
                    await self._end(entry)
                if not isinstance(entry.record.state, Creating):
                    await self._table.advance(entry, INIT, lambda it: it.delete())
                await self._dismantle(entry)
        except CtdError as error:
            # The record stays, hidden, and the next start tries again.
            self._log.error("undoing {name}: {error}", name=entry.record.id, error=error)

    async def start(self, namespace: str, id: str) -> Container:
        """See :class:`IContainers`."""
        entry = self._table.find(namespace, id)
        await shielded(self._start(entry))
        return views.container(entry, self._places)

    async def _start(self, entry: Entry) -> None:
        async with holding(entry.lock):
            self._still_there(entry)
            lifecycle.container(entry.record.id, entry.record.state, lambda it: it.start())
            state = await live(entry).start()
            at = state.started_at or rfc3339(self._now())
            await self._table.advance(entry, INIT, lambda it: it.started(state.pid, at))

    async def get(self, namespace: str, id: str) -> Container:
        """See :class:`IContainers`."""
        return views.container(self._table.find(namespace, id), self._places)

    async def list(self, namespace: str | None = None) -> Sequence[Container]:
        """See :class:`IContainers`."""
        return [
            views.container(entry, self._places)
            for entry in self._table
            if namespace in (None, entry.record.namespace)
            and not isinstance(entry.record.state, Creating)
        ]

    async def wait(self, namespace: str, id: str) -> Exit:
        """See :class:`IContainers`."""
        return await self._table.wait(self._table.find(namespace, id), INIT)

    async def kill(self, namespace: str, id: str, signal: int = 15, all: bool = False) -> None:
        """See :class:`IContainers`."""
        entry = self._table.find(namespace, id)
        lifecycle.container(id, entry.record.state, lambda it: it.signal())
        await live(entry).kill(INIT, signal, all)

    async def delete(self, namespace: str, id: str, force: bool = False) -> None:
        """See :class:`IContainers`."""
        entry = self._table.find(namespace, id)
        await shielded(self._delete(entry, force))

    async def _delete(self, entry: Entry, force: bool) -> None:
        async with holding(entry.lock):
            self._still_there(entry)
            if force and isinstance(entry.record.state, Running):
                await self._end(entry)
            await self._table.advance(entry, INIT, lambda it: it.delete())
            await self._dismantle(entry)

    def _still_there(self, entry: Entry) -> None:
        if self._table.by_run(entry.run) is not entry:
            raise NotFound("container", entry.record.id)

    async def _end(self, entry: Entry) -> None:
        """Kill a running container, with its shim if it must be."""
        try:
            await live(entry).kill(INIT, signals.SIGKILL, True)
            ended = Deferred.fromCoroutine(self._table.wait(entry, INIT))
            ended.addTimeout(KILL_SECONDS, self._clock)
            await ended
        except (CtdError, TimeoutError):
            pass
        if isinstance(entry.record.state, Running):
            await self._lose(entry)

    async def _dismantle(self, entry: Entry) -> None:
        """Take apart what was made for a container, and then its record."""
        shim, entry.shim = entry.shim, None
        if shim is not None:
            try:
                await shim.delete(INIT)
                await shim.shutdown()
            except CtdError as error:
                self._log.debug("shim {run}: {error}", run=entry.run, error=error)
        record = entry.record
        if not finished(entry):
            await self._lose(entry)
        await self._shims.destroy(record.run, record.runtime)
        if record.snapshotter is not None:
            await self._rootfs.release(record.namespace, record.run, record.snapshotter)
        await self._table.advance(entry, INIT, lambda it: it.deleted())


def finished(entry: Entry) -> bool:
    """Whether the end of every process other than the first is recorded."""
    return all(isinstance(process.state, Stopped) for process in entry.processes.values())


def live(entry: Entry) -> IShim:
    """A container's shim.  :raise Unavailable: it does not answer now."""
    if entry.shim is None:
        raise Unavailable(f"shim of {entry.record.id}", "it does not answer now; try again later")
    return entry.shim
