"""Records in a real database."""

from __future__ import annotations

import unittest
from typing import Any

import attrs
import msgspec

from ctd.database import Transaction
from ctd.errors import FailedPrecondition
from ctd.runtime import records
from ctd.runtime.interfaces import (
    INIT,
    ContainerRequest,
    ExecRequest,
    Exit,
    Resources,
    Stdio,
    UserMount,
)
from ctd.runtime.lifecycle import Created, Creating, Deleting, Gone, Running, State, Stopped
from ctd.runtime.records import Happens, ProcessRecord, Record
from tests.unit.runtime.fakes import (
    AT,
    ENDED,
    NS,
    STARTED,
    RuntimeDatabase,
    exec_request,
    request,
    rows,
    told,
)

EXIT = Exit(3, "exited", ENDED)
RUN = "0123456789ab"
FULL = ContainerRequest(
    "ns",
    "web",
    image="alpine",
    args=("a", "é\n\U0001f600", ""),
    entrypoint=(),
    env=("A=b", "C="),
    cwd="/w",
    user="1:2",
    hostname="h",
    terminal=True,
    mounts=(UserMount("/m", "bind", "/s", ("ro", "rbind")), UserMount("/t", "tmpfs")),
    netns="/proc/1/ns/net",
    resources=Resources(1 << 40, 1 << 41, 0.5, 2, "0-1", 3),
    read_only=True,
    capabilities=("+NET_ADMIN", "-KILL"),
    privileged=True,
    labels={"a": "b", "": "c"},
    annotations={"d": "e"},
    runtime="/r",
    snapshotter="native",
    stdio=Stdio("null", "file:///x?max_size=3", "attach"),
)


def record(run: str = RUN, id: str = "web", **fields: Any) -> Record:
    values: dict[str, Any] = {
        "run": run,
        "namespace": NS,
        "id": id,
        "boot_id": "boot",
        "created_at": AT,
        "runtime": "/usr/sbin/runc",
        "snapshotter": "overlayfs",
        "image": None,
        "request": request(id),
    }
    return Record(**values | fields)


class RecordsTestCase(unittest.TestCase):
    """A database with one container being made."""

    def setUp(self) -> None:
        self.database = RuntimeDatabase()
        self.transact(lambda tx: records.reserve(tx, record()))

    def transact(self, function: Any) -> Any:
        return self.database._transact(function)

    def happens(self, happens: Happens, process: str = INIT, run: str = RUN) -> State:
        state: State = self.transact(lambda tx: records.advance(tx, run, process, happens))
        return state

    def reserve(self, id: str) -> None:
        made = ProcessRecord(RUN, exec_request(id))
        self.transact(lambda tx: records.reserve_process(tx, made))

    def run_container(self) -> None:
        self.happens(lambda it: it.created(7, "alpine"))
        self.happens(lambda it: it.started(7, STARTED))

    def stored(self) -> dict[str, State]:
        """The states as they would be loaded by another daemon."""
        states: dict[str, State] = {}
        for one, processes in self.transact(records.load):
            states[INIT] = one.state
            states |= {id: process.state for id, process in processes.items()}
        return states


class AdvanceTests(RecordsTestCase):
    """State and event in one transaction."""

    def test_life(self) -> None:
        """Each step's state is what a later daemon loads, and its event is there once."""
        for happens, state in (
            (lambda it: it.created(7, "alpine"), Created(7)),
            (lambda it: it.start(), Created(7)),
            (lambda it: it.started(7, STARTED), Running(7, STARTED)),
            (lambda it: it.started(7, STARTED), Running(7, STARTED)),
            (lambda it: it.exited(EXIT), Stopped(STARTED, EXIT)),
            (lambda it: it.exited(Exit(255, "lost", AT)), Stopped(STARTED, EXIT)),
            (lambda it: it.delete(), Deleting(STARTED, EXIT)),
        ):
            self.assertEqual(self.happens(happens), state)
            self.assertEqual(self.stored(), {INIT: state})
        self.assertEqual(self.happens(lambda it: it.deleted()), Gone())
        self.assertEqual(self.stored(), {})
        self.assertEqual(
            told(self.database.events),
            [f"container.{what} web" for what in ("created", "started", "exited", "deleted")],
        )
        self.assertEqual({event.namespace for event in self.database.events}, {NS})
        self.assertEqual(
            self.database.events[2].data,
            {"exit_status": 3, "exit_reason": "exited", "exited_at": ENDED, "pid": 7},
        )

    def test_never_started(self) -> None:
        """A container deleted before its start loads as being deleted without an exit."""
        self.happens(lambda it: it.created(7, None))
        self.happens(lambda it: it.delete())
        self.assertEqual(self.stored(), {INIT: Deleting(None, None)})

    def test_unknown(self) -> None:
        """What happens to a run or process that is not recorded is nothing."""
        self.assertEqual(self.happens(lambda it: it.exited(EXIT), run="ffffffffffff"), Gone())
        self.assertEqual(self.happens(lambda it: it.exited(EXIT), "sh"), Gone())
        self.assertEqual(self.database.events, [])

    def test_refused(self) -> None:
        """What is refused changes nothing and tells nothing."""
        with self.assertRaises(FailedPrecondition):
            self.happens(lambda it: it.started(7, AT))
        self.assertEqual(self.stored(), {INIT: Creating()})
        self.assertEqual(self.database.events, [])

    def test_one_transaction(self) -> None:
        """A transaction that fails later takes both the state and its event back."""

        def change(tx: Transaction) -> None:
            records.advance(tx, RUN, INIT, lambda it: it.created(7, None))
            raise OSError

        with self.assertRaises(OSError):
            self.transact(change)
        self.assertEqual(self.stored(), {INIT: Creating()})
        self.assertEqual(self.database.events, [])

    def test_process(self) -> None:
        """Another process is told of as CONTAINER/PROCESS, in its container's namespace."""
        self.run_container()
        self.reserve("sh")
        for happens, state in (
            (lambda it: it.started(8, STARTED), Running(8, STARTED)),
            (lambda it: it.exited(EXIT), Stopped(STARTED, EXIT)),
            (lambda it: it.exited(EXIT), Stopped(STARTED, EXIT)),
        ):
            self.assertEqual(self.happens(happens, "sh"), state)
            self.assertEqual(self.stored()["sh"], state)
        self.happens(lambda it: it.deleted(), "sh")
        self.assertEqual(self.stored(), {INIT: Running(7, STARTED)})
        self.assertEqual(
            told(self.database.events, "process"),
            [f"process.{what} web/sh" for what in ("added", "started", "exited", "deleted")],
        )

    def test_ids_apart(self) -> None:
        """Processes of the same id in two containers are two."""
        self.transact(lambda tx: records.reserve(tx, record("b" * 12, "db")))
        self.run_container()
        self.reserve("sh")
        other = ProcessRecord("b" * 12, exec_request("sh", "db"))
        self.transact(lambda tx: records.reserve_process(tx, other))
        self.happens(lambda it: it.started(8, STARTED), "sh", "b" * 12)
        self.assertEqual(told(self.database.events, "process")[0], "process.added db/sh")
        found = rows(self.database.connection, "SELECT run, status FROM processes ORDER BY run")
        self.assertEqual(found, [(RUN, "creating"), ("b" * 12, "running")])


