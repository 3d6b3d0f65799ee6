"""Containers on a fake machine: what is promised, and what a daemon's end leaves to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from ctd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ctd.runtime.containers import KILL_SECONDS, LONGEST_PAUSE
from ctd.runtime.errors import CommandNotFound, RuntimeFailure, ShimGone
from ctd.runtime.interfaces import (
    INIT,
    Exit,
    IContainers,
    IProcesses,
    IRootfsSource,
    IShim,
    IShimListener,
    IShims,
    ProcessState,
    ShimSpec,
)
from ctd.runtime.lifecycle import State
from ctd.runtime.table import Entry
from ctd.threads import IWorkers
from tests.unit.runtime.fakes import (
    ENDED,
    NS,
    STARTED,
    Daemon,
    FakeWorkers,
    Stage,
    begin,
    exec_request,
    request,
)
from tests.unit.runtime.rig import RuntimeTestCase

ENDED_WELL = Exit(0, "exited", ENDED)
LIFE = ["created", "started", "exited", "deleted"]


class InterfaceTests(RuntimeTestCase):
    """Everything is what it says it is."""

    def test_interfaces(self) -> None:
        """The parts and their fakes provide their interfaces."""
        self.create()
        daemon = self.daemon
        for interface, one in (
            (IContainers, daemon.containers),
            (IShimListener, daemon.containers),
            (IProcesses, daemon.processes),
            (IShims, daemon.shims),
            (IShim, daemon.table.find(NS, "web").shim),
            (IRootfsSource, daemon.rootfs),
            (IWorkers, FakeWorkers(self.world, daemon.stage)),
        ):
            verifyObject(interface, one)


class LifeTests(RuntimeTestCase):
    """A container's life where nothing goes wrong."""

    def test_life(self) -> None:
        """Created, started, ended, deleted: each is shown, told once, and leaves nothing."""
        made = self.create(labels={"a": "b"})
        self.assertEqual(
            (made.status, made.labels, made.args), ("created", {"a": "b"}, ("sleep", "9"))
        )
        self.assertEqual(made.image, "docker.io/library/alpine:latest")
        self.assertEqual(made.netns, f"/proc/{made.pid}/ns/net")
        self.assertIsNone(made.started_at)
        started = self.done(self.daemon.containers.start(NS, "web"))
        self.assertEqual((started.status, started.pid), ("running", made.pid))
        self.assertEqual(started.started_at, STARTED)
        self.world.end(self.daemon.run(), status=3)
        stopped = self.done(self.daemon.containers.get(NS, "web"))
        self.assertEqual(
            (stopped.status, stopped.pid, stopped.exit_status, stopped.exited_at),
            ("stopped", None, 3, ENDED),
        )
        self.assertEqual(self.done(self.daemon.containers.list()), [stopped])
        self.assertEqual(self.done(self.daemon.containers.list("other")), [])
        self.done(self.daemon.containers.delete(NS, "web"))
        self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE])
        self.check_nothing()
        self.refused(self.daemon.containers.get(NS, "web"), NotFound)

    def test_wait(self) -> None:
        """Many wait, before the start, after it and after the end: all are told the same."""
        self.create()
        waiting = [begin(self.daemon.containers.wait(NS, "web")) for _ in range(20)]
        self.done(self.daemon.containers.start(NS, "web"))
        waiting += [begin(self.daemon.containers.wait(NS, "web")) for _ in range(20)]
        left = waiting.pop()
        left.cancel()
        self.failureResultOf(left, CancelledError)
        self.world.end(self.daemon.run())
        waiting += [begin(self.daemon.containers.wait(NS, "web"))]
        self.assertEqual({self.successResultOf(w) for w in waiting}, {ENDED_WELL})

    def test_kill(self) -> None:
        """A signal goes to the first process or to all; to what has ended it is refused."""
        self.running()
        self.done(self.daemon.containers.kill(NS, "web", 15))
        self.done(self.daemon.containers.kill(NS, "web", 9, True))
        run = self.daemon.run()
        self.assertEqual(self.world.signals, [(run, INIT, 15, False), (run, INIT, 9, True)])
        self.refused(self.daemon.containers.kill(NS, "web", 15), FailedPrecondition)
        self.refused(self.daemon.containers.kill(NS, "no", 15), NotFound)

    def test_start_twice(self) -> None:
        """A container is started once; the second start names the state it is in."""
        self.running()
        error = self.refused(self.daemon.containers.start(NS, "web"), FailedPrecondition)
        self.assertIn("it is running", str(error))
        self.assertEqual(self.events(), ["container.created web", "container.started web"])

    def test_delete_running(self) -> None:
        """What runs is not deleted; by force it is killed first, and its exit is told."""
        self.running()
        self.refused(self.daemon.containers.delete(NS, "web"), FailedPrecondition)
        self.assertEqual(self.status(), "running")
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        self.done(self.daemon.containers.delete(NS, "web", True))
        self.assertEqual(self.successResultOf(waiter).exit_status, 137)
        self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE])
        self.check_nothing()

    def test_delete_created(self) -> None:
        """What was never started is deleted without an exit; who waits is told it is gone."""
        self.create()
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        self.done(self.daemon.containers.delete(NS, "web"))
        self.failureResultOf(waiter, NotFound)
        self.assertEqual(self.events(), ["container.created web", "container.deleted web"])
        self.check_nothing()

    def test_delete_twice_at_once(self) -> None:
        """Of two deletes at once one deletes and the other finds nothing; a new one can come."""
        self.create()
        stage = self.hold("shim.delete")
        first = begin(self.daemon.containers.delete(NS, "web"))
        second = begin(self.daemon.containers.delete(NS, "web"))
        stage.release()
        self.successResultOf(first)
        self.failureResultOf(second, NotFound)
        self.check_nothing()
        self.create()

    def test_start_and_delete(self) -> None:
        """A delete that comes while it is started waits, and is refused as it runs then."""
        self.create()
        stage = self.hold("shim.start")
        started = begin(self.daemon.containers.start(NS, "web"))
        deleted = begin(self.daemon.containers.delete(NS, "web"))
        self.assertNoResult(deleted)
        stage.release()
        self.successResultOf(started)
        self.failureResultOf(deleted, FailedPrecondition)

    def test_start_cancelled(self) -> None:
        """A start whose caller leaves goes on, and is recorded."""
        self.create()
        stage = self.hold("shim.start")
        started = begin(self.daemon.containers.start(NS, "web"))
        started.cancel()
        stage.release()
        self.failureResultOf(started, CancelledError)
        self.assertEqual(self.status(), "running")

    def test_told_twice(self) -> None:
        """An exit that is told twice, or again with another word, is one exit."""
        self.running()
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        run = self.daemon.run()
        self.world.end(run, status=3)
        for exit in (ENDED_WELL, Exit(255, "lost", ENDED)):
            self.daemon.containers.exited(run, INIT, exit)
            self.daemon.containers.exited("ffffffffffff", INIT, exit)
        self.assertEqual(self.successResultOf(waiter).exit_status, 3)
        self.assertEqual(len([e for e in self.events() if "exited" in e]), 1)

    def test_ends_at_once(self) -> None:
        """A process that ends while its start is being recorded is started, then ended."""
        self.create()
        stage = self.daemon.stage
        stage.hold_at = stage.steps + 2
        started = begin(self.daemon.containers.start(NS, "web"))
        self.assertEqual(stage.trace[-2], "shim.start")
        self.world.end(self.daemon.run())
        stage.release()
        self.successResultOf(started)
        self.assertEqual(self.status(), "stopped")
        self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE[:3]])


