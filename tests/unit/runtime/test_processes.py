"""Processes of containers on a fake machine."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from ctd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from ctd.runtime.errors import CommandNotFound, RuntimeFailure, ShimGone
from ctd.runtime.interfaces import INIT, ExecRequest, Exit, Process, Stdio
from ctd.runtime.lifecycle import Creating
from tests.unit.runtime.fakes import ENDED, NS, STARTED, begin, exec_request
from tests.unit.runtime.rig import RuntimeTestCase

LIFE = ["added", "started", "exited", "deleted"]


class ProcessesTestCase(RuntimeTestCase):
    """A running container."""

    def fresh(self, **stage: Any) -> None:
        super().fresh()
        self.running()
        self.before = self.daemon.stage.steps
        if stage:
            stage["cut_at"] += self.before
            for name, value in stage.items():
                setattr(self.daemon.stage, name, value)

    def exec(self, id: str = "sh", **fields: Any) -> Process:
        made: Process = self.done(self.daemon.processes.exec(exec_request(id, **fields)))
        return made

    def told(self) -> list[str]:
        return self.events("process")

    def shown(self) -> dict[str, str]:
        return {p.id: p.status for p in self.done(self.daemon.processes.list(NS, "web"))}

    def ends_either_way(self, made: Deferred[Any]) -> None:
        """It has an answer by now, or an error that tells what became of its container."""
        made.addErrback(lambda f: f.trap(NotFound, Unavailable, ShimGone, FailedPrecondition))
        self.successResultOf(made)

    def check_no_process(self) -> None:
        """There is nothing of any process but the first, and its id is free."""
        self.assertEqual(self.shown(), {INIT: "running"})
        entry = self.daemon.table.find(NS, "web")
        self.assertEqual((entry.processes, entry.underway), ({}, set()))
        self.assertEqual(list(self.world.shims[entry.run].processes), [INIT])
        self.assertEqual(self.told(), [])
        self.exec()


class ExecTests(ProcessesTestCase):
    """Running another process."""

    def test_life(self) -> None:
        """It runs, ends and is forgotten; each is shown and told once."""
        made = self.exec(stdio=Stdio("attach"))
        self.assertEqual((made.status, made.started_at, made.args), ("running", STARTED, ("true",)))
        run = self.daemon.run()
        self.assertEqual(made.attach, f"/state/shims/{run}/io/sh.sock")
        self.assertEqual(self.shown(), {INIT: "running", "sh": "running"})
        waiter = begin(self.daemon.processes.wait(NS, "web", "sh"))
        self.refused(self.daemon.processes.delete(NS, "web", "sh"), FailedPrecondition)
        self.world.end(run, "sh", 3)
        self.assertEqual(self.successResultOf(waiter), Exit(3, "exited", ENDED))
        self.assertEqual(self.done(self.daemon.processes.get(NS, "web", "sh")).exit_status, 3)
        self.done(self.daemon.processes.delete(NS, "web", "sh"))
        self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE])
        self.refused(self.daemon.processes.get(NS, "web", "sh"), NotFound)
        self.assertEqual(list(self.world.shims[run].processes), [INIT])

    def test_init(self) -> None:
        """The container's first process is one of them, and goes with its container only."""
        init = self.done(self.daemon.processes.get(NS, "web", INIT))
        self.assertEqual((init.id, init.status, init.args), (INIT, "running", ("sleep", "9")))
        waiter = begin(self.daemon.processes.wait(NS, "web", INIT))
        self.refused(self.daemon.processes.delete(NS, "web", INIT), FailedPrecondition)
        self.done(self.daemon.processes.kill(NS, "web", INIT, 9))
        self.assertEqual(self.successResultOf(waiter).exit_status, 137)
        self.refused(self.daemon.processes.delete(NS, "web", INIT), FailedPrecondition)
        self.refused(self.daemon.processes.kill(NS, "web", INIT, 9), FailedPrecondition)

    def test_taken(self) -> None:
        """An id that is taken is refused, also ``init``."""
        self.exec()
        for id in ("sh", INIT):
            self.refused(self.daemon.processes.exec(exec_request(id)), AlreadyExists)
        self.assertEqual(self.shown(), {INIT: "running", "sh": "running"})

    def test_not_running(self) -> None:
        """In a container that does not run there is no exec."""
        self.create("new")
        error = self.refused(
            self.daemon.processes.exec(exec_request(container="new")), FailedPrecondition
        )
        self.assertIn("it is created", str(error))
        self.world.end(self.daemon.run())
        self.refused(self.daemon.processes.exec(exec_request()), FailedPrecondition)
        self.refused(self.daemon.processes.exec(exec_request(container="no")), NotFound)
        self.refused(self.daemon.processes.list(NS, "no"), NotFound)

    def test_invalid(self) -> None:
        """A request that cannot be used reaches nobody."""
        for wanted in (exec_request("../x"), ExecRequest(NS, "web", "sh", ())):
            self.refused(self.daemon.processes.exec(wanted), InvalidArgument)
        self.check_no_process()

    def test_signals(self) -> None:
        """Signals and the end of input go to the process; to what has ended they are refused."""
        self.exec()
        processes, run = self.daemon.processes, self.daemon.run()
        self.done(processes.kill(NS, "web", "sh", 15))
        self.done(processes.close_stdin(NS, "web", "sh"))
        self.assertEqual(self.world.signals, [(run, "sh", 15, False)])
        self.world.end(run, "sh")
        self.refused(processes.kill(NS, "web", "sh", 15), FailedPrecondition)
        self.refused(processes.close_stdin(NS, "web", "sh"), FailedPrecondition)
        self.refused(processes.kill(NS, "web", "no", 15), NotFound)

    def test_refused(self) -> None:
        """An error is the caller's as it is, and leaves nothing and no event."""
        for at, error in (
            ("exec", RuntimeFailure("runc", "exec", "no")),
            ("exec", CommandNotFound("true", "no such file")),
            ("exec", FailedPrecondition("process", "sh", "it stopped")),
            ("user", InvalidArgument("user", "no such user")),
        ):
            with self.subTest(error=error):
                self.fresh()
                self.world.refuse[at] = error
                work = self.daemon.processes.exec(exec_request(user="x"))
                self.assertIs(self.refused(work, type(error)), error)
                self.world.refuse.clear()
                self.check_no_process()

    def test_user_of_ended(self) -> None:
        """A user that cannot be looked up as the container has just ended is a precondition."""

        async def gone(*_: Any) -> Any:
            raise ProcessLookupError(3, "No such process")

        self.daemon.rootfs.user = gone  # type: ignore[method-assign]
        work = self.daemon.processes.exec(exec_request(user="x"))
        self.refused(work, FailedPrecondition)
        self.check_no_process()

    def steps(self) -> int:
        self.fresh()
        self.exec(user="x")
        return self.daemon.stage.steps - self.before

    def test_every_step_fails(self) -> None:
        """Whichever step before its start fails, nothing of the process is left."""
        for step in range(1, self.steps()):  # the last is that it runs by now
            self.fresh(cut_at=step, fails=ResourceExhausted("space"))
            with self.subTest(step=step):
                work = self.daemon.processes.exec(exec_request(user="x"))
                self.refused(work, ResourceExhausted)
                self.check_no_process()

    def test_start_not_recorded(self) -> None:
        """One whose start cannot be recorded is not lost: the next daemon tells of it."""
        self.fresh(cut_at=3, fails=ResourceExhausted("space"))
        self.refused(self.daemon.processes.exec(exec_request()), ResourceExhausted)
        self.restart()
        self.assertEqual(self.told(), ["process.added web/sh", "process.started web/sh"])
        self.check_accounted()

    def test_every_step_cancelled(self) -> None:
        """Who leaves before it is begun leaves nothing; later it runs, and is told of."""
        for late in (False, True):
            for step in range(1, self.steps() + 1):
                self.fresh()
                stage = self.daemon.stage
                stage.hold_at, stage.late = self.before + step, late
                made = begin(self.daemon.processes.exec(exec_request(user="x")))
                with self.subTest(step=step, name=stage.trace[-1], late=late):
                    self.assertNoResult(made)
                    made.cancel()
                    stage.release()
                    self.failureResultOf(made, CancelledError)
                    if step <= 2:
                        self.check_no_process()
                    else:
                        self.assertEqual(self.shown(), {INIT: "running", "sh": "running"})
                        self.assertEqual(len(self.told()), 2)
                        self.assertEqual(self.daemon.table.find(NS, "web").underway, set())

    def test_ends_at_once(self) -> None:
        """One that ends while its start is being recorded is started, then ended."""
        stage = self.daemon.stage
        stage.hold_at = stage.steps + 3
        made = begin(self.daemon.processes.exec(exec_request()))
        self.world.end(self.daemon.run(), "sh", 3)
        stage.release()
        self.assertEqual(self.successResultOf(made).id, "sh")
        self.assertEqual(self.shown()["sh"], "stopped")
        self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE[:3]])