class GoneTests(RecordsTestCase):
    """A container that goes with its processes."""

    def test_processes(self) -> None:
        """Those that ended are told to be deleted before it; those that never ran just go."""
        self.run_container()
        self.reserve("never")
        for id in ("a", "b"):
            self.reserve(id)
            self.happens(lambda it: it.started(8, STARTED), id)
            self.happens(lambda it: it.exited(EXIT), id)
        self.happens(lambda it: it.exited(EXIT))
        self.happens(lambda it: it.delete())
        self.happens(lambda it: it.deleted())
        self.assertEqual(
            told(self.database.events)[-3:],
            ["process.deleted web/a", "process.deleted web/b", "container.deleted web"],
        )
        self.assertNotIn("web/never", [event.subject for event in self.database.events])
        self.assertEqual(rows(self.database.connection, "SELECT * FROM processes"), [])

    def test_running_process(self) -> None:
        """One whose end is not recorded keeps its container: an exit is never left out."""
        self.run_container()
        self.reserve("sh")
        self.happens(lambda it: it.started(8, STARTED), "sh")
        self.happens(lambda it: it.exited(EXIT))
        self.happens(lambda it: it.delete())
        with self.assertRaises(FailedPrecondition):
            self.happens(lambda it: it.deleted())
        self.assertEqual(self.stored()["sh"], Running(8, STARTED))

    def test_undone(self) -> None:
        """One that was never made goes without a word."""
        self.happens(lambda it: it.deleted())
        self.assertEqual(self.stored(), {})
        self.assertEqual(self.database.events, [])


class LoadTests(RecordsTestCase):
    """What a daemon wrote is what the next one reads."""

    def test_container(self) -> None:
        """Every field of a record comes back, and every field of its request."""
        for field in attrs.fields(ContainerRequest):
            if field.name not in ("rootfs", "bundle"):
                self.assertNotEqual(getattr(FULL, field.name), field.default, field.name)
        made = record(
            "b" * 12, "full", request=FULL, runtime="/usr/bin/crun", snapshotter=None, image="x"
        )
        self.transact(lambda tx: records.reserve(tx, made))
        made = attrs.evolve(made, image="docker.io/x", process={"args": ["a"], "user": {"uid": 3}})
        self.transact(lambda tx: records.complete(tx, made))
        (_, (loaded, processes)) = self.transact(records.load)
        self.assertEqual(loaded, made)
        self.assertEqual(processes, {})

    def test_process(self) -> None:
        """Every field of an exec's request comes back."""
        wanted = ExecRequest(
            NS, "web", "sh", ("é",), ("A=b",), "/w", "1", True, ("KILL",), Stdio("attach")
        )
        made = ProcessRecord(RUN, wanted)
        self.transact(lambda tx: records.reserve_process(tx, made))
        ((_, processes),) = self.transact(records.load)
        self.assertEqual(processes, {"sh": made})

    def test_order(self) -> None:
        """Containers and processes come by creation, whatever their names."""
        for run, id in (("f" * 12, "z"), ("a" * 12, "b")):
            self.transact(lambda tx, run=run, id=id: records.reserve(tx, record(run, id)))
        for id in ("z", "b", "m"):
            self.reserve(id)
        loaded = self.transact(records.load)
        self.assertEqual([one.id for one, _ in loaded], ["web", "z", "b"])
        self.assertEqual(list(loaded[0][1]), ["z", "b", "m"])

    def test_older_request(self) -> None:
        """A request that a newer or older ctd wrote still loads: unknown is ignored, missing is
        the default."""
        body = msgspec.json.encode({"namespace": NS, "id": "web", "image": "x", "new": 1}).decode()
        self.transact(lambda tx: tx.execute("UPDATE containers SET request = ?", (body,)))
        ((loaded, _),) = self.transact(records.load)
        self.assertEqual(loaded.request, ContainerRequest(NS, "web", image="x"))
