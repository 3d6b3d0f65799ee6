"""The template's supervision, with processes that are none."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport, IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ctd.errors import Unavailable
from ctd.keeping import LONGEST_PAUSE
from ctd.runtime.template import FORK_SECONDS, PROGRAM, YOUNG, Template, TemplateDied
from tests.unit.runtime.fakes import begin

PARAMS = {"run": "0123456789ab"}


@implementer(IProcessTransport)
class FakeTransport:
    """A child that does what the test tells it to.  :ivar sent: the requests it got."""

    pid = 7

    def __init__(self, protocol: ProcessProtocol, command: list[str]) -> None:
        self.protocol = protocol
        self.command = command
        self.sent: list[dict[str, Any]] = []
        self.stdin_open = True
        self.signals: list[str] = []
        self.ended = False

    def write(self, data: bytes) -> None:
        self.sent += [json.loads(line) for line in data.splitlines()]

    def answer(self, **reply: Any) -> None:
        """Answer the last request."""
        line = json.dumps({"id": self.sent[-1]["id"], **reply})
        self.protocol.outReceived(line.encode() + b"\n")  # type: ignore[no-untyped-call]

    def end(self, reason: Exception | None = None) -> None:
        """End."""
        self.ended = True
        self.protocol.processEnded(Failure(reason or ProcessTerminated(signal=9)))

    def closeStdin(self) -> None:
        self.stdin_open = False

    def signalProcess(self, signalID: str | int) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(str(signalID))

    def closeStdout(self) -> None:
        raise NotImplementedError

    def closeStderr(self) -> None:
        raise NotImplementedError

    def closeChildFD(self, descriptor: int) -> None:
        raise NotImplementedError

    def writeToChild(self, childFD: int, data: bytes) -> None:
        raise NotImplementedError

    def writeSequence(self, seq: Any) -> None:
        raise NotImplementedError

    def loseConnection(self) -> None:
        raise NotImplementedError

    def getPeer(self) -> Any:
        raise NotImplementedError

    def getHost(self) -> Any:
        raise NotImplementedError


@implementer(IReactorProcess)
class FakeReactor:
    """Spawns processes that are none.  :ivar fails: raised instead."""

    def __init__(self) -> None:
        self.spawned: list[FakeTransport] = []
        self.fails: OSError | None = None

    def spawnProcess(
        self,
        processProtocol: ProcessProtocol,
        executable: Any,
        args: Any = (),
        env: Any = None,
        path: Any = None,
        uid: Any = None,
        gid: Any = None,
        usePTY: Any = False,
        childFDs: Any = None,
    ) -> Any:
        if self.fails is not None:
            raise self.fails
        transport = FakeTransport(processProtocol, list(args))
        self.spawned.append(transport)
        processProtocol.makeConnection(transport)
        return transport


class TemplateTests(SynchronousTestCase):
    """Spawned, supervised, restarted."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.reactor = FakeReactor()
        self.template = Template(self.reactor, self.clock)
        self.template.start()

    @property
    def child(self) -> FakeTransport:
        return self.reactor.spawned[-1]

    def fork(self) -> Deferred[tuple[int, int]]:
        return begin(self.template.fork(PARAMS))

    def test_fakes(self) -> None:
        """The fakes are what they stand for."""
        verifyObject(IReactorProcess, self.reactor)
        verifyObject(IProcessTransport, self.child)

    def test_spawned(self) -> None:
        """It is an isolated interpreter without site packages that runs the template's file."""
        self.assertEqual(self.child.command[1:], ["-I", "-S", str(PROGRAM)])
        self.assertTrue(PROGRAM.is_file())

    def test_fork(self) -> None:
        """A fork is one request; its answer is pid and start time."""
        forked = self.fork()
        self.assertEqual(self.child.sent, [{"id": 1, "method": "fork", "params": PARAMS}])
        self.child.answer(result={"pid": 4711, "start_time": 99})
        self.assertEqual(self.successResultOf(forked), (4711, 99))

    def test_refused(self) -> None:
        """A refusal is Unavailable with the template's own words."""
        forked = self.fork()
        self.child.answer(error={"kind": "internal", "message": "no memory"})
        self.assertIn("no memory", str(self.failureResultOf(forked, Unavailable).value))

    def test_late(self) -> None:
        """One that does not answer in time is killed, for another one to take its place."""
        forked = self.fork()
        self.clock.advance(FORK_SECONDS + 1)
        self.failureResultOf(forked, TemplateDied)
        self.assertEqual(self.child.signals, ["KILL"])

    def test_died(self) -> None:
        """When it dies a fork under way fails typed, and the next one has a new template."""
        forked = self.fork()
        self.child.end()
        self.failureResultOf(forked, TemplateDied)
        again = self.fork()
        self.assertNoResult(again)
        self.clock.advance(0)
        self.assertEqual(len(self.reactor.spawned), 2)
        self.child.answer(result={"pid": 1, "start_time": 2})
        self.assertEqual(self.successResultOf(again), (1, 2))

    def test_again_at_once(self) -> None:
        """Whoever asks again the moment a fork has failed does not ask the dead one."""

        async def twice() -> tuple[int, int]:
            try:
                return await self.template.fork(PARAMS)
            except TemplateDied:
                return await self.template.fork(PARAMS)

        forked = begin(twice())
        dead = self.child
        dead.end()
        self.clock.advance(0)
        self.assertIsNot(self.child, dead)
        self.child.answer(result={"pid": 1, "start_time": 2})
        self.assertEqual(self.successResultOf(forked), (1, 2))

    def delay(self) -> float:
        """How long after its death the next one is spawned."""
        (call,) = self.clock.getDelayedCalls()
        return round(call.getTime() - self.clock.seconds(), 3)

    def test_backoff(self) -> None:
        """Those that die young are replaced ever more slowly; an old one at once."""
        delays = []
        for _ in range(9):
            self.child.end()
            delays.append(self.delay())
            self.clock.advance(delays[-1])
        self.assertEqual(delays, [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_PAUSE, LONGEST_PAUSE])
        self.clock.advance(YOUNG + 1)
        self.child.end()
        self.assertEqual(self.delay(), 0)

    def test_cannot_spawn(self) -> None:
        """One that cannot be spawned for want of memory is tried again."""
        self.child.end()
        self.reactor.fails = BlockingIOError(11, "again")
        forked = self.fork()
        self.clock.advance(0)
        self.clock.advance(0.1)
        self.reactor.fails = None
        self.assertNoResult(forked)
        self.clock.advance(self.delay())
        self.child.answer(result={"pid": 1, "start_time": 2})
        self.assertEqual(self.successResultOf(forked), (1, 2))

    def test_cancelled(self) -> None:
        """Who waits for a template may leave; the others get theirs."""
        self.child.end()
        first, second = self.fork(), self.fork()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.clock.advance(0)
        self.child.answer(result={"pid": 1, "start_time": 2})
        self.assertEqual(self.successResultOf(second), (1, 2))

    def test_stop(self) -> None:
        """It ends by the end of its input, and is not started again."""
        stopped = begin(self.template.stop())
        self.assertFalse(self.child.stdin_open)
        self.assertNoResult(stopped)
        self.child.end(ProcessDone(None))
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.reactor.spawned), 1)
        self.failureResultOf(self.fork(), Unavailable)

    def test_stop_by_force(self) -> None:
        """One that does not end by itself is killed."""
        stopped = begin(self.template.stop())
        self.clock.advance(5)
        self.assertEqual(self.child.signals, ["KILL"])
        self.child.end()
        self.successResultOf(stopped)

    def test_stop_ended_unheard(self) -> None:
        """One that has ended the moment it is to be killed is no error."""
        stopped = begin(self.template.stop())
        self.child.ended = True
        self.clock.advance(5)
        self.child.end()
        self.successResultOf(stopped)

    def test_stop_while_restarting(self) -> None:
        """A stop between two templates ends the wait of who wanted one, and starts none."""
        self.child.end()
        forked = self.fork()
        self.successResultOf(begin(self.template.stop()))
        self.failureResultOf(forked, Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop_while_forking(self) -> None:
        """A fork under way when it stops fails typed."""
        forked = self.fork()
        stopped = begin(self.template.stop())
        self.child.end(ProcessDone(None))
        self.failureResultOf(forked, TemplateDied)
        self.successResultOf(stopped)
