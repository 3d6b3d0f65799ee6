"""What a start of the daemon decides."""

from __future__ import annotations

import unittest
from typing import Any

from ctd.runtime import lifecycle
from ctd.runtime.interfaces import INIT, Exit, ProcessState
from ctd.runtime.lifecycle import Created, Creating, Deleting, Gone, Running, State, Stopped
from ctd.runtime.reattach import (
    Attach,
    Destroy,
    Dismantle,
    Lose,
    News,
    differences,
    losses,
    plan,
    unsure,
)
from ctd.runtime.records import ProcessRecord, Record
from tests.unit.runtime.fakes import AT, ENDED, NS, STARTED, exec_request, request

EXIT = Exit(3, "exited", ENDED)
LOST = Exit(255, "lost", AT)
CREATING, CREATED, RUNNING = Creating(), Created(7), Running(7, STARTED)
STOPPED, DELETING = Stopped(STARTED, EXIT), Deleting(None, None)


def record(state: State, run: str = "a", boot: str = "now") -> Record:
    return Record(run, NS, "web", boot, AT, "/usr/sbin/runc", None, None, request(), {}, state)


def processes(**states: State) -> dict[str, ProcessRecord]:
    return {id: ProcessRecord("a", exec_request(id), state) for id, state in states.items()}


def shown(id: str, status: str, exit: Exit | None = None, started: bool = True) -> ProcessState:
    return ProcessState(id, status, 7, STARTED if started else None, exit)


class _Spy:
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.happened: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.happened.append((name, *args))


def told(news: list[News]) -> list[tuple[str, list[Any]]]:
    result = []
    for one in news:
        spy = _Spy()
        for happens in one.happens:
            happens(spy)
        result.append((one.process, spy.happened))
    return result


class PlanTests(unittest.TestCase):
    """One step for each run."""

    def test_table(self) -> None:
        """Each recorded state has one step where its directory is there, and one where not."""
        for state, there, gone in (
            (CREATING, Dismantle("a"), Dismantle("a")),
            (DELETING, Dismantle("a"), Dismantle("a")),
            (CREATED, Attach("a"), Lose("a")),
            (RUNNING, Attach("a"), Lose("a")),
            (STOPPED, Attach("a"), None),
        ):
            with self.subTest(state=state):
                self.assertEqual(plan([record(state)], ["a"], "now"), [there])
                expected = [] if gone is None else [gone]
                self.assertEqual(plan([record(state)], [], "now"), expected)
                # Exit records outlast a boot, and so does their directory.
                self.assertEqual(plan([record(state, boot="then")], ["a"], "now"), expected)

    def test_unfinished(self) -> None:
        """A stopped container that is not there has the ends of its processes recorded."""
        self.assertEqual(plan([record(STOPPED)], [], "now", {"a"}), [Lose("a")])
        self.assertEqual(plan([record(STOPPED)], ["a"], "now", {"a"}), [Attach("a")])

    def test_unknown(self) -> None:
        """A run that nobody knows is destroyed; the others are not."""
        steps = plan([record(RUNNING)], ["a", "b", "c"], "now")
        self.assertEqual(steps, [Attach("a"), Destroy("b"), Destroy("c")])


class DifferencesTests(unittest.TestCase):
    """What a shim knows that the records do not."""

    def test_init(self) -> None:
        """The first process's start and end are news where they are not recorded."""
        started, exited = ("started", 7, STARTED), ("exited", EXIT)
        for state, seen, news in (
            (CREATED, shown(INIT, "created", started=False), []),
            (CREATED, shown(INIT, "running"), [started]),
            (CREATED, shown(INIT, "stopped", EXIT), [started, exited]),
            (CREATED, shown(INIT, "stopped", EXIT, started=False), [exited]),
            (RUNNING, shown(INIT, "running"), []),
            (RUNNING, shown(INIT, "stopped", EXIT), [exited]),
            (STOPPED, shown(INIT, "stopped", EXIT), []),
        ):
            with self.subTest(state=state, seen=seen):
                expected = [(INIT, news)] if news else []
                self.assertEqual(told(differences(state, {}, [seen])), expected)

    def test_others(self) -> None:
        """Other processes' news come before the first one's; unknown processes are none."""
        news = differences(
            RUNNING,
            processes(a=CREATING, b=RUNNING, c=STOPPED, d=CREATING),
            [
                shown(INIT, "stopped", EXIT),
                shown("a", "running"),
                shown("b", "stopped", EXIT),
                shown("c", "stopped", EXIT),
                shown("d", "stopped", EXIT),
                shown("stranger", "running"),
            ],
        )
        started, exited = ("started", 7, STARTED), ("exited", EXIT)
        self.assertEqual(
            told(news),
            [("a", [started]), ("b", [exited]), ("d", [started, exited]), (INIT, [exited])],
        )

    def test_not_shown(self) -> None:
        """A process being made that its shim does not show never ran, unless it is underway."""
        made = processes(a=CREATING, b=RUNNING, c=CREATING)
        news = differences(RUNNING, made, [shown(INIT, "running")], {"c"})
        self.assertEqual(told(news), [("a", [("abandoned",)])])
        self.assertEqual(unsure(made, [shown(INIT, "running")], {"c"}), ["a"])
        self.assertEqual(unsure(made, [shown("a", "running")], {"c"}), [])

    def test_init_not_shown(self) -> None:
        """A container being made that its shim does not know yet is no news."""
        self.assertEqual(differences(CREATING, {}, []), [])

    def test_repeated(self) -> None:
        """News can all happen to what is recorded, and once more after that."""
        for state in (CREATED, RUNNING, STOPPED):
            for exit in (None, EXIT):
                for one in differences(state, {}, [shown(INIT, "x", exit)]) * 2:
                    for happens in one.happens:
                        state = lifecycle.container("web", state, happens).state


class LossesTests(unittest.TestCase):
    """What became of processes whose shim is gone."""

    def test_init(self) -> None:
        """Its exit is what is on disk, or lost; where one is recorded there is no news."""
        for state in (CREATED, RUNNING):
            self.assertEqual(told(losses(state, {}, {}, AT)), [(INIT, [("exited", LOST)])])
            self.assertEqual(
                told(losses(state, {}, {INIT: EXIT}, AT)), [(INIT, [("exited", EXIT)])]
            )
        for state in (CREATING, STOPPED, DELETING):
            self.assertEqual(losses(state, {}, {INIT: EXIT}, AT), [])

    def test_others(self) -> None:
        """Others end as on disk, or lost; one that was being made never ran if nothing is there."""
        news = losses(
            RUNNING,
            processes(a=CREATING, b=CREATING, c=RUNNING, d=RUNNING, e=STOPPED),
            {"b": EXIT, "d": EXIT},
            AT,
        )
        self.assertEqual(
            told(news),
            [
                ("a", [("abandoned",), ("exited", LOST)]),
                ("b", [("exited", EXIT)]),
                ("c", [("exited", LOST)]),
                ("d", [("exited", EXIT)]),
                (INIT, [("exited", LOST)]),
            ],
        )

    def test_settles(self) -> None:
        """After its losses no process is being made or running, whatever was recorded meanwhile."""
        for before, now in ((CREATING, CREATING), (CREATING, RUNNING), (RUNNING, RUNNING)):
            (news,) = losses(STOPPED, processes(a=before), {}, AT)
            state: State = now
            for happens in news.happens:
                if not isinstance(state, Gone):
                    state = lifecycle.process("a", state, happens).state
            self.assertIsInstance(state, Gone if now is CREATING else Stopped)