class ShimTests(ProcessesTestCase):
    """Shims that die or hang up."""

    def test_died(self) -> None:
        """Processes of a shim that died are lost with their container."""
        self.exec()
        waiter = begin(self.daemon.processes.wait(NS, "web", "sh"))
        self.world.kill_shim(self.daemon.run())
        self.assertEqual(self.successResultOf(waiter).exit_reason, "lost")
        self.assertEqual(self.shown(), {INIT: "stopped", "sh": "stopped"})
        self.done(self.daemon.processes.delete(NS, "web", "sh"))
        self.done(self.daemon.containers.delete(NS, "web"))
        self.check_nothing()

    def test_died_during_exec(self) -> None:
        """A shim that dies at any step of an exec leaves no process running, and no id hidden."""
        for late in (False, True):
            for step in (1, 2, 3):
                self.fresh()
                stage = self.daemon.stage
                stage.hold_at, stage.late = stage.steps + step, late
                made = begin(self.daemon.processes.exec(exec_request()))
                with self.subTest(step=step, late=late):
                    self.world.kill_shim(self.daemon.run())
                    stage.release()
                    self.ends_either_way(made)
                    self.assertNotIn("running", self.shown().values())
                    self.done(self.daemon.containers.delete(NS, "web"))
                    self.check_nothing()

    def lose_answer(self, error: Exception) -> None:
        """An exec is done, and its answer does not come."""
        stage = self.daemon.stage
        stage.cut_at, stage.after, stage.fails = stage.steps + 2, True, error
        self.refused(self.daemon.processes.exec(exec_request()), type(error))

    def test_answer_lost(self) -> None:
        """One whose answer was lost with the connection is told of when that is there again."""
        run = self.daemon.run()
        self.lose_answer(ShimGone(run, "the connection was lost"))
        self.assertEqual(self.shown(), {INIT: "running"})
        self.refused(self.daemon.processes.exec(exec_request()), AlreadyExists)
        self.world.reconnect(run)
        self.assertEqual(self.shown(), {INIT: "running", "sh": "running"})
        self.check_accounted()

    def test_answer_late(self) -> None:
        """One that was not answered in time is told of when it ends."""
        self.lose_answer(DeadlineExceeded("reply to exec", 120))
        self.world.end(self.daemon.run(), "sh", 3)
        self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE[:3]])
        self.check_accounted()

    def test_never_ran(self) -> None:
        """One that the shim did not get is forgotten when the connection is there again."""
        run = self.daemon.run()
        stage = self.daemon.stage
        stage.cut_at, stage.fails = stage.steps + 2, ShimGone(run, "the connection was lost")
        self.refused(self.daemon.processes.exec(exec_request()), ShimGone)
        self.world.reconnect(run)
        self.check_no_process()

    def test_underway(self) -> None:
        """States that a shim told before it got an exec do not undo that."""
        stage = self.hold("shim.exec")
        stage.late = True
        run = self.daemon.run()
        before = tuple(self.world.shims[run].processes.values())
        made = begin(self.daemon.processes.exec(exec_request()))
        self.daemon.containers.reconnected(run, before)
        stage.release()
        self.assertEqual(self.successResultOf(made).status, "running")
        self.check_accounted()


