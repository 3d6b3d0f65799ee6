"""Every container of the daemon in memory, as recorded; changes go through the database.

Answers come from here, so that they cost no transaction; the database's
results are delivered in the order of its transactions, so what is here is
what is recorded, a moment later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock

from ctd.concurrency import shielded
from ctd.database import Database, Transaction
from ctd.errors import AlreadyExists, NotFound
from ctd.runtime import records
from ctd.runtime.interfaces import INIT, Exit, IShim
from ctd.runtime.lifecycle import Creating, Deleting, Gone, State, Stopped
from ctd.runtime.records import Happens, ProcessRecord, Record


@attrs.define(eq=False)
class Entry:
    """One container.

    :ivar processes: those other than the first, by id.
    :ivar shim: the live one, or None.
    :ivar lock: held by whoever changes what the container is: start, delete.
    :ivar underway: processes that are being run just now.
    """

    record: Record
    processes: dict[str, ProcessRecord] = attrs.field(factory=dict)
    shim: IShim | None = None
    lock: DeferredLock = attrs.field(factory=DeferredLock)
    waiting: dict[str, list[Deferred[Exit]]] = attrs.field(factory=dict)
    underway: set[str] = attrs.field(factory=set)

    @property
    def run(self) -> str:
        """The run's id."""
        return self.record.run

    def state(self, process: str) -> State:
        """The state of one of its processes; :class:`Gone` if there is no such process."""
        if process == INIT:
            return self.record.state
        found = self.processes.get(process)
        return Gone() if found is None else found.state


class Table:
    """The containers of one daemon."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._runs: dict[str, Entry] = {}
        self._names: dict[tuple[str, str], Entry] = {}

    async def load(self) -> None:
        """Read what is recorded; once, at start."""
        for record, processes in await self._database.transact(records.load):
            self._add(Entry(record, processes))

    def _add(self, entry: Entry) -> None:
        self._runs[entry.run] = entry
        self._names[entry.record.namespace, entry.record.id] = entry

    def __iter__(self) -> Iterator[Entry]:
        """All, by creation, those that are being made too."""
        return iter(list(self._runs.values()))

    def by_run(self, run: str) -> Entry | None:
        """The container that *run* is a life of."""
        return self._runs.get(run)

    def find(self, namespace: str, id: str) -> Entry:
        """A container.  :raise NotFound: there is none, or it is still being made."""
        entry = self._names.get((namespace, id))
        if entry is None or isinstance(entry.record.state, Creating):
            raise NotFound("container", id)
        return entry

    def process(self, namespace: str, container: str, id: str) -> tuple[Entry, State]:
        """A process.  :raise NotFound: there is none, or it is still being made."""
        entry = self.find(namespace, container)
        state = entry.state(id)
        if isinstance(state, Gone | Creating):
            raise NotFound("process", f"{container}/{id}")
        return entry, state

    async def reserve(self, record: Record) -> Entry:
        """Record that a container is being made; on an error, and if cancelled, it is not.

        :raise AlreadyExists: its id is taken.
        """
        if (record.namespace, record.id) in self._names:
            raise AlreadyExists("container", record.id)
        if record.run in self._runs:
            raise AlreadyExists("run", record.run)
        entry = Entry(record)
        self._add(entry)
        try:
            await shielded(self._transact(lambda tx: records.reserve(tx, record)))
        except CancelledError:
            await self.advance(entry, INIT, lambda it: it.deleted())
            raise
        except Exception as error:
            self._remove(entry)
            if isinstance(error, sqlite3.IntegrityError):
                raise AlreadyExists("container", record.id) from None
            raise
        return entry

    async def complete(self, entry: Entry, record: Record, pid: int) -> None:
        """A container is made: add what became known of it."""

        def change(tx: Transaction) -> State:
            records.complete(tx, record)
            return records.advance(tx, record.run, INIT, lambda it: it.created(pid, record.image))

        async def work() -> None:
            state = await self._database.transact(change)
            entry.record = record
            self._learn(entry, INIT, state)

        await shielded(work())

    async def reserve_process(self, entry: Entry, record: ProcessRecord) -> None:
        """Record that a process is about to be run; on an error, and if cancelled, it is not.

        It is underway until the caller takes it from :attr:`Entry.underway`.

        :raise AlreadyExists: its id is taken.
        :raise FailedPrecondition: the container does not run.
        """
        id = record.request.id
        if id == INIT or id in entry.processes:
            raise AlreadyExists("process", f"{entry.record.id}/{id}")

        def change(tx: Transaction) -> None:
            state = records.advance(tx, entry.run, INIT, lambda it: it.exec())
            if isinstance(state, Gone):
                raise NotFound("container", entry.record.id)
            records.reserve_process(tx, record)

        entry.processes[id] = record
        entry.underway.add(id)
        try:
            await shielded(self._transact(change))
        except CancelledError:
            entry.underway.discard(id)
            await self.advance(entry, id, lambda it: it.abandoned())
            raise
        except Exception as error:
            entry.underway.discard(id)
            if entry.processes.get(id) is record:
                del entry.processes[id]
            if isinstance(error, sqlite3.IntegrityError):
                raise AlreadyExists("process", f"{entry.record.id}/{id}") from None
            raise

    async def _transact(self, change: Callable[[Transaction], None]) -> None:
        await self._database.transact(change)

    async def advance(self, entry: Entry, process: str, *happens: Happens) -> State:
        """Something happens, in one transaction; it is recorded even if the waiter is cancelled.

        :return: the state after it.
        :raise FailedPrecondition: it cannot happen now.
        """

        def change(tx: Transaction) -> State:
            state: State = Gone()
            for one in happens:
                state = records.advance(tx, entry.run, process, one)
            return state

        async def work() -> State:
            state = await self._database.transact(change)
            self._learn(entry, process, state)
            return state

        return await shielded(work())

    def _learn(self, entry: Entry, process: str, state: State) -> None:
        if process != INIT:
            if isinstance(state, Gone):
                entry.processes.pop(process, None)
                self._refuse(entry, process)
            elif (known := entry.processes.get(process)) is not None:
                entry.processes[process] = attrs.evolve(known, state=state)
        elif isinstance(state, Gone):
            self._remove(entry)
        else:
            entry.record = attrs.evolve(entry.record, state=state)
        if isinstance(state, Stopped | Deleting) and state.exit is not None:
            for waiter in entry.waiting.pop(process, ()):
                if not waiter.called:
                    waiter.callback(state.exit)

    def _remove(self, entry: Entry) -> None:
        self._runs.pop(entry.run, None)
        key = (entry.record.namespace, entry.record.id)
        if self._names.get(key) is entry:
            del self._names[key]
        for process in list(entry.waiting):
            self._refuse(entry, process)

    def _refuse(self, entry: Entry, process: str) -> None:
        container = entry.record.id
        for waiter in entry.waiting.pop(process, ()):
            if waiter.called:
                continue
            if process == INIT:
                waiter.errback(NotFound("container", container))
            else:
                waiter.errback(NotFound("process", f"{container}/{process}"))

    async def wait(self, entry: Entry, process: str) -> Exit:
        """How a process ended, waiting for that if need be.

        :raise NotFound: it is deleted without ever having run.
        """
        state = entry.state(process)
        if isinstance(state, Stopped | Deleting) and state.exit is not None:
            return state.exit

        def leave(waiter: Deferred[Exit]) -> None:
            if waiter in entry.waiting.get(process, ()):
                entry.waiting[process].remove(waiter)

        waiter: Deferred[Exit] = Deferred(leave)
        entry.waiting.setdefault(process, []).append(waiter)
        return await waiter
