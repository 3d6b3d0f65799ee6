"""The lives of containers and processes as tables."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ctd.errors import FailedPrecondition
from ctd.runtime import lifecycle
from ctd.runtime.interfaces import Exit
from ctd.runtime.lifecycle import (
    Created,
    Creating,
    Deleting,
    Gone,
    Running,
    State,
    Stopped,
    Story,
    Told,
)

AT, LATER = "2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z"
EXIT = Exit(3, "exited", LATER)
FROM_DISK = Exit(3, "exited", LATER, AT)
OTHER = Exit(255, "lost", LATER)

Happens = Callable[[Any], None]
STEPS: dict[str, Happens] = {
    "created": lambda it: it.created(7, "alpine"),
    "start": lambda it: it.start(),
    "started": lambda it: it.started(7, AT),
    "exited": lambda it: it.exited(EXIT),
    "signal": lambda it: it.signal(),
    "exec": lambda it: it.exec(),
    "abandoned": lambda it: it.abandoned(),
    "delete": lambda it: it.delete(),
    "deleted": lambda it: it.deleted(),
}
CONTAINER_STEPS = sorted(STEPS.keys() - {"abandoned"})
PROCESS_STEPS = sorted(STEPS.keys() - {"created", "start", "exec"})


def exited(pid: int | None, exit: Exit = EXIT) -> Told:
    return Told(
        "exited",
        {
            "exit_status": exit.exit_status,
            "exit_reason": exit.exit_reason,
            "exited_at": exit.exited_at,
            "pid": pid,
        },
    )


CREATING, CREATED, RUNNING = Creating(), Created(7), Running(7, AT)
STOPPED, NEVER_STARTED = Stopped(AT, EXIT), Stopped(None, EXIT)
ENDING, UNSTARTED = Deleting(AT, EXIT), Deleting(None, None)
GONE = Gone()
STARTED = Told("started", {"pid": 7})

#: What is allowed: what happens in which state, the state after it, and what is told.
CONTAINER: dict[tuple[State, str], tuple[State, list[Told]]] = {
    (CREATING, "created"): (CREATED, [Told("created", {"pid": 7, "image": "alpine"})]),
    (CREATING, "exited"): (CREATING, []),
    (CREATING, "deleted"): (GONE, []),
    (CREATED, "start"): (CREATED, []),
    (CREATED, "signal"): (CREATED, []),
    (CREATED, "started"): (RUNNING, [STARTED]),
    (CREATED, "exited"): (NEVER_STARTED, [exited(7)]),
    (CREATED, "delete"): (UNSTARTED, []),
    (RUNNING, "started"): (RUNNING, []),
    (RUNNING, "signal"): (RUNNING, []),
    (RUNNING, "exec"): (RUNNING, []),
    (RUNNING, "exited"): (STOPPED, [exited(7)]),
    (STOPPED, "started"): (STOPPED, []),
    (STOPPED, "exited"): (STOPPED, []),
    (STOPPED, "delete"): (ENDING, []),
    (NEVER_STARTED, "started"): (NEVER_STARTED, []),
    (NEVER_STARTED, "exited"): (NEVER_STARTED, []),
    (NEVER_STARTED, "delete"): (Deleting(None, EXIT), []),
    (ENDING, "delete"): (ENDING, []),
    (ENDING, "exited"): (ENDING, []),
    (ENDING, "deleted"): (GONE, [Told("deleted")]),
    (UNSTARTED, "delete"): (UNSTARTED, []),
    (UNSTARTED, "exited"): (UNSTARTED, []),
    (UNSTARTED, "deleted"): (GONE, [Told("deleted")]),
}
PROCESS: dict[tuple[State, str], tuple[State, list[Told]]] = {
    (CREATING, "started"): (RUNNING, [Told("added"), STARTED]),
    (CREATING, "exited"): (
        NEVER_STARTED,
        [Told("added"), Told("started", {"pid": None}), exited(None)],
    ),
    (CREATING, "abandoned"): (GONE, []),
    (RUNNING, "started"): (RUNNING, []),
    (RUNNING, "signal"): (RUNNING, []),
    (RUNNING, "abandoned"): (RUNNING, []),
    (RUNNING, "exited"): (STOPPED, [exited(7)]),
    (STOPPED, "started"): (STOPPED, []),
    (STOPPED, "exited"): (STOPPED, []),
    (STOPPED, "abandoned"): (STOPPED, []),
    (STOPPED, "delete"): (STOPPED, []),
    (STOPPED, "deleted"): (GONE, [Told("deleted")]),
}


class TableTests(unittest.TestCase):
    """Every state with everything that can happen."""

    def check(
        self,
        step: Callable[[str, State, Happens], Story],
        table: dict[tuple[State, str], tuple[State, list[Told]]],
        names: list[str],
    ) -> None:
        for state in {state for state, _ in table}:
            for name in names:
                with self.subTest(state=state, happens=name):
                    if (state, name) in table:
                        story = step("x", state, STEPS[name])
                        self.assertEqual((story.state, story.told), table[state, name])
                    else:
                        with self.assertRaises(FailedPrecondition) as caught:
                            step("x", state, STEPS[name])
                        self.assertIn(
                            f"it is {type(state).__name__.lower()}", str(caught.exception)
                        )
                        self.assertEqual(caught.exception.name, "x")

    def test_container(self) -> None:
        """A container does what its table says and refuses the rest, naming its state."""
        self.check(lifecycle.container, CONTAINER, CONTAINER_STEPS)

    def test_process(self) -> None:
        """A process does what its table says and refuses the rest, naming its state."""
        self.check(lifecycle.process, PROCESS, PROCESS_STEPS)

    def test_advice(self) -> None:
        """A refusal names the states in which it would have been possible."""
        for state, happens, reason in (
            (RUNNING, "start", "it is running; start needs it to be created"),
            (STOPPED, "signal", "it is stopped; signal needs it to be created or running"),
            (CREATED, "exec", "it is created; exec needs it to be running"),
            (RUNNING, "delete", "it is running; delete needs it to be created or stopped"),
        ):
            with self.assertRaises(FailedPrecondition) as caught:
                lifecycle.container("web", state, STEPS[happens])
            self.assertEqual(caught.exception.reason, reason)

    def test_start_from_disk(self) -> None:
        """An exit record that knows of a start nobody heard of has it told first."""
        story = lifecycle.container("web", CREATED, lambda it: it.exited(FROM_DISK))
        self.assertEqual(story.state, Stopped(AT, EXIT))
        self.assertEqual(story.told, [STARTED, exited(7)])
        story = lifecycle.process("sh", CREATING, lambda it: it.exited(FROM_DISK))
        self.assertEqual(story.state, Stopped(AT, EXIT))


class WalkTests(unittest.TestCase):
    """Anything in any order."""

    def walk(
        self, step: Callable[[str, State, Happens], Story], steps: list[Happens], order: list[str]
    ) -> list[str]:
        state: State = Creating()
        told: list[str] = []
        for happens in steps:
            try:
                story = step("x", state, happens)
            except FailedPrecondition:
                continue
            state = story.state
            told += [one.what for one in story.told]
            if isinstance(state, Gone):
                break
        self.assertEqual(told, sorted(set(told), key=order.index))
        return told

    @given(st.lists(st.sampled_from([*map(STEPS.get, CONTAINER_STEPS), lambda it: it.exited(OTHER),
                                     lambda it: it.exited(FROM_DISK)])))  # fmt: skip
    def test_container(self, steps: list[Happens]) -> None:
        """Whatever happens, events come once and as created < started < exited < deleted."""
        told = self.walk(lifecycle.container, steps, ["created", "started", "exited", "deleted"])
        self.assertTrue(not told or told[0] == "created")

    @given(st.lists(st.sampled_from([*map(STEPS.get, PROCESS_STEPS), lambda it: it.exited(OTHER),
                                     lambda it: it.exited(FROM_DISK)])))  # fmt: skip
    def test_process(self, steps: list[Happens]) -> None:
        """Whatever happens, events come once and as added < started < exited < deleted."""
        order = ["added", "started", "exited", "deleted"]
        told = self.walk(lifecycle.process, steps, order)
        self.assertEqual(told, order[: len(told)])
