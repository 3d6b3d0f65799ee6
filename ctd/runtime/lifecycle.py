"""The life of a container and of a process as tables: what may happen when, and what it means.

A state is a value with what is known in it.  :func:`container` and
:func:`process` take the state that is recorded and something that happens, and
give the state to be recorded with the events that become true with it; they
do nothing themselves.  What is not in the table cannot happen:
:class:`FailedPrecondition` names the state and those in which it could.
design/lifecycles.md draws both tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs
from automat import NoTransition, TypeMachineBuilder

from ctd.errors import FailedPrecondition
from ctd.runtime.interfaces import Exit


@attrs.frozen
class Creating:
    """Under way, or cut off and to be undone.  Nobody is shown it."""


@attrs.frozen
class Created:
    """The first process waits to be started."""

    pid: int


@attrs.frozen
class Running:
    """The process has been started and has not ended."""

    pid: int
    started_at: str


@attrs.frozen
class Stopped:
    """The process has ended.  :ivar started_at: None if it was never started."""

    started_at: str | None
    exit: Exit


@attrs.frozen
class Deleting:
    """Being taken apart.  :ivar exit: None if it was never started."""

    started_at: str | None
    exit: Exit | None


@attrs.frozen
class Gone:
    """No longer recorded."""


State = Creating | Created | Running | Stopped | Deleting | Gone


@attrs.frozen
class Told:
    """An event to be.  :ivar what: the topic's last word: ``started``."""

    what: str
    data: dict[str, Any] = attrs.field(factory=dict)


@attrs.define
class Story:
    """What a machine works on: the recorded state, and what the step makes of it."""

    state: State
    told: list[Told] = attrs.field(factory=list)

    def tell(self, what: str, **data: Any) -> None:
        """Something becomes true with this step."""
        self.told.append(Told(what, data))


class ContainerInputs(Protocol):
    """What happens to a container, or is wanted of it."""

    def created(self, pid: int, image: str | None) -> None:
        """Its first process waits to be started."""

    def start(self) -> None:
        """It is to be started."""

    def started(self, pid: int, at: str) -> None:
        """Its first process has been let go."""

    def exited(self, exit: Exit) -> None:
        """Its first process is no more."""

    def signal(self) -> None:
        """A signal is to be sent."""

    def exec(self) -> None:
        """Another process is to be run in it."""

    def delete(self) -> None:
        """It is to be taken apart."""

    def deleted(self) -> None:
        """Nothing of it is left."""


class ProcessInputs(Protocol):
    """What happens to a process other than the first, or is wanted of it."""

    def started(self, pid: int, at: str) -> None:
        """It runs."""

    def exited(self, exit: Exit) -> None:
        """It is no more."""

    def signal(self) -> None:
        """A signal is to be sent, or its input closed."""

    def abandoned(self) -> None:
        """It never came to run."""

    def delete(self) -> None:
        """It is to be forgotten."""

    def deleted(self) -> None:
        """It is forgotten."""


def _created(_: object, story: Story, pid: int, image: str | None) -> Created:
    story.state = state = Created(pid)
    return state


def _running(_: object, story: Story, pid: int, at: str) -> Running:
    story.state = state = Running(pid, at)
    return state


def _stopped(_: object, story: Story, exit: Exit) -> Stopped:
    was = story.state
    started_at = was.started_at if isinstance(was, Running) else exit.started_at
    story.state = state = Stopped(started_at, attrs.evolve(exit, started_at=None))
    return state


def _deleting(_: object, story: Story) -> Deleting:
    was = story.state
    story.state = state = (
        Deleting(was.started_at, was.exit) if isinstance(was, Stopped) else Deleting(None, None)
    )
    return state


def _gone(_: object, story: Story) -> Gone:
    story.state = state = Gone()
    return state


def _tell_exited(story: Story, exit: Exit, pid: int | None) -> None:
    story.tell(
        "exited",
        exit_status=exit.exit_status,
        exit_reason=exit.exit_reason,
        exited_at=exit.exited_at,
        pid=pid,
    )


