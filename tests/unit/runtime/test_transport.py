"""Real processes that are nobody's business, over pidfd and socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.error import ConnectError, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.internet.unix import Client
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ctd import kernel
from ctd.errors import Unavailable
from ctd.runtime.errors import ShimGone
from ctd.runtime.interfaces import Exit, IShim, IShims, ProcessState, ShimSpec
from ctd.runtime.places import Places
from ctd.runtime.shims import ATTEMPTS, Shims
from ctd.runtime.template import TemplateDied
from ctd.runtime.transport import ProcessTransport
from ctd.threads import InlineWorkers

RUN = os.urandom(6).hex()
PROGRAM = Path(__file__).with_name("small_shim.py")


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Let the reactor run until *condition* holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        await deferLater(reactor, 0.005)


class Notes(ProcessProtocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.data = b""
        self.told: list[str] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.data += data

    def childConnectionLost(self, childFD: int) -> None:
        self.told.append("lost")

    def processExited(self, reason: Failure) -> None:
        self.told.append("exited")

    def processEnded(self, reason: Failure) -> None:
        self.told.append("ended")


class ProcessTestCase(TestCase):
    """A directory, and a program in it that looks like a shim."""

    def setUp(self) -> None:
        top = Path(tempfile.mkdtemp(prefix="ctd"))
        self.addCleanup(shutil.rmtree, top)
        self.places = Places(top / "root", top / "state")
        self.directory = self.places.shim(RUN)
        self.directory.mkdir(parents=True)
        self.places.records(RUN).mkdir(parents=True)

    async def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", str(PROGRAM), str(self.directory), RUN]
        child = subprocess.Popen(command)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        await until(self.places.description(RUN).exists)
        return child

    async def check_closed(self) -> None:
        """No descriptor is left open, nor watched."""
        await until(lambda: not self.held())

    def held(self) -> list[str]:
        """What is open or watched of shims."""
        held = [repr(r) for r in reactor.getReaders() if isinstance(r, ProcessTransport | Client)]
        for fd in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{fd}")
            except FileNotFoundError:
                continue
            if "[pidfd]" in target or target.startswith(str(self.places.state)):
                held.append(target)
        return held


class TransportTests(ProcessTestCase):
    """One process."""

    async def follow(self) -> tuple[subprocess.Popen[bytes], ProcessTransport, Notes]:
        child, notes = await self.spawn(), Notes()
        transport = ProcessTransport(reactor, child.pid, kernel.start_time(child.pid), notes)
        return child, transport, notes

    def address(self) -> str:
        return str(self.directory / "shim.sock")

    async def test_interface(self) -> None:
        """It is a process's transport, and what the reactor reads from."""
        child, transport, _ = await self.follow()
        verifyObject(IProcessTransport, transport)
        verifyObject(IReadDescriptor, transport)
        self.assertEqual(transport.pid, child.pid)
        transport.abandon()
        await self.check_closed()

    async def test_life(self) -> None:
        """Data comes over the socket; the end comes once the last of it has."""
        child, transport, notes = await self.follow()
        await transport.connect(self.address(), 5)
        transport.writeSequence([b'{"id": 1, "method"', b': "hello"}\n'])
        await until(lambda: b'"id": 1' in notes.data)
        self.assertEqual(notes.told, [])
        child.kill()
        await until(lambda: "ended" in notes.told)
        self.assertEqual(sorted(notes.told), ["ended", "exited", "lost"])
        self.assertEqual(notes.told[-1], "ended")
        with self.assertRaises(ProcessExitedAlready):
            transport.signalProcess("KILL")
        transport.write(b"into the void\n")
        transport.loseConnection()
        await self.check_closed()

    async def test_not_connected(self) -> None:
        """The end of a process that nobody connected to is told too."""
        child, _, notes = await self.follow()
        child.kill()
        await until(lambda: "ended" in notes.told)
        self.assertEqual(notes.told, ["exited", "ended"])
        await self.check_closed()

    async def test_reconnect(self) -> None:
        """The socket may go and come again; that is not the end."""
        child, transport, notes = await self.follow()
        await transport.connect(self.address(), 5)
        transport.write(b'{"id": 1, "method": "start"}\n')
        await until(lambda: notes.told)
        self.assertEqual(notes.told, ["lost"])
        await transport.connect(self.address(), 5)
        transport.write(b'{"id": 2, "method": "hello"}\n')
        await until(lambda: b'"id": 2' in notes.data)
        child.kill()
        await until(lambda: "ended" in notes.told)
        self.assertEqual(notes.told.count("lost"), 2)
        await self.check_closed()

    async def test_signals(self) -> None:
        """Signals go by name or number; a name that is none is refused."""
        child, transport, notes = await self.follow()
        with self.assertRaises(ValueError):
            transport.signalProcess("NONE")
        transport.signalProcess(signal.SIGCONT)
        transport.signalProcess("TERM")
        await until(lambda: "ended" in notes.told)
        self.assertEqual(child.wait(), -signal.SIGTERM)

    async def test_nobody_listens(self) -> None:
        """A connection that cannot be made fails, and another can be tried."""
        _, transport, notes = await self.follow()
        with self.assertRaises(ConnectError):
            await transport.connect(str(self.directory / "none.sock"), 5)
        await transport.connect(self.address(), 5)
        transport.abandon()
        await deferLater(reactor, 0.02)
        self.assertEqual(notes.told, [])
        await self.check_closed()

    async def test_abandoned(self) -> None:
        """One that is abandoned lives on, and nothing more is told of it."""
        child, transport, notes = await self.follow()
        await transport.connect(self.address(), 5)
        transport.abandon()
        transport.abandon()
        await deferLater(reactor, 0.02)
        self.assertIsNone(child.poll())
        child.kill()
        child.wait()
        await deferLater(reactor, 0.02)
        self.assertEqual(notes.told, [])
        await self.check_closed()

    async def test_other_process(self) -> None:
        """A pid that is another process's by now, or nobody's, is no process; nothing leaks."""
        child = await self.spawn()
        with self.assertRaises(ProcessLookupError):
            ProcessTransport(reactor, child.pid, kernel.start_time(child.pid) + 1, Notes())
        child.kill()
        child.wait()
        with self.assertRaises(ProcessLookupError):
            ProcessTransport(reactor, child.pid, 1, Notes())
        await self.check_closed()

    async def test_zombie(self) -> None:
        """A process that has ended and is not reaped is told to have ended, or is none."""
        child = await self.spawn()
        start_time, notes = kernel.start_time(child.pid), Notes()
        child.kill()
        await deferLater(reactor, 0.05)
        ProcessTransport(reactor, child.pid, start_time, notes)
        await until(lambda: "ended" in notes.told)
        await self.check_closed()