class DeletionTests(ProcessesTestCase):
    """Processes and the end of their container."""

    def test_with_container(self) -> None:
        """They end with their container and are forgotten before it is."""
        self.exec("a")
        self.exec("b")
        self.done(self.daemon.containers.delete(NS, "web", True))
        self.check_nothing()
        self.assertEqual(
            self.events("")[-3:],
            ["process.deleted web/a", "process.deleted web/b", "container.deleted web"],
        )

    def test_exec_against_delete(self) -> None:
        """Whatever step an exec is at when its container is deleted by force, all ends well."""
        for late in (False, True):
            for step in (1, 2, 3):
                self.fresh()
                stage = self.daemon.stage
                stage.hold_at, stage.late = stage.steps + step, late
                made = begin(self.daemon.processes.exec(exec_request()))
                deleted = begin(self.daemon.containers.delete(NS, "web", True))
                with self.subTest(step=step, late=late):
                    stage.release()
                    self.successResultOf(deleted)
                    self.ends_either_way(made)
                    self.check_nothing()

    def test_delete_against_exec(self) -> None:
        """Whatever step a forced delete is at when an exec comes, all ends well."""
        self.done(self.daemon.containers.delete(NS, "web", True))
        for step in range(1, self.daemon.stage.steps - self.before + 1):
            self.fresh()
            stage = self.daemon.stage
            stage.hold_at = self.before + step
            deleted = begin(self.daemon.containers.delete(NS, "web", True))
            made = begin(self.daemon.processes.exec(exec_request()))
            with self.subTest(step=step):
                stage.release()
                self.successResultOf(deleted)
                self.ends_either_way(made)
                self.check_nothing()

    def test_start_recorded_late(self) -> None:
        """An exec whose start is recorded while its container is taken apart has an exit too."""
        self.exec()
        entry = self.daemon.table.find(NS, "web")
        # The table does not know yet what is recorded.
        entry.processes["sh"] = attrs.evolve(entry.processes["sh"], state=Creating())
        self.world.hang_up(entry.run)
        self.done(self.daemon.containers.delete(NS, "web", True))
        self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE])
        self.check_nothing()

    def test_delete_twice_at_once(self) -> None:
        """Two deletes of a process at once both succeed; it is told once."""
        self.exec()
        self.world.end(self.daemon.run(), "sh")
        stage = self.hold("shim.delete")
        first = begin(self.daemon.processes.delete(NS, "web", "sh"))
        second = begin(self.daemon.processes.delete(NS, "web", "sh"))
        stage.release()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE])

    def test_delete_cancelled(self) -> None:
        """A delete whose caller leaves goes on."""
        self.exec()
        self.world.end(self.daemon.run(), "sh")
        stage = self.hold("shim.delete")
        deleted = begin(self.daemon.processes.delete(NS, "web", "sh"))
        deleted.cancel()
        stage.release()
        self.failureResultOf(deleted, CancelledError)
        self.assertEqual(self.shown(), {INIT: "running"})


