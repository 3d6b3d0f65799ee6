"""The test case of containers and processes: a fake machine with a daemon on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ctd.runtime.containers import GRACE
from ctd.runtime.interfaces import INIT, Container
from tests.unit.runtime.fakes import (
    NS,
    Daemon,
    RuntimeDatabase,
    Stage,
    World,
    begin,
    request,
    rows,
    told,
)


class RuntimeTestCase(SynchronousTestCase):
    """A machine with a daemon on it, which may be followed by others."""

    def setUp(self) -> None:
        self.fresh()

    def fresh(self, **stage: Any) -> None:
        """An empty machine."""
        self.world = World()
        self.database = RuntimeDatabase()
        self.daemon = Daemon(self.world, self.database, stage=Stage(**stage))

    def done(self, work: Any) -> Any:
        return self.successResultOf(begin(work))

    def refused(self, work: Any, error: type[Exception]) -> Any:
        return self.failureResultOf(begin(work), error).value

    def create(self, id: str = "web", **fields: Any) -> Container:
        made: Container = self.done(self.daemon.containers.create(request(id, **fields)))
        return made

    def running(self, id: str = "web", **fields: Any) -> Container:
        self.create(id, **fields)
        made: Container = self.done(self.daemon.containers.start(NS, id))
        return made

    def status(self, id: str = "web") -> str:
        status: str = self.done(self.daemon.containers.get(NS, id)).status
        return status

    def hold(self, step: str) -> Stage:
        """Hold up the next step of that name."""
        stage = self.daemon.stage

        def before(work: Callable[[], Any]) -> Deferred[Any]:
            if work.__qualname__.endswith(step) and stage.hold_at is None:
                stage.hold_at = stage.steps + 1
            return Stage.step(stage, work)

        stage.step = before  # type: ignore[method-assign, assignment]
        return stage

    def restart(self, **options: Any) -> Daemon:
        """The daemon is killed, and another one comes."""
        self.daemon = Daemon(self.world, self.database, Clock(), **options)
        recovered = begin(self.daemon.containers.recover())
        self.daemon.clock.advance(GRACE)
        self.successResultOf(recovered)
        return self.daemon

    def events(self, prefix: str = "container") -> list[str]:
        return told(self.database.events, prefix)

    def check_order(self) -> None:
        """For every name ever, created < started < exited < deleted, each once a life."""
        said: dict[str, list[str]] = {}
        for event in self.events(""):
            topic, subject = event.split()
            said.setdefault(subject, []).append(topic.partition(".")[2])
        for subject, topics in said.items():
            lives = re.fullmatch(
                r"((created|added)( started)?( exited)?( deleted|$) ?)*", " ".join(topics)
            )
            self.assertIsNotNone(lives, (subject, topics))

    def check_accounted(self) -> None:
        """What is on the machine belongs to a container that can be found, and the reverse."""
        found = {entry.run: entry for entry in self.daemon.table}
        recorded = {run for (run,) in rows(self.database.connection, "SELECT run FROM containers")}
        self.assertEqual(set(found), recorded)
        self.assertEqual(self.world.directories - recorded, set())
        self.assertEqual(set(self.world.shims) - recorded, set())
        self.assertEqual({key for _, key, _ in self.world.rootfs}, recorded)
        for entry in found.values():
            self.assertIs(self.daemon.table.find(NS, entry.record.id), entry)
            live = self.world.shims.get(entry.run)
            if live is None:
                self.assertEqual(self.status(entry.record.id), "stopped")
                self.assertIsNone(entry.shim)
                continue
            known = {INIT: self.status(entry.record.id)}
            known |= {p.id: p.status for p in self.done(self.daemon.processes.list(NS, "web"))}
            self.assertEqual(
                known,
                {id: state.status for id, state in live.processes.items()} | {INIT: known[INIT]},
            )
            self.assertEqual(known[INIT], live.processes[INIT].status)
        self.check_order()

    def check_nothing(self) -> None:
        """No trace is left of anything."""
        self.assertTrue(self.world.nothing_left(), vars(self.world))
        self.assertEqual(rows(self.database.connection, "SELECT id FROM containers"), [])
        self.assertEqual(rows(self.database.connection, "SELECT id FROM processes"), [])
        self.assertEqual(list(self.daemon.table), [])
        self.assertEqual(self.daemon.shims.attached, {})
        self.check_order()