class Listener:
    """Notes what shims tell."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def exited(self, run: str, process: str, exit: Exit) -> None:
        self.told.append(("exited", process, exit.exit_status))

    def reconnected(self, run: str, states: Sequence[ProcessState]) -> None:
        self.told.append(("reconnected",))

    def died(self, run: str) -> None:
        self.told.append(("died",))


class FakeTemplate:
    """Answers as the test says.  :ivar forks: what each fork does."""

    def __init__(self) -> None:
        self.forks: list[Callable[[], Any]] = []
        self.params: list[Mapping[str, Any]] = []

    async def fork(self, params: Mapping[str, Any]) -> tuple[int, int]:
        self.params.append(params)
        forked: tuple[int, int] = await self.forks.pop(0)()
        return forked


class ShimsTests(ProcessTestCase):
    """All shims of a daemon."""

    def setUp(self) -> None:
        super().setUp()
        self.template = FakeTemplate()
        self.listener = Listener()
        self.shims = self.make()

    def make(self) -> Shims:
        template: Any = self.template
        shims = Shims(reactor, template, self.places, InlineWorkers())
        shims.listen(self.listener)
        self.addCleanup(shims.close)
        return shims

    async def born(self) -> tuple[int, int]:
        child = await self.spawn()
        return child.pid, kernel.start_time(child.pid)

    async def dies(self) -> tuple[int, int]:
        raise TemplateDied("killed")

    async def born_unheard(self) -> tuple[int, int]:
        await self.spawn()
        raise TemplateDied("killed")

    def fork(self) -> Any:
        return self.shims.fork(ShimSpec(RUN, "default", "web", "/usr/sbin/runc"))

    async def test_fork(self) -> None:
        """A forked shim is greeted, is told its places, and tells of exits."""
        verifyObject(IShims, self.shims)
        self.template.forks = [self.born]
        shim = await self.fork()
        verifyObject(IShim, shim)
        self.assertEqual(
            self.template.params,
            [
                {
                    "run": RUN,
                    "namespace": "default",
                    "container": "web",
                    "directory": str(self.directory),
                    "records": str(self.places.records(RUN)),
                    "runtime": "/usr/sbin/runc",
                    "runtime_root": str(self.places.runtime_root),
                }
            ],
        )
        await shim.kill("init", 9)
        self.assertEqual(self.listener.told, [("exited", "init", 3)])
        self.assertIs(await self.shims.attach(RUN), shim)

    async def test_template_died(self) -> None:
        """A fork is tried again when the template dies; a shim that was forked then is used."""
        self.template.forks = [self.dies, self.born_unheard]
        shim = await self.fork()
        self.assertEqual(list(await shim.state()), [])
        self.assertEqual(len(self.template.params), 2)

    async def test_template_dies_always(self) -> None:
        """A template that always dies is an error in the end."""
        self.template.forks = [self.dies] * (ATTEMPTS + 1)
        with self.assertRaises(TemplateDied):
            await self.fork()
        self.assertEqual(len(self.template.params), ATTEMPTS)

    async def test_forked_dead(self) -> None:
        """A shim that is dead when its fork is told, or has no directory, is ShimGone."""

        async def dead() -> tuple[int, int]:
            pid, start_time = await self.born()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return pid, start_time

        self.template.forks = [dead]
        with self.assertRaises(ShimGone):
            await self.fork()
        await self.check_closed()

    async def test_attach(self) -> None:
        """Another daemon attaches to a shim, and hears of its death, once."""
        self.template.forks = [self.born]
        await self.fork()
        self.shims.close()
        other = self.make()
        self.assertEqual(list(await other.found()), [RUN])
        shim = await other.attach(RUN)
        os.kill(shim.pid, signal.SIGKILL)
        await until(lambda: self.listener.told)
        await deferLater(reactor, 0.02)
        self.assertEqual(self.listener.told, [("died",)])
        with self.assertRaises(ShimGone):
            await other.attach(RUN)
        await self.check_closed()

    async def test_attach_none(self) -> None:
        """Where there is no shim, or another process has its pid, attaching is ShimGone."""
        with self.assertRaises(ShimGone):
            await self.shims.attach(RUN)
        for description in (b"{", b'{"version": 1, "run": "%s", "pid": 1, "start_time": 1}'):
            self.places.description(RUN).write_bytes(description.replace(b"%s", RUN.encode()))
            with self.assertRaises(ShimGone):
                await self.shims.attach(RUN)
        await self.check_closed()

    async def test_deaf(self) -> None:
        """One that lives and has no socket is Unavailable, and lives on."""
        child = await self.spawn()
        (self.directory / "shim.sock").unlink()
        with self.assertRaises(Unavailable):
            await self.shims.attach(RUN)
        self.assertIsNone(child.poll())
        self.assertEqual(self.listener.told, [])
        await self.check_closed()

    async def test_hung_up(self) -> None:
        """A shim that hangs up is connected to again, and that is told."""
        self.template.forks = [self.born]
        shim = await self.fork()
        with self.assertRaises(ShimGone):
            await shim.start()
        await until(lambda: self.listener.told)
        self.assertEqual(self.listener.told, [("reconnected",)])
        self.assertEqual(list(await shim.state()), [])

    async def test_end(self) -> None:
        """A run that is ended has no shim, is told nothing of, and keeps its exit records."""
        child = await self.spawn()
        await self.shims.attach(RUN)
        record = self.places.records(RUN) / "exit-init.json"
        record.write_text('{"exit_status": 3, "exit_reason": "exited", "exited_at": "t", "x": 1}')
        (self.places.records(RUN) / "exit-torn.json").write_text('{"exit_st')
        await self.shims.end(RUN, "/bin/false")
        await self.shims.end(RUN, "/bin/false")
        self.assertEqual(child.wait(), -signal.SIGKILL)
        self.assertEqual(await self.shims.records(RUN), {"init": Exit(3, "exited", "t")})
        await deferLater(reactor, 0.02)
        self.assertEqual(self.listener.told, [])
        await self.check_closed()

    async def test_destroy(self) -> None:
        """A run that is destroyed has nothing left, and can be destroyed again."""
        child = await self.spawn()
        await self.shims.destroy(RUN)
        await self.shims.destroy(RUN)
        self.assertEqual(child.wait(), -signal.SIGKILL)
        self.assertEqual(list(await self.shims.found()), [])
        self.assertEqual(await self.shims.records(RUN), {})

    async def test_close(self) -> None:
        """When the daemon ends its shims live on, and nothing of them is held."""
        child = await self.spawn()
        await self.shims.attach(RUN)
        self.shims.close()
        await deferLater(reactor, 0.02)
        self.assertIsNone(child.poll())
        self.assertEqual(self.listener.told, [])
        await self.check_closed()