class PersistenceTests(RuntimeTestCase):
    """What must not be lost because something failed for a moment."""

    def test_exit(self) -> None:
        """An exit that cannot be recorded is recorded when the disk has room again."""
        self.running()
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        advance, fails = self.daemon.table.advance, [True, True]

        async def full(*args: Any, **kwargs: Any) -> Any:
            if fails:
                fails.pop()
                raise ResourceExhausted("space on disk")
            return await advance(*args, **kwargs)

        self.daemon.table.advance = full  # type: ignore[method-assign]
        self.world.end(self.daemon.run(), status=3)
        self.assertNoResult(waiter)
        self.daemon.clock.pump([LONGEST_PAUSE] * 3)
        self.assertEqual(self.successResultOf(waiter).exit_status, 3)
        self.assertEqual([e for e in self.events() if "exited" in str(e)], self.events()[-1:])
        self.flushLoggedErrors()


class CreateTests(RuntimeTestCase):
    """Creating, and leaving nothing where it fails."""

    def test_taken(self) -> None:
        """A name that is taken is refused, and what has it is left as it is."""
        self.running()
        self.refused(self.daemon.containers.create(request()), AlreadyExists)
        self.check_accounted()

    def test_invalid(self) -> None:
        """A request that cannot be used does nothing at all."""
        self.refused(self.daemon.containers.create(request("../x")), InvalidArgument)
        self.assertEqual(self.daemon.stage.trace, [])

    def test_no_image(self) -> None:
        """Without its image it is NotFound, and the name is free again."""
        self.world.images.clear()
        self.refused(self.daemon.containers.create(request()), NotFound)
        self.check_nothing()
        self.world.images.add("alpine")
        self.create()

    def test_refused(self) -> None:
        """An error at any part is the caller's as it is, and leaves nothing and no event."""
        for at, error in (
            ("fork", Unavailable("template", "no memory")),
            ("create", RuntimeFailure("/usr/sbin/runc", "create", "no")),
            ("create", CommandNotFound("sleep", "no such file")),
            ("create", ShimGone("a", "lost")),
            ("create", DeadlineExceeded("reply to create", 120)),
            ("user", InvalidArgument("user", "no such user")),
        ):
            with self.subTest(at=at, error=error):
                self.fresh()
                self.world.refuse[at] = error
                caught = self.refused(self.daemon.containers.create(request()), type(error))
                self.assertIs(caught, error)
                self.assertEqual(self.events(), [])
                self.check_nothing()

    def steps(self) -> int:
        self.fresh()
        self.create()
        return self.daemon.stage.steps

    def test_every_step_fails(self) -> None:
        """Whichever step fails, before or after its work, nothing is left."""
        for after in (False, True):
            for step in range(1, self.steps() + 1):
                error = ResourceExhausted("space")
                self.fresh(cut_at=step, after=after, fails=error)
                with self.subTest(step=step, after=after):
                    self.refused(self.daemon.containers.create(request()), ResourceExhausted)
                    if after and "transact" in self.daemon.stage.trace[step - 1]:
                        continue  # a transaction that fails has changed nothing
                    self.check_nothing()
                    self.create()

    def test_every_step_cancelled(self) -> None:
        """Whoever leaves at any step, its work done at once or late, leaves nothing."""
        for late in (False, True):
            for step in range(1, self.steps() + 1):
                self.fresh()
                stage = self.daemon.stage
                stage.hold_at, stage.late = step, late
                made = begin(self.daemon.containers.create(request()))
                name = stage.trace[-1]
                if late and ("prepare" in name or "shim.create" in name):
                    # Whose own promise it is: prepare's cancellation, the shim's order of requests.
                    stage.release()
                    continue
                with self.subTest(step=step, name=name, late=late):
                    self.assertNoResult(made)
                    made.cancel()
                    stage.release()
                    self.failureResultOf(made, CancelledError)
                    self.check_nothing()
                    self.create()

    def test_shim_dies(self) -> None:
        """A shim that dies at any step of its container's making leaves nothing of it."""
        for step in range(1, self.steps() + 1):
            self.fresh()
            stage = self.daemon.stage
            stage.hold_at = step
            made = begin(self.daemon.containers.create(request()))
            if not self.world.shims:
                continue
            with self.subTest(step=step, name=stage.trace[-1]):
                (run,) = self.world.shims
                self.world.kill_shim(run)
                stage.release()
                self.failureResultOf(made, ShimGone)
                self.check_nothing()

    def test_undoing_fails(self) -> None:
        """Where even undoing fails the caller hears the first error, and the next start undoes."""
        self.world.refuse |= {"create": RuntimeFailure("runc", "create", "no")}
        self.world.refuse |= {"end": Unavailable("process 7", "it does not end")}
        stage = self.hold("shim.create")
        made = begin(self.daemon.containers.create(request()))
        (run,) = self.world.shims
        self.world.unkillable.add(run)
        stage.release()
        self.failureResultOf(made, RuntimeFailure)
        self.assertEqual(self.done(self.daemon.containers.list()), [])
        self.refused(self.daemon.containers.get(NS, "web"), NotFound)
        self.refused(self.daemon.containers.create(request()), AlreadyExists)
        self.world.unkillable.clear()
        self.restart()
        self.check_nothing()

    def leave_last(self, then: Callable[[], Deferred[Any]]) -> list[Deferred[Any]]:
        """Cancel a create at its last step, and have *then* come before it is undone."""
        last = self.steps()
        self.fresh()
        stage = self.daemon.stage
        stage.hold_at = last
        made = begin(self.daemon.containers.create(request()))
        made.cancel()
        came: list[Deferred[Any]] = []
        learn = self.daemon.table._learn

        def then_come(entry: Entry, process: str, state: State) -> None:
            self.daemon.table._learn = learn  # type: ignore[method-assign]
            learn(entry, process, state)
            came.append(then())

        self.daemon.table._learn = then_come  # type: ignore[method-assign]
        stage.release()
        self.failureResultOf(made, CancelledError)
        return came

    def test_deleted_at_once(self) -> None:
        """One that somebody deletes while its maker leaves is gone, and both are content."""
        (deleted,) = self.leave_last(lambda: begin(self.daemon.containers.delete(NS, "web")))
        self.successResultOf(deleted)
        self.check_nothing()
        self.assertEqual(self.events(), ["container.created web", "container.deleted web"])

    def test_started_at_once(self) -> None:
        """One that somebody starts while its maker leaves is killed, told of and gone."""
        (started,) = self.leave_last(lambda: begin(self.daemon.containers.start(NS, "web")))
        self.successResultOf(started)
        self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE])
        self.check_nothing()


