"""Containers and processes as the protocol shows them, from their records."""

from __future__ import annotations

from typing import Any

from ctd.runtime.interfaces import INIT, Container, Exit, Process, Status, Stdio
from ctd.runtime.lifecycle import Created, Deleting, Running, State, Stopped
from ctd.runtime.places import Places
from ctd.runtime.records import ProcessRecord
from ctd.runtime.table import Entry


def _facts(state: State) -> dict[str, Any]:
    exit: Exit | None = state.exit if isinstance(state, Stopped | Deleting) else None
    match state:
        case Created():
            status = Status.CREATED
        case Running():
            status = Status.RUNNING
        case _:
            status = Status.STOPPED
    return {
        "status": status.value,
        "pid": getattr(state, "pid", None),
        "exit_status": None if exit is None else exit.exit_status,
        "exit_reason": None if exit is None else exit.exit_reason,
        "exited_at": None if exit is None else exit.exited_at,
        "started_at": getattr(state, "started_at", None),
    }


def container(entry: Entry, places: Places) -> Container:
    """A container."""
    record, request = entry.record, entry.record.request
    facts = _facts(record.state)
    netns: str | None = None if request.netns == "host" else request.netns
    if netns == "new":
        netns = None if facts["pid"] is None else f"/proc/{facts['pid']}/ns/net"
    return Container(
        id=record.id,
        namespace=record.namespace,
        image=record.image,
        created_at=record.created_at,
        bundle=str(places.bundle(record.run)),
        netns=netns,
        labels=request.labels,
        runtime=record.runtime,
        snapshotter=record.snapshotter,
        stdio=request.stdio,
        args=tuple(record.process.get("args", ())),
        terminal=request.terminal,
        **facts,
    )


def first_process(entry: Entry, places: Places) -> Process:
    """A container's first process."""
    record, request = entry.record, entry.record.request
    return Process(
        id=INIT,
        container=record.id,
        namespace=record.namespace,
        args=tuple(record.process.get("args", ())),
        terminal=request.terminal,
        stdio=request.stdio,
        attach=_attach(record.run, INIT, request.stdio, places),
        **_facts(record.state),
    )


def process(entry: Entry, record: ProcessRecord, places: Places) -> Process:
    """A process other than the first."""
    request = record.request
    return Process(
        id=request.id,
        container=entry.record.id,
        namespace=entry.record.namespace,
        args=request.args,
        terminal=request.terminal,
        stdio=request.stdio,
        attach=_attach(record.run, request.id, request.stdio, places),
        **_facts(record.state),
    )


def _attach(run: str, process: str, stdio: Stdio, places: Places) -> str | None:
    if "attach" not in (stdio.stdin, stdio.stdout, stdio.stderr):
        return None
    return str(places.attach(run, process))