def _container_machine() -> tuple[Any, dict[type, Any]]:
    does = ContainerInputs
    machine = TypeMachineBuilder(does, Story)
    creating = machine.state("creating")
    created = machine.state("created", _created)
    running = machine.state("running", _running)
    stopped = machine.state("stopped", _stopped)
    deleting = machine.state("deleting", _deleting)
    gone = machine.state("gone", _gone)

    @creating.upon(does.created).to(created)
    def create(_: ContainerInputs, story: Story, pid: int, image: str | None) -> None:
        story.tell("created", pid=pid, image=image)

    @created.upon(does.started).to(running)
    def start(_: ContainerInputs, story: Story, was: Created, pid: int, at: str) -> None:
        story.tell("started", pid=pid)

    @created.upon(does.exited).to(stopped)
    def never_seen_running(_: ContainerInputs, story: Story, was: Created, exit: Exit) -> None:
        if exit.started_at is not None:
            story.tell("started", pid=was.pid)
        _tell_exited(story, exit, was.pid)

    @running.upon(does.exited).to(stopped)
    def end(_: ContainerInputs, story: Story, was: Running, exit: Exit) -> None:
        _tell_exited(story, exit, was.pid)

    @deleting.upon(does.deleted).to(gone)
    def delete(_: ContainerInputs, story: Story, was: Deleting) -> None:
        story.tell("deleted")

    creating.upon(does.deleted).to(gone).returns(None)
    created.upon(does.delete).to(deleting).returns(None)
    stopped.upon(does.delete).to(deleting).returns(None)
    for state, does_not_change_it in (
        (creating, (does.exited,)),
        (created, (does.start, does.signal)),
        (running, (does.started, does.signal, does.exec)),
        (stopped, (does.started, does.exited)),
        (deleting, (does.delete, does.exited)),
    ):
        for happens in does_not_change_it:
            state.upon(happens).loop().returns(None)
    return machine.build(), {
        Creating: creating,
        Created: created,
        Running: running,
        Stopped: stopped,
        Deleting: deleting,
    }


def _process_machine() -> tuple[Any, dict[type, Any]]:
    does = ProcessInputs
    machine = TypeMachineBuilder(does, Story)
    creating = machine.state("creating")
    running = machine.state("running", _running)
    stopped = machine.state("stopped", _stopped)
    gone = machine.state("gone", _gone)

    @creating.upon(does.started).to(running)
    def start(_: ProcessInputs, story: Story, pid: int, at: str) -> None:
        story.tell("added")
        story.tell("started", pid=pid)

    @creating.upon(does.exited).to(stopped)
    def never_seen_running(_: ProcessInputs, story: Story, exit: Exit) -> None:
        story.tell("added")
        story.tell("started", pid=None)
        _tell_exited(story, exit, None)

    @running.upon(does.exited).to(stopped)
    def end(_: ProcessInputs, story: Story, was: Running, exit: Exit) -> None:
        _tell_exited(story, exit, was.pid)

    @stopped.upon(does.deleted).to(gone)
    def delete(_: ProcessInputs, story: Story, was: Stopped) -> None:
        story.tell("deleted")

    creating.upon(does.abandoned).to(gone).returns(None)
    for state, does_not_change_it in (
        (running, (does.started, does.signal, does.abandoned)),
        (stopped, (does.started, does.exited, does.abandoned, does.delete)),
    ):
        for happens in does_not_change_it:
            state.upon(happens).loop().returns(None)
    return machine.build(), {Creating: creating, Running: running, Stopped: stopped}


I = TypeVar("I")  # noqa: E741 (the inputs of one of the two)
CONTAINER, _CONTAINER_STATES = _container_machine()
PROCESS, _PROCESS_STATES = _process_machine()


def container(name: str, state: State, happens: Callable[[ContainerInputs], None]) -> Story:
    """What *happens* makes of the container *name* in *state*.

    :raise FailedPrecondition: it cannot happen in that state.
    """
    return _step("container", name, CONTAINER, _CONTAINER_STATES, state, happens)


def process(name: str, state: State, happens: Callable[[ProcessInputs], None]) -> Story:
    """What *happens* makes of the process *name* in *state*.

    :raise FailedPrecondition: it cannot happen in that state.
    """
    return _step("process", name, PROCESS, _PROCESS_STATES, state, happens)


#: States that are no advice on what to do first.
_HIDDEN = {"creating", "deleting"}


def _step(
    what: str,
    name: str,
    machine: Any,
    states: dict[type, Any],
    state: State,
    happens: Callable[[I], None],
) -> Story:
    story = Story(state)
    at = states[type(state)]
    data = None if isinstance(state, Creating) else lambda _, __: state
    try:
        happens(machine(story, at, data))
    except NoTransition as refused:
        raise FailedPrecondition(what, name, _reason(machine, at, refused.symbol)) from None
    return story


def _reason(machine: Any, at: Any, wanted: str) -> str:
    table = machine.__automat_automaton__.allTransitions()
    possible = sorted({old.name for old, symbol, *_ in table if symbol == wanted} - _HIDDEN)
    return f"it is {at.name}; {wanted} needs it to be {' or '.join(possible)}"