class ShimDeathTests(RuntimeTestCase):
    """Shims that die or hang up under a live daemon."""

    def test_created(self) -> None:
        """A created container whose shim dies is lost: ended with 255, never started."""
        self.create()
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        self.world.kill_shim(self.daemon.run())
        exit = self.successResultOf(waiter)
        self.assertEqual((exit.exit_status, exit.exit_reason), (255, "lost"))
        self.assertEqual(self.events(), ["container.created web", "container.exited web"])
        self.check_accounted()
        self.done(self.daemon.containers.delete(NS, "web"))
        self.check_nothing()

    def test_running(self) -> None:
        """A running one is ended, and lost; its name can be deleted and used again."""
        self.running()
        self.world.kill_shim(self.daemon.run())
        self.assertEqual(self.status(), "stopped")
        self.check_accounted()
        self.done(self.daemon.containers.delete(NS, "web"))
        self.check_nothing()
        self.create()

    def test_recorded(self) -> None:
        """An exit that the shim recorded before it died counts, not the loss."""
        self.running()
        run = self.daemon.run()
        self.world.hang_up(run)
        self.world.end(run, status=3)
        self.assertEqual(self.status(), "running")
        self.world.kill_shim(run)
        self.assertEqual(self.done(self.daemon.containers.wait(NS, "web")).exit_status, 3)

    def test_stopped(self) -> None:
        """A stopped one stays as it is."""
        self.running()
        run = self.daemon.run()
        self.world.end(run, status=3)
        self.world.kill_shim(run)
        self.assertEqual(self.done(self.daemon.containers.wait(NS, "web")).exit_status, 3)
        self.check_accounted()

    def test_does_not_end(self) -> None:
        """What does not end is tried again until it does, and only then told to have."""
        self.running()
        run = self.daemon.run()
        self.world.unkillable.add(run)
        self.world.refuse["end"] = Unavailable("process 7", "it does not end")
        self.world.kill_shim(run)
        self.assertEqual(self.status(), "running")
        self.refused(self.daemon.containers.kill(NS, "web", 9), Unavailable)
        self.daemon.clock.pump([1] * 5)
        self.world.unkillable.clear()
        self.daemon.clock.pump([LONGEST_PAUSE])
        self.assertEqual(self.status(), "stopped")
        self.check_accounted()

    def test_hung_up(self) -> None:
        """What ended while the connection was lost is told when it is there again, once."""
        self.running()
        run = self.daemon.run()
        waiter = begin(self.daemon.containers.wait(NS, "web"))
        self.world.hang_up(run)
        self.refused(self.daemon.containers.kill(NS, "web"), ShimGone)
        self.world.end(run, status=3)
        self.assertNoResult(waiter)
        self.world.reconnect(run)
        self.assertEqual(self.successResultOf(waiter).exit_status, 3)
        self.check_accounted()

    def test_hung_up_while_starting(self) -> None:
        """A start whose answer was lost is told before the exit, however the exit is heard of."""
        for reconnected in (True, False):
            self.fresh()
            self.create()
            run = self.daemon.run()
            stage = self.daemon.stage
            stage.cut_at, stage.after, stage.fails = stage.steps + 1, True, ShimGone(run, "lost")
            self.refused(self.daemon.containers.start(NS, "web"), ShimGone)
            if reconnected:
                self.world.reconnect(run)
                self.assertEqual(self.status(), "running")
            self.world.end(run)
            self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE[:3]])
            self.check_accounted()

    def test_hung_up_while_creating(self) -> None:
        """A connection that comes back while a container is being undone changes nothing."""
        stage = self.hold("shim.create")
        made = begin(self.daemon.containers.create(request()))
        (run,) = self.world.shims
        self.daemon.containers.reconnected(run, ())
        stage.release()
        self.successResultOf(made)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_force_wedged(self) -> None:
        """A forced delete of a container that does not die in time ends its shim too."""
        for wedged in (False, True):
            self.fresh()
            self.running()
            run = self.daemon.run()
            self.world.ends_on_kill = False
            if wedged:
                self.world.hang_up(run)
            deleted = begin(self.daemon.containers.delete(NS, "web", True))
            if not wedged:
                self.assertNoResult(deleted)
                self.daemon.clock.advance(KILL_SECONDS)
            self.successResultOf(deleted)
            self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE])
            self.check_nothing()