class RecoveryTests(ProcessesTestCase):
    """Processes and the next daemon."""

    def test_found_again(self) -> None:
        """Running and ended processes are found again; those that ended meanwhile are told."""
        for id in ("a", "b", "c"):
            self.exec(id)
        run = self.daemon.run()
        self.world.end(run, "a", 3)
        self.daemon.shims.attached.clear()
        self.world.end(run, "b", 4)
        self.restart()
        self.assertEqual(
            self.shown(), {INIT: "running", "a": "stopped", "b": "stopped", "c": "running"}
        )
        self.check_accounted()
        self.assertEqual(self.done(self.daemon.processes.wait(NS, "web", "b")).exit_status, 4)
        self.world.end(run, "c", 5)
        self.assertEqual(self.done(self.daemon.processes.wait(NS, "web", "c")).exit_status, 5)

    def test_crash_in_delete(self) -> None:
        """A daemon killed at any step of a process's delete is followed by one that can delete."""
        for after in (False, True):
            for step in (1, 2):
                self.fresh()
                self.exec()
                self.world.end(self.daemon.run(), "sh")
                stage = self.daemon.stage
                stage.cut_at, stage.after = stage.steps + step, after
                self.assertNoResult(begin(self.daemon.processes.delete(NS, "web", "sh")))
                with self.subTest(step=step, after=after):
                    self.restart()
                    if "sh" in self.shown():
                        self.done(self.daemon.processes.delete(NS, "web", "sh"))
                    self.assertEqual(self.told(), [f"process.{what} web/sh" for what in LIFE])
