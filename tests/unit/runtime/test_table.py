"""The table of containers in memory and on disk."""

from __future__ import annotations

import sqlite3
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from ctd.runtime.interfaces import INIT, Exit
from ctd.runtime.lifecycle import Creating, Deleting, Gone, Stopped
from ctd.runtime.records import ProcessRecord, Record
from ctd.runtime.table import Entry, Table
from tests.unit.runtime.fakes import (
    AT,
    ENDED,
    NS,
    STARTED,
    RuntimeDatabase,
    Stage,
    begin,
    exec_request,
    request,
    rows,
)

EXIT = Exit(3, "exited", ENDED)


def record(run: str = "a" * 12, id: str = "web") -> Record:
    return Record(run, NS, id, "boot", AT, "/usr/sbin/runc", None, None, request(id))


class TableTests(SynchronousTestCase):
    """One daemon's containers."""

    def setUp(self) -> None:
        self.database = RuntimeDatabase()
        self.stage = self.database.power = Stage()
        self.table = Table(self.database)  # type: ignore[arg-type]

    def done(self, work: Any) -> Any:
        return self.successResultOf(begin(work))

    def make(self, run: str = "a" * 12, id: str = "web") -> Entry:
        entry: Entry = self.done(self.table.reserve(record(run, id)))
        self.done(self.table.complete(entry, attrs.evolve(entry.record, image="x"), 7))
        return entry

    def running(self) -> Entry:
        entry = self.make()
        self.done(self.table.advance(entry, INIT, lambda it: it.started(7, STARTED)))
        return entry

    def recorded(self) -> list[tuple[Any, ...]]:
        return rows(self.database.connection, "SELECT id, status FROM containers")

    def hold(self) -> None:
        self.stage.hold_at = self.stage.steps + 1

    def test_hidden(self) -> None:
        """A container being made has its name and its run, and cannot be found."""
        entry = self.done(self.table.reserve(record()))
        with self.assertRaises(NotFound):
            self.table.find(NS, "web")
        self.assertIs(self.table.by_run("a" * 12), entry)
        self.failureResultOf(begin(self.table.reserve(record("b" * 12))), AlreadyExists)
        self.done(self.table.complete(entry, attrs.evolve(entry.record, image="x"), 7))
        self.assertIs(self.table.find(NS, "web"), entry)
        self.assertEqual(entry.record.image, "x")

    def test_names(self) -> None:
        """Names are each namespace's own; iteration is by creation."""
        self.make("b" * 12, "z")
        self.make("a" * 12, "a")
        other = attrs.evolve(record("c" * 12, "z"), namespace="other")
        self.done(self.table.reserve(other))
        self.assertEqual([entry.record.id for entry in self.table], ["z", "a", "z"])

    def test_two_at_once(self) -> None:
        """Of two that want a name at the same moment one gets it, before anything is on disk."""
        self.hold()
        first = begin(self.table.reserve(record()))
        second = begin(self.table.reserve(record("b" * 12)))
        self.failureResultOf(second, AlreadyExists)
        self.stage.release()
        self.successResultOf(first)

    def test_reserve_cancelled(self) -> None:
        """A reservation that is cancelled is undone, whether or not it was on disk already."""
        for late in (False, True):
            self.stage.late = late
            self.hold()
            waiter = begin(self.table.reserve(record()))
            waiter.cancel()
            self.stage.release()
            self.failureResultOf(waiter, CancelledError)
            self.assertEqual(self.recorded(), [])
            self.assertEqual(list(self.table), [])
        self.make()

    def test_reserve_fails(self) -> None:
        """A reservation that fails leaves the name free."""
        for error in (ResourceExhausted("disk"), sqlite3.OperationalError("I/O")):
            self.stage = self.database.power = Stage(1, fails=error)
            self.failureResultOf(begin(self.table.reserve(record())), type(error))
            self.assertEqual(list(self.table), [])
        self.database.power = Stage()
        self.make()

    def test_same_run(self) -> None:
        """A run id that is there already is refused, and the one that has it stays."""
        entry = self.make()
        self.failureResultOf(begin(self.table.reserve(record(id="db"))), AlreadyExists)
        self.assertEqual(self.recorded(), [("web", "created")])
        self.assertIs(self.table.by_run("a" * 12), entry)
        self.assertIs(self.table.find(NS, "web"), entry)

    def test_wait(self) -> None:
        """Any number wait, before the start and after it, and all are told once."""
        entry = self.make()
        waiting = [begin(self.table.wait(entry, INIT)) for _ in range(50)]
        self.done(self.table.advance(entry, INIT, lambda it: it.started(7, STARTED)))
        waiting += [begin(self.table.wait(entry, INIT)) for _ in range(50)]
        waiting[3].cancel()
        self.failureResultOf(waiting.pop(3), CancelledError)
        self.done(self.table.advance(entry, INIT, lambda it: it.exited(EXIT)))
        self.done(self.table.advance(entry, INIT, lambda it: it.exited(Exit(9, "lost", AT))))
        self.assertEqual([self.successResultOf(w) for w in waiting], [EXIT] * 99)
        self.assertEqual(self.done(self.table.wait(entry, INIT)), EXIT)
        self.done(self.table.advance(entry, INIT, lambda it: it.delete()))
        self.assertEqual(self.done(self.table.wait(entry, INIT)), EXIT)
        self.assertEqual(entry.waiting, {})

    def test_waiter_ends_another(self) -> None:
        """A waiter may end others the moment it is told; the rest are told too."""
        entry = self.running()
        waiting = [begin(self.table.wait(entry, INIT)) for _ in range(3)]
        waiting[0].addCallback(lambda exit: waiting[1].cancel())
        self.done(self.table.advance(entry, INIT, lambda it: it.exited(EXIT)))
        self.failureResultOf(waiting[1], CancelledError)
        self.assertEqual(self.successResultOf(waiting[2]), EXIT)

    def test_wait_for_nothing(self) -> None:
        """Whoever waits for what is deleted without having run is told that it is not there."""
        entry = self.make()
        waiting = [begin(self.table.wait(entry, process)) for process in (INIT, "sh")]
        self.done(self.table.advance(entry, INIT, lambda it: it.delete()))
        self.assertIsInstance(entry.record.state, Deleting)
        self.assertNoResult(waiting[0])
        self.done(self.table.advance(entry, INIT, lambda it: it.deleted()))
        for waiter in waiting:
            self.failureResultOf(waiter, NotFound)
        with self.assertRaises(NotFound):
            self.table.find(NS, "web")
        self.assertEqual(self.recorded(), [])
        self.make()

    def test_advance_cancelled(self) -> None:
        """A step whose waiter leaves is recorded and known all the same."""
        entry = self.make()
        self.hold()
        waiter = begin(self.table.advance(entry, INIT, lambda it: it.exited(EXIT)))
        waiter.cancel()
        self.assertNoResult(waiter)
        self.stage.release()
        self.failureResultOf(waiter, CancelledError)
        self.assertEqual(entry.record.state, Stopped(None, EXIT))
        self.assertEqual(self.recorded(), [("web", "stopped")])

    def test_steps_together(self) -> None:
        """Steps taken together are one transaction: all of them or none."""
        entry = self.make()
        steps = (lambda it: it.started(7, STARTED), lambda it: it.exec(), lambda it: it.delete())
        self.failureResultOf(begin(self.table.advance(entry, INIT, *steps)), FailedPrecondition)
        self.assertEqual(self.recorded(), [("web", "created")])
        steps = (lambda it: it.started(7, STARTED), lambda it: it.exited(EXIT))
        self.assertEqual(self.done(self.table.advance(entry, INIT, *steps)), Stopped(STARTED, EXIT))

    def reserve_process(self, entry: Entry, id: str = "sh") -> Deferred[None]:
        process = ProcessRecord(entry.run, exec_request(id))
        return begin(self.table.reserve_process(entry, process))

    def test_process(self) -> None:
        """A process has its id from its reservation on, and is found when it runs."""
        entry = self.running()
        self.successResultOf(self.reserve_process(entry))
        self.assertEqual(entry.underway, {"sh"})
        self.failureResultOf(self.reserve_process(entry), AlreadyExists)
        self.assertEqual(entry.underway, {"sh"})
        self.failureResultOf(self.reserve_process(entry, INIT), AlreadyExists)
        with self.assertRaises(NotFound):
            self.table.process(NS, "web", "sh")
        self.done(self.table.advance(entry, "sh", lambda it: it.started(8, STARTED)))
        self.assertEqual(self.table.process(NS, "web", "sh")[0], entry)
        self.done(self.table.advance(entry, "sh", lambda it: it.exited(EXIT)))
        self.assertEqual(self.done(self.table.wait(entry, "sh")), EXIT)
        self.done(self.table.advance(entry, "sh", lambda it: it.deleted()))
        self.assertEqual(entry.state("sh"), Gone())

    def test_process_refused(self) -> None:
        """No process is reserved in a container that does not run, or is gone."""
        entry = self.make()
        self.failureResultOf(self.reserve_process(entry), FailedPrecondition)
        self.done(self.table.advance(entry, INIT, lambda it: it.delete()))
        self.failureResultOf(self.reserve_process(entry), FailedPrecondition)
        self.done(self.table.advance(entry, INIT, lambda it: it.deleted()))
        self.failureResultOf(self.reserve_process(entry), NotFound)
        self.assertEqual((entry.processes, entry.underway), ({}, set()))

    def test_process_cancelled(self) -> None:
        """A process whose reservation is cancelled is not reserved, and can be later."""
        entry = self.running()
        for late in (False, True):
            self.stage.late = late
            self.hold()
            waiter = self.reserve_process(entry)
            waiter.cancel()
            self.stage.release()
            self.failureResultOf(waiter, CancelledError)
            self.assertEqual((entry.processes, entry.underway), ({}, set()))
            self.assertEqual(rows(self.database.connection, "SELECT * FROM processes"), [])
        self.successResultOf(self.reserve_process(entry))

    def test_load(self) -> None:
        """Another daemon's table is the same, with nobody's shim."""
        entry = self.running()
        self.successResultOf(self.reserve_process(entry))
        self.done(self.table.reserve(record("b" * 12, "half")))
        table = Table(self.database)  # type: ignore[arg-type]
        self.done(table.load())
        loaded, half = table
        self.assertEqual((loaded.record, loaded.processes), (entry.record, entry.processes))
        self.assertIsNone(loaded.shim)
        self.assertEqual(loaded.underway, set())
        self.assertEqual(half.record.state, Creating())
