"""The records of containers and processes, and the transactions that change them.

Functions that take a transaction run in the database's thread.  Every change
of a state goes through :func:`advance`, which asks the tables of
:mod:`ctd.runtime.lifecycle` inside the transaction what it means, and writes
the events that become true with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import msgspec

from ctd.database import Transaction
from ctd.runtime import lifecycle
from ctd.runtime.interfaces import INIT, ContainerRequest, ExecRequest, Exit
from ctd.runtime.lifecycle import Created, Creating, Deleting, Gone, Running, State, Stopped

#: Something that happens to a container or process: calls one input of its machine.
Happens = Callable[[Any], None]


@attrs.frozen
class Record:
    """A container as recorded.

    :ivar boot_id: of the boot of the machine that it was made in.
    :ivar runtime: the OCI runtime's path.
    :ivar snapshotter: whose key the run's id is; None without an image.
    :ivar image: full name, once it is known.
    :ivar process: the first process's OCI ``process`` object; empty while creating.
    """

    run: str
    namespace: str
    id: str
    boot_id: str
    created_at: str
    runtime: str
    snapshotter: str | None
    image: str | None
    request: ContainerRequest
    process: Mapping[str, Any] = attrs.field(factory=dict)
    state: State = attrs.field(factory=Creating)


@attrs.frozen
class ProcessRecord:
    """A process other than the first, as recorded."""

    run: str
    request: ExecRequest
    state: State = attrs.field(factory=Creating)


_STATE = "status, pid, started_at, exit_status, exit_reason, exited_at"
_NAMES = {
    Creating: "creating",
    Created: "created",
    Running: "running",
    Stopped: "stopped",
    Deleting: "deleting",
}


def reserve(tx: Transaction, record: Record) -> None:
    """Record that a container is being made."""
    tx.execute(
        "INSERT INTO containers (run, namespace, id, boot_id, status, created_at, runtime,"
        " snapshotter, image, request, process)"
        " VALUES (?, ?, ?, ?, 'creating', ?, ?, ?, ?, ?, '{}')",
        (
            record.run,
            record.namespace,
            record.id,
            record.boot_id,
            record.created_at,
            record.runtime,
            record.snapshotter,
            record.image,
            msgspec.json.encode(record.request).decode(),
        ),
    )


def complete(tx: Transaction, record: Record) -> None:
    """Add what became known while the container was made."""
    tx.execute(
        "UPDATE containers SET image = ?, process = ? WHERE run = ?",
        (record.image, msgspec.json.encode(record.process).decode(), record.run),
    )


def reserve_process(tx: Transaction, record: ProcessRecord) -> None:
    """Record that a process is about to be run."""
    tx.execute(
        "INSERT INTO processes (run, id, status, request) VALUES (?, ?, 'creating', ?)",
        (record.run, record.request.id, msgspec.json.encode(record.request).decode()),
    )


def advance(tx: Transaction, run: str, process: str, happens: Happens) -> State:
    """Something happens to *process* of *run*; ``init`` stands for the container.

    :return: the state after it; :class:`Gone` too if there was no such record.
    :raise FailedPrecondition: it cannot happen now.
    """
    if process == INIT:
        return _advance_container(tx, run, happens)
    return _advance_process(tx, run, process, happens)


def _advance_container(tx: Transaction, run: str, happens: Happens) -> State:
    row = tx.one(f"SELECT namespace, id, {_STATE} FROM containers WHERE run = ?", (run,))
    if row is None:
        return Gone()
    was = _state(row)
    story = lifecycle.container(row["id"], was, happens)
    if isinstance(story.state, Gone):
        rows = tx.all("SELECT id, status FROM processes WHERE run = ? ORDER BY number", (run,))
        for process, status in rows:
            _advance_process(tx, run, process, _ends if status == "creating" else _is_forgotten)
        tx.execute("DELETE FROM containers WHERE run = ?", (run,))
    elif story.state != was:
        tx.execute(f"UPDATE containers SET ({_STATE}) = (?, ?, ?, ?, ?, ?) WHERE run = ?",
                   (*_columns(story.state), run))  # fmt: skip
    for told in story.told:
        tx.emit(f"container.{told.what}", row["id"], told.data, namespace=row["namespace"])
    return story.state


def _ends(process: lifecycle.ProcessInputs) -> None:
    process.abandoned()


def _is_forgotten(process: lifecycle.ProcessInputs) -> None:
    process.deleted()


def _advance_process(tx: Transaction, run: str, process: str, happens: Happens) -> State:
    row = tx.one(
        "SELECT namespace, c.id AS container, p.status, p.pid, p.started_at, p.exit_status,"
        " p.exit_reason, p.exited_at FROM processes p JOIN containers c USING (run)"
        " WHERE run = ? AND p.id = ?",
        (run, process),
    )
    if row is None:
        return Gone()
    was = _state(row)
    subject = f"{row['container']}/{process}"
    story = lifecycle.process(subject, was, happens)
    if isinstance(story.state, Gone):
        tx.execute("DELETE FROM processes WHERE run = ? AND id = ?", (run, process))
    elif story.state != was:
        tx.execute(f"UPDATE processes SET ({_STATE}) = (?, ?, ?, ?, ?, ?) WHERE run = ? AND id = ?",
                   (*_columns(story.state), run, process))  # fmt: skip
    for told in story.told:
        tx.emit(f"process.{told.what}", subject, told.data, namespace=row["namespace"])
    return story.state


def load(tx: Transaction) -> list[tuple[Record, dict[str, ProcessRecord]]]:
    """Every container by creation, each with its processes other than the first."""
    processes: dict[str, dict[str, ProcessRecord]] = {}
    for row in tx.all("SELECT * FROM processes ORDER BY number"):
        request = msgspec.json.decode(row["request"], type=ExecRequest)
        record = ProcessRecord(row["run"], request, _state(row))
        processes.setdefault(row["run"], {})[row["id"]] = record
    return [
        (_record(row), processes.get(row["run"], {}))
        for row in tx.all("SELECT * FROM containers ORDER BY number")
    ]


def _record(row: sqlite3.Row) -> Record:
    return Record(
        row["run"],
        row["namespace"],
        row["id"],
        row["boot_id"],
        row["created_at"],
        row["runtime"],
        row["snapshotter"],
        row["image"],
        msgspec.json.decode(row["request"], type=ContainerRequest),
        msgspec.json.decode(row["process"]),
        _state(row),
    )


def _state(row: sqlite3.Row) -> State:
    exit = (
        None
        if row["exit_reason"] is None
        else Exit(row["exit_status"], row["exit_reason"], row["exited_at"])
    )
    match row["status"]:
        case "creating":
            return Creating()
        case "created":
            return Created(row["pid"])
        case "running":
            return Running(row["pid"], row["started_at"])
        case "stopped":
            assert exit is not None
            return Stopped(row["started_at"], exit)
    return Deleting(row["started_at"], exit)


def _columns(state: State) -> tuple[Any, ...]:
    exit = getattr(state, "exit", None)
    return (
        _NAMES[type(state)],
        getattr(state, "pid", None),
        getattr(state, "started_at", None),
        None if exit is None else exit.exit_status,
        None if exit is None else exit.exit_reason,
        None if exit is None else exit.exited_at,
    )