class RecoveryTests(RuntimeTestCase):
    """A daemon killed at any step, and the next one."""

    def test_states(self) -> None:
        """Created, running and stopped containers are found again as they are."""
        self.create("a")
        self.running("b")
        self.running("c")
        self.world.end(self.daemon.run("c"), status=3)
        before = self.done(self.daemon.containers.list())
        self.restart()
        self.assertEqual(self.done(self.daemon.containers.list()), before)
        self.check_order()
        self.done(self.daemon.containers.start(NS, "a"))
        waiter = begin(self.daemon.containers.wait(NS, "b"))
        self.world.end(self.daemon.run("b"))
        self.assertEqual(self.successResultOf(waiter), ENDED_WELL)
        for id in "abc":
            self.done(self.daemon.containers.delete(NS, id, True))
        self.check_nothing()

    def test_ended_meanwhile(self) -> None:
        """What ended while no daemon was there is told by the next one, once."""
        self.running()
        run = self.daemon.run()
        self.daemon.shims.attached.clear()
        self.world.end(run, status=3)
        for _ in range(3):
            self.restart()
            self.assertEqual(self.done(self.daemon.containers.wait(NS, "web")).exit_status, 3)
        self.assertEqual(self.events(), [f"container.{what} web" for what in LIFE[:3]])

    def test_reboot(self) -> None:
        """After a reboot nothing runs; exits on disk count, the others are lost."""
        self.create("a")
        self.running("b")
        self.running("c")
        self.daemon.shims.attached.clear()
        self.world.end(self.daemon.run("c"), status=3)
        self.world.reboot()
        self.restart(boot_id="later")
        found = {c.id: (c.status, c.exit_status) for c in self.done(self.daemon.containers.list())}
        self.assertEqual(found, {"a": ("stopped", 255), "b": ("stopped", 255), "c": ("stopped", 3)})
        for id in "abc":
            self.done(self.daemon.containers.delete(NS, id))
        self.check_nothing()

    def test_reboot_with_processes(self) -> None:
        """After a reboot no process of a stopped container is said to run."""
        self.running()
        self.done(self.daemon.processes.exec(exec_request()))
        entry = self.daemon.table.find(NS, "web")
        self.done(self.daemon.table.advance(entry, INIT, lambda it: it.exited(ENDED_WELL)))
        self.world.reboot()
        self.restart(boot_id="later")
        (process,) = self.done(self.daemon.processes.list(NS, "web"))[1:]
        self.assertEqual((process.status, process.exit_status), ("stopped", 255))

    def test_unknown_run(self) -> None:
        """A run that no record knows is destroyed."""
        self.world.directories.add("f" * 12)
        self.done(self.daemon.shims.fork(ShimSpec("f" * 12, NS, "x", "runc")))
        self.restart()
        self.check_nothing()

    def crash(self, prepare: Callable[[], None], call: Callable[[], Any]) -> None:
        """Cut *call* off at every step, before and after its work, and check the next daemon."""
        self.fresh()
        prepare()
        first = self.daemon.stage.steps
        self.done(call())
        last = self.daemon.stage.steps
        self.assertGreater(last, first)
        for after in (False, True):
            for step in range(first + 1, last + 1):
                self.fresh()
                prepare()
                stage = self.daemon.stage
                stage.cut_at, stage.after = step, after
                self.assertNoResult(begin(call()))
                with self.subTest(step=step, name=stage.trace[-1], after=after):
                    self.restart()
                    self.check_accounted()
                    self.restart()
                    self.check_accounted()
                    for container in self.done(self.daemon.containers.list()):
                        self.done(self.daemon.containers.delete(NS, container.id, True))
                    self.check_nothing()
                    exits = [e for e in self.events("") if ".exited" in e]
                    self.assertEqual(len(exits), len(set(exits)))

    def test_crash_in_create(self) -> None:
        """A daemon killed at any step of create leaves a whole container or none."""
        self.crash(lambda: None, lambda: self.daemon.containers.create(request()))

    def test_crash_in_start(self) -> None:
        """A daemon killed at any step of start leaves it created or running."""
        self.crash(lambda: self.create(), lambda: self.daemon.containers.start(NS, "web"))

    def test_crash_in_delete(self) -> None:
        """A daemon killed at any step of delete leaves it whole, or the next one finishes it."""
        self.crash(lambda: self.create(), lambda: self.daemon.containers.delete(NS, "web"))

        def stopped() -> None:
            self.running()
            self.done(self.daemon.processes.exec(exec_request()))
            self.world.end(self.daemon.run())

        self.crash(stopped, lambda: self.daemon.containers.delete(NS, "web"))

    def test_crash_in_forced_delete(self) -> None:
        """A daemon killed at any step of a forced delete leaves it running, stopped or gone."""

        def running() -> None:
            self.running()
            self.done(self.daemon.processes.exec(exec_request()))

        self.crash(running, lambda: self.daemon.containers.delete(NS, "web", True))

    def test_crash_in_exec(self) -> None:
        """A daemon killed at any step of exec leaves a running process or none."""
        self.crash(lambda: self.running(), lambda: self.daemon.processes.exec(exec_request()))

    def test_crash_in_recovery(self) -> None:
        """A daemon killed at any step of recovery is followed by one that recovers."""

        def prepare() -> None:
            self.running()
            self.done(self.daemon.processes.exec(exec_request()))
            self.daemon.shims.attached.clear()
            self.world.end(self.daemon.run(), "sh")

        for death in (False, True):
            for after in (False, True):
                for step in range(1, 20):
                    self.fresh()
                    prepare()
                    if death:
                        self.world.kill_shim(self.daemon.run())
                    stage = Stage(step, after=after)
                    self.daemon = Daemon(self.world, self.database, Clock(), stage)
                    begin(self.daemon.containers.recover())
                    with self.subTest(step=step, after=after, death=death):
                        self.restart()
                        self.check_accounted()
                        self.assertEqual(self.status(), "stopped" if death else "running")
                    if stage.steps < step:
                        break

    def test_deaf(self) -> None:
        """A shim that cannot be reached holds up no other, and is asked again until it can."""
        for id in ("a", "b", "c"):
            self.running(id)
        deaf = self.world.shims[self.daemon.run("a")]
        deaf.deaf = True
        self.daemon.shims.attached.clear()
        self.world.end(self.daemon.run("b"))
        daemon = self.restart()
        found = {c.id: c.status for c in self.done(daemon.containers.list())}
        self.assertEqual(found, {"a": "running", "b": "stopped", "c": "running"})
        self.refused(daemon.containers.kill(NS, "a"), Unavailable)
        self.done(daemon.containers.kill(NS, "c"))
        daemon.clock.pump([1] * 100)
        deaf.deaf = False
        daemon.clock.pump([LONGEST_PAUSE])
        self.done(daemon.containers.kill(NS, "a"))

    def test_deleted_while_deaf(self) -> None:
        """A container whose shim cannot be reached can be deleted by force; then nobody asks it."""
        self.running()
        self.world.shims[self.daemon.run()].deaf = True
        self.restart()
        self.done(self.daemon.containers.delete(NS, "web", True))
        self.check_nothing()
        self.daemon.clock.pump([LONGEST_PAUSE] * 2)
        self.check_nothing()
        self.assertEqual(self.daemon.clock.getDelayedCalls(), [])

    def test_silent(self) -> None:
        """A shim that takes the connection and says nothing does not keep the start waiting."""
        self.running("a")
        self.running("b")
        self.world.shims[self.daemon.run("a")].wedged = True
        self.restart()
        self.assertEqual({c.status for c in self.done(self.daemon.containers.list())}, {"running"})
        self.done(self.daemon.containers.kill(NS, "b"))

    def test_hangs_up(self) -> None:
        """A shim that hangs up on the new daemon is asked again, and not killed."""
        for error in (ShimGone("a", "the connection was lost"), DeadlineExceeded("state", 5)):
            self.fresh()
            self.running()
            run = self.daemon.run()
            self.world.refuse["state"] = error
            self.restart()
            self.assertIn(run, self.world.shims)
            self.assertEqual(self.status(), "running")
            del self.world.refuse["state"]
            self.daemon.clock.pump([LONGEST_PAUSE])
            self.done(self.daemon.containers.kill(NS, "web"))
            self.check_accounted()

    def test_does_not_end(self) -> None:
        """Half-made things that do not end are tried again, beside the service."""
        self.create()
        run = self.daemon.run()
        entry = self.daemon.table.find(NS, "web")
        self.done(self.daemon.table.advance(entry, INIT, lambda it: it.delete()))
        self.world.unkillable.add(run)
        self.world.refuse["end"] = Unavailable("process 7", "it does not end")
        self.restart()
        self.assertIn(run, self.world.directories)
        self.world.unkillable.clear()
        self.daemon.clock.pump([LONGEST_PAUSE])
        self.check_nothing()

    def test_stop(self) -> None:
        """Stopping ends what goes on beside the calls; containers run on."""
        self.running()
        (shim,) = self.world.shims.values()
        shim.deaf = True
        self.restart()
        self.done(self.daemon.containers.stop())
        self.assertEqual(self.daemon.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.world.shims), 1)
        shim.deaf = False
        self.restart()
        self.check_accounted()

    def test_exec_under_way(self) -> None:
        """An exec that the former daemon began and the shim is still busy with is told of."""
        self.running()
        shim = self.world.shims[self.daemon.run()]
        stage = self.daemon.stage
        stage.cut_at = stage.steps + 2
        begin(self.daemon.processes.exec(exec_request()))
        self.assertEqual(stage.trace[-1], "shim.exec")
        shim.busy["sh"] = ProcessState("sh", "running", 9, STARTED)
        self.restart()
        self.check_accounted()
        self.assertEqual(self.events("process"), ["process.added web/sh", "process.started web/sh"])
