"""What is to be done for each run after a start: a pure plan, and what a shim's word means.

:func:`plan` decides from what is recorded and what is found; each of its steps
can be repeated.  :func:`differences` decides what a shim knows that the records
do not.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

import attrs

from ctd.runtime.interfaces import INIT, Exit, ExitReason, ProcessState
from ctd.runtime.lifecycle import Created, Creating, Deleting, Running, State, Stopped
from ctd.runtime.records import Happens, ProcessRecord, Record


@attrs.frozen
class Attach:
    """Connect to its shim and learn what happened; if the shim is dead, :class:`Lose`."""

    run: str


@attrs.frozen
class Lose:
    """Its shim is gone: end what is left, record exits as far as they are on disk."""

    run: str


@attrs.frozen
class Dismantle:
    """Undo what was half-made, or finish what was half-deleted."""

    run: str


@attrs.frozen
class Destroy:
    """Nobody knows this run: end it and remove it."""

    run: str


Step = Attach | Lose | Dismantle | Destroy


def plan(
    recorded: Iterable[Record],
    found: Sequence[str],
    boot_id: str,
    unfinished: Container[str] = frozenset(),
) -> list[Step]:
    """One step for each run that needs one.

    :param found: the runs that have directories.
    :param unfinished: the runs with processes, other than the first, whose end is not recorded.
    """
    steps: list[Step] = []
    known = set()
    here = set(found)
    for record in recorded:
        known.add(record.run)
        there = record.run in here and record.boot_id == boot_id
        match record.state:
            case Creating() | Deleting():
                steps.append(Dismantle(record.run))
            case Created() | Running():
                steps.append(Attach(record.run) if there else Lose(record.run))
            case Stopped() if there:
                steps.append(Attach(record.run))
            case Stopped() if record.run in unfinished:
                steps.append(Lose(record.run))
    steps += [Destroy(run) for run in found if run not in known]
    return steps


@attrs.frozen
class News:
    """What happened to a process and is not recorded yet, in order: for one transaction."""

    process: str
    happens: tuple[Happens, ...]


def unsure(
    processes: Mapping[str, ProcessRecord],
    told: Sequence[ProcessState],
    underway: Container[str] = frozenset(),
) -> list[str]:
    """Processes that may or may not come to run: a shim shows them only when they do."""
    shown = {state.id for state in told}
    return [
        id
        for id, record in processes.items()
        if isinstance(record.state, Creating) and id not in shown and id not in underway
    ]


def differences(
    init: State,
    processes: Mapping[str, ProcessRecord],
    told: Sequence[ProcessState],
    underway: Container[str] = frozenset(),
) -> list[News]:
    """What a live shim tells that the records do not have.

    :param underway: processes that are being run just now; who does that tells the rest.
    """
    states = {INIT: init, **{id: record.state for id, record in processes.items()}}
    news = []
    shown = {state.id: state for state in told}
    for id, recorded in states.items():
        state = shown.get(id)
        if state is None:
            if id != INIT and isinstance(recorded, Creating) and id not in underway:
                news.append(News(id, (_abandoned,)))
            continue
        happens: list[Happens] = []
        never_started = Creating if id != INIT else Created
        if isinstance(recorded, never_started) and state.started_at is not None:
            happens.append(_started(state.pid, state.started_at))
        if state.exit is not None and not isinstance(recorded, Stopped):
            happens.append(_exited(state.exit))
        if happens:
            news.append(News(id, tuple(happens)))
    return sorted(news, key=lambda one: one.process == INIT)


def losses(
    init: State, processes: Mapping[str, ProcessRecord], exits: Mapping[str, Exit], at: str
) -> list[News]:
    """What has become of the processes of a run whose shim is gone: as recorded on disk, or lost.

    :param at: now, RFC 3339.
    """
    lost = Exit(255, ExitReason.LOST.value, at)
    news = []
    for id, record in processes.items():
        if isinstance(record.state, Creating) and id not in exits:
            # Or its start is being recorded this moment: it has ended then.
            news.append(News(id, (_abandoned, _exited(lost))))
        elif not isinstance(record.state, Stopped):
            news.append(News(id, (_exited(exits.get(id, lost)),)))
    if isinstance(init, Created | Running):
        news.append(News(INIT, (_exited(exits.get(INIT, lost)),)))
    return news


def _abandoned(it: object) -> None:
    it.abandoned()  # type: ignore[attr-defined]


def _started(pid: int, at: str) -> Happens:
    return lambda it: it.started(pid, at)


def _exited(exit: Exit) -> Happens:
    return lambda it: it.exited(exit)
