"""One live shim, over a transport that is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ctd.errors import (
    CtdError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from ctd.model import Mount
from ctd.runtime.errors import CommandNotExecutable, CommandNotFound, RuntimeFailure, ShimGone
from ctd.runtime.interfaces import Exit, IShim, IShimListener, ProcessState, Stdio
from ctd.runtime.shim_process import ANSWER_SECONDS, LONGEST_PAUSE, PAUSE, ShimProcess
from ctd.runtime.transport import STDOUT
from tests.unit.runtime.fakes import ENDED, STARTED, begin

RUN = "0123456789ab"
HELLO = {"version": 1, "run": RUN, "pid": 7, "start_time": 9}
STATE = {
    "id": "init",
    "status": "stopped",
    "pid": 8,
    "started_at": STARTED,
    "exit_status": 3,
    "exit_reason": "exited",
    "exited_at": ENDED,
    "attach": None,
    "output_ended": True,
    "dropped": 0,
    "of_a_newer_shim": {},
}
KNOWN = ProcessState("init", "stopped", 8, STARTED, Exit(3, "exited", ENDED, STARTED))


class FakeTransport:
    """A shim's process and socket, as the test says.

    :ivar connects: how often a connection was asked for.
    :ivar refuses: raised to who wants one.
    """

    pid = 7

    def __init__(self, protocol: ShimProcess) -> None:
        self._protocol = protocol
        self.sent: list[dict[str, Any]] = []
        self.connects = 0
        self.refuses: Exception | None = None
        self.open = False
        self.abandoned = False
        protocol.makeConnection(self)  # type: ignore[arg-type]

    async def connect(self, address: str, seconds: float) -> None:
        self.connects += 1
        if self.refuses is not None:
            raise self.refuses
        self.open = True

    def write(self, data: bytes) -> None:
        self.sent += [json.loads(line) for line in data.splitlines()]

    def say(self, message: dict[str, Any]) -> None:
        """Send a line to the daemon."""
        self._protocol.childDataReceived(STDOUT, json.dumps(message).encode() + b"\n")

    def answer(self, result: Any = None, **error: Any) -> None:
        """Answer the last request."""
        reply = {"error": error} if error else {"result": result}
        self.say({"id": self.sent[-1]["id"], **reply})

    def hang_up(self) -> None:
        """The shim closes the connection."""
        self.open = False
        self._protocol.childConnectionLost(STDOUT)

    def loseConnection(self) -> None:
        self.open = False

    def abandon(self) -> None:
        self.abandoned = True

    def die(self) -> None:
        """The shim dies."""
        reason = Failure(ProcessTerminated())
        self._protocol.processExited(reason)
        if self.open:
            self.hang_up()
        self._protocol.processEnded(reason)


@implementer(IShimListener)
class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def exited(self, run: str, process: str, exit: Exit) -> None:
        self.told.append(("exited", run, process, exit))

    def reconnected(self, run: str, states: Sequence[ProcessState]) -> None:
        self.told.append(("reconnected", run, list(states)))

    def died(self, run: str) -> None:
        self.told.append(("died", run))


class ShimProcessTests(SynchronousTestCase):
    """A shim and its connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.listener = Listener()
        self.closed: list[int] = []
        self.shim = ShimProcess(
            self.clock, RUN, "/usr/sbin/runc", 33, self.listener, self.closed.append
        )
        self.transport = FakeTransport(self.shim)

    def greet(self) -> None:
        greeted = begin(self.shim.greet(ANSWER_SECONDS))
        self.transport.answer(HELLO)
        self.successResultOf(greeted)

    def ask(self, work: Any) -> tuple[dict[str, Any], Deferred[Any]]:
        """A request, and its answer."""
        asked = begin(work)
        return self.transport.sent[-1], asked

    def test_interface(self) -> None:
        """It is a shim, and knows its pid."""
        verifyObject(IShim, self.shim)
        verifyObject(IShimListener, self.listener)
        self.assertEqual(self.shim.pid, 7)

    def test_greeting(self) -> None:
        """The first request is hello with the versions that the daemon speaks."""
        self.greet()
        hello = {"id": 1, "method": "hello", "params": {"versions": [1]}}
        self.assertEqual(self.transport.sent, [hello])

    def test_not_greeted(self) -> None:
        """One that does not answer, refuses, or is another's, is Unavailable and hung up on."""
        for spoil in (
            lambda: self.clock.advance(ANSWER_SECONDS),
            lambda: self.transport.answer(kind="invalid_argument", message="none"),
            lambda: self.transport.answer({**HELLO, "version": 9}),
            lambda: self.transport.answer({**HELLO, "run": "f" * 12}),
            lambda: self.transport.hang_up(),
        ):
            self.setUp()
            greeted = begin(self.shim.greet(ANSWER_SECONDS))
            spoil()
            self.failureResultOf(greeted, Unavailable)
            self.assertFalse(self.transport.open)
            # Whoever greets decides what then: nothing goes on by itself.
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_socket(self) -> None:
        """One that nobody can connect to is Unavailable."""
        self.transport.refuses = ConnectError()
        self.failureResultOf(begin(self.shim.greet(5)), Unavailable)

    def test_dead(self) -> None:
        """One that dies before or during the greeting is ShimGone."""
        greeted = begin(self.shim.greet(5))
        self.transport.die()
        self.failureResultOf(greeted, ShimGone)
        self.failureResultOf(begin(self.shim.greet(5)), ShimGone)
        self.assertEqual(self.listener.told, [("died", RUN)])

    def test_requests(self) -> None:
        """Each method is the protocol's, with its parameters."""
        self.greet()
        stdio = Stdio("null", "attach", "fifo:///x")
        words = {"stdin": "null", "stdout": "attach", "stderr": "fifo:///x"}
        mount = {"type": "bind", "source": "/s", "options": ["rbind"], "target": ""}
        for work, method, params in (
            (
                self.shim.create([Mount("bind", "/s", ("rbind",))], stdio, False),
                "create",
                {"mounts": [mount], "stdio": words, "terminal": False},
            ),
            (self.shim.start(), "start", {}),
            (
                self.shim.exec("sh", {"args": ["a"]}, stdio, True),
                "exec",
                {"process": "sh", "spec": {"args": ["a"]}, "stdio": words, "terminal": True},
            ),
        ):
            request, answer = self.ask(work)
            self.assertEqual((request["method"], request["params"]), (method, params))
            self.transport.answer(STATE)
            self.assertEqual(self.successResultOf(answer), KNOWN)
        for work, method, params in (
            (self.shim.kill("sh", 9, True), "kill", {"process": "sh", "signal": 9, "all": True}),
            (self.shim.close_stdin("sh"), "close_stdin", {"process": "sh"}),
            (self.shim.delete("sh"), "delete", {"process": "sh"}),
            (self.shim.shutdown(), "shutdown", {}),
        ):
            request, answer = self.ask(work)
            self.assertEqual((request["method"], request["params"]), (method, params))
            self.transport.answer({})
            self.assertIsNone(self.successResultOf(answer))

    def test_state(self) -> None:
        """Its processes are told as they are; what does not apply is None."""
        self.greet()
        _, answer = self.ask(self.shim.state())
        waiting = {"id": "sh", "status": "created", "pid": 9, "exit_status": None}
        self.transport.answer({"processes": [STATE, waiting]})
        self.assertEqual(self.successResultOf(answer), [KNOWN, ProcessState("sh", "created", 9)])

    def test_errors(self) -> None:
        """Each kind of error of the protocol is one of ours, with its facts."""
        self.greet()
        for error, expected in (
            (
                {"kind": "runtime_failure", "operation": "exec", "message": "no"},
                RuntimeFailure("/usr/sbin/runc", "exec", "no"),
            ),
            (
                {"kind": "command_not_found", "command": "x", "message": "m"},
                CommandNotFound("x", "m"),
            ),
            (
                {"kind": "command_not_executable", "command": "x", "message": "m"},
                CommandNotExecutable("x", "m"),
            ),
            (
                {"kind": "failed_precondition", "message": "m"},
                FailedPrecondition("process", "sh", "m"),
            ),
            ({"kind": "not_found", "message": "m"}, NotFound("process", "sh")),
            ({"kind": "invalid_argument", "field": "f", "message": "m"}, InvalidArgument("f", "m")),
            ({"kind": "unimplemented", "message": "m"}, Unimplemented("exec", "m")),
            ({"kind": "internal", "message": "m"}, RuntimeFailure("/usr/sbin/runc", "exec", "m")),
            ({"kind": "of_a_newer"}, RuntimeFailure("/usr/sbin/runc", "exec", "no reason given")),
        ):
            _, answer = self.ask(self.shim.exec("sh", {}, Stdio(), False))
            self.transport.answer(**error)
            caught = self.failureResultOf(answer, CtdError).value
            self.assertEqual((type(caught), caught.fields), (type(expected), expected.fields))

    def test_notified(self) -> None:
        """An exit is told; notifications that are not known are none."""
        self.greet()
        params = {"process": "sh", "pid": 9, "exit_status": 3, "exit_reason": "oom"}
        self.transport.say({"method": "exited", "params": {**params, "exited_at": ENDED}})
        self.transport.say({"method": "output_ended", "params": {"process": "sh", "dropped": 0}})
        self.transport.say({"method": "of_a_newer", "params": {}})
        self.assertEqual(self.listener.told, [("exited", RUN, "sh", Exit(3, "oom", ENDED))])

    def test_malformed(self) -> None:
        """An exit without its facts is logged, and the next one is told."""
        self.greet()
        self.transport.say({"method": "exited", "params": {"process": "sh"}})
        params = {"process": "sh", "exit_status": 3, "exit_reason": "exited", "exited_at": ENDED}
        self.transport.say({"method": "exited", "params": params})
        self.assertEqual(self.listener.told, [("exited", RUN, "sh", Exit(3, "exited", ENDED))])

    def test_late(self) -> None:
        """A request that is not answered is DeadlineExceeded, and the connection stays."""
        self.greet()
        _, answer = self.ask(self.shim.state())
        self.clock.advance(ANSWER_SECONDS)
        self.failureResultOf(answer, DeadlineExceeded)
        self.assertTrue(self.transport.open)

    def test_hung_up(self) -> None:
        """A connection that is lost ends its requests and is made again; then states are told."""
        self.greet()
        _, answer = self.ask(self.shim.start())
        self.transport.hang_up()
        self.failureResultOf(answer, ShimGone)
        self.failureResultOf(begin(self.shim.state()), ShimGone)
        self.assertEqual(self.listener.told, [])
        self.clock.advance(PAUSE)
        self.transport.answer(HELLO)
        self.transport.answer({"processes": [STATE]})
        self.assertEqual(self.listener.told, [("reconnected", RUN, [KNOWN])])
        _, answer = self.ask(self.shim.kill("init", 9))
        self.transport.answer({})
        self.successResultOf(answer)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hung_up_again(self) -> None:
        """One that hangs up at any point of that is asked again by one, ever more slowly."""
        self.greet()
        self.transport.hang_up()
        self.clock.advance(PAUSE)
        self.transport.hang_up()  # instead of a hello
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(2 * PAUSE)
        self.transport.answer(HELLO)
        self.transport.hang_up()  # instead of its states
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.transport.refuses = ConnectError()
        self.clock.advance(4 * PAUSE)
        self.assertEqual(self.transport.connects, 4)
        for _ in range(20):
            self.clock.advance(LONGEST_PAUSE)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.transport.refuses = None
        self.clock.advance(LONGEST_PAUSE)
        self.transport.answer(HELLO)
        self.transport.answer({"processes": []})
        self.assertEqual(self.listener.told, [("reconnected", RUN, [])])
        self.transport.hang_up()
        self.clock.advance(PAUSE)
        self.transport.answer(HELLO)
        self.transport.answer({"processes": []})
        self.assertEqual(len(self.listener.told), 2)

    def test_died(self) -> None:
        """Its death ends its requests, is told once, and closes its directory."""
        self.greet()
        _, answer = self.ask(self.shim.start())
        self.transport.die()
        self.failureResultOf(answer, ShimGone)
        self.assertEqual(self.listener.told, [("died", RUN)])
        self.assertEqual(self.closed, [33])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_died_while_reconnecting(self) -> None:
        """One that dies at any point of connecting again is told to have, and left alone."""
        for steps in range(3):
            self.setUp()
            self.greet()
            self.transport.hang_up()
            if steps > 0:
                self.clock.advance(PAUSE)
            if steps > 1:
                self.transport.answer(HELLO)
            self.transport.die()
            self.assertEqual(self.listener.told, [("died", RUN)])
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_abandoned(self) -> None:
        """One that is abandoned, connected or not, is not asked again and its directory closed."""
        for lost in (False, True):
            self.setUp()
            self.greet()
            if lost:
                self.transport.hang_up()
            self.shim.abandon()
            self.shim.abandon()
            self.failureResultOf(begin(self.shim.state()), ShimGone)
            self.assertTrue(self.transport.abandoned)
            self.assertEqual(self.closed, [33])
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertEqual(self.listener.told, [])
