"""The server on real unix sockets, with the clients scripts use: nc and socat."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ctd.concurrency import ended
from ctd.protocols.connection import Limits
from ctd.protocols.hangup import HangUps
from ctd.protocols.listen import ControlSocket, SocketUnusable
from ctd.protocols.peers import Access, peer_of
from ctd.protocols.server import ControlFactory
from ctd.runtime.interfaces import Container
from tests.unit.protocols.rig import Rig

NOBODY = 65534


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Let the reactor run until *condition* holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        await deferLater(reactor, 0.01)


class SocketTestCase(TestCase):
    """A server on a socket of its own."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "run" / "ctd.sock"
        self.rig = Rig()

    def listen(
        self,
        path: Path | None = None,
        limits: Limits | None = None,
        gid: int | None = None,
    ) -> ControlSocket:
        self.hangups = HangUps(reactor)
        self.factory = ControlFactory(
            self.rig.table, reactor, self.hangups, Access(gid), limits, peer_of
        )
        service = ControlSocket(reactor, path or self.path, self.factory, gid)
        service.startService()
        self.addCleanup(self.stop, service)
        return service

    def stop(self, service: ControlSocket) -> Deferred[None] | None:
        if not service.running:
            return None
        return maybeDeferred(service.stopService)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(client.close)
        client.connect(str(self.path))
        client.settimeout(10)
        return client

    def running(self) -> None:
        """Have a container that runs."""
        self.rig.started("web")

    def waiting(self) -> bool:
        """Whether somebody waits for the container's end."""
        return self.rig.containers.waiting("web") > 0


class ListenTests(SocketTestCase):
    """Taking the socket, and giving it back."""

    async def test_modes(self) -> None:
        """Socket and directory are the daemon's alone; stopping removes the socket."""
        service = self.listen()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        await service.stopService()
        self.assertFalse(self.path.exists())

    async def test_group(self) -> None:
        """With a group, the socket is the group's too, and its directory lets it through."""
        self.listen(gid=NOBODY)
        for path, mode in ((self.path, 0o660), (self.path.parent, 0o710)):
            found = path.stat()
            self.assertEqual((stat.S_IMODE(found.st_mode), found.st_gid), (mode, NOBODY))

    async def test_shared_directory(self) -> None:
        """A directory that is not the daemon's alone stays as it is."""
        self.path.parent.mkdir(mode=0o755)
        self.listen(gid=NOBODY)
        found = self.path.parent.stat()
        self.assertEqual((stat.S_IMODE(found.st_mode), found.st_gid), (0o755, 0))

    async def test_stale(self) -> None:
        """A socket that a killed daemon left is replaced."""
        self.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(self.path))
        self.listen()
        self.connect()

    async def test_two_daemons(self) -> None:
        """A second daemon fails loudly, and the first keeps its socket."""
        self.listen()
        with self.assertRaises(SocketUnusable) as caught:
            self.listen()
        self.assertIn("another ctd", str(caught.exception))
        self.connect()

    async def test_other_program(self) -> None:
        """The socket of a program that lives is not taken, even when its backlog is full."""
        self.path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(self.path))
            other.listen(0)
            for _ in range(3):
                with self.assertRaises(SocketUnusable):
                    self.listen()
                client = socket.socket(socket.AF_UNIX)
                self.addCleanup(client.close)
                client.setblocking(False)
                client.connect_ex(str(self.path))

    async def test_file_in_the_way(self) -> None:
        """A file that is no socket is never removed."""
        self.path.parent.mkdir()
        self.path.write_text("precious")
        with self.assertRaises(SocketUnusable):
            self.listen()
        self.assertEqual(self.path.read_text(), "precious")

    async def test_no_directory(self) -> None:
        """A path that cannot be is a typed error, and nothing stays open."""
        (self.directory / "run").write_text("")
        before = len(os.listdir("/proc/self/fd"))
        with self.assertRaises(SocketUnusable):
            self.listen()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    async def test_long_path(self) -> None:
        """A path longer than the kernel's limit works as any other."""
        deep = self.directory / ("d" * 100) / ("e" * 100)
        service = self.listen(deep / "ctd.sock")
        fd = os.open(deep, os.O_PATH)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"/proc/self/fd/{fd}/ctd.sock")
        os.close(fd)
        with self.assertRaises(SocketUnusable):
            self.listen(deep / "ctd.sock")
        await service.stopService()
        self.assertFalse((deep / "ctd.sock").exists())
        self.listen(deep / "ctd.sock")

    async def test_removed_socket(self) -> None:
        """A socket that somebody removed or replaced meanwhile is left alone when stopping."""
        service = self.listen()
        self.path.unlink()
        self.path.write_text("new")
        await service.stopService()
        self.assertEqual(self.path.read_text(), "new")

    async def test_restart(self) -> None:
        """A service that was stopped can start again, and leaves no descriptor behind."""
        first = self.listen()
        await first.stopService()
        before = len(os.listdir("/proc/self/fd"))
        first.startService()
        client = self.connect()
        client.sendall(b'{"method":"containers.list"}\n')
        self.assertIn("result", await deferToThread(client.makefile().readline))
        client.close()
        await first.stopService()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class ScriptTests(SocketTestCase):
    """Shell scripts with nc and socat."""

    def script(self, command: str, text: str) -> Deferred[subprocess.CompletedProcess[str]]:
        return deferToThread(
            subprocess.run,
            command.format(path=self.path),
            shell=True,
            input=text,
            capture_output=True,
            text=True,
            timeout=20,
        )

    async def test_interface(self) -> None:
        """What watches for hang-ups is a read descriptor."""
        verifyObject(IReadDescriptor, HangUps(reactor))

    async def test_one_liners(self) -> None:
        """A request piped into nc or socat is answered, and the client ends."""
        self.listen()
        request = '{"method":"daemon.info"}\n'
        for command in ("nc -N -U {path}", "socat -t 9 - UNIX-CONNECT:{path}"):
            for text in (request, request.rstrip()):
                done = await self.script(command, text)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(json.loads(done.stdout)["result"]["version"], "1.2.3")

    async def test_many_requests(self) -> None:
        """A thousand requests piped in at once are all answered."""
        self.listen()
        text = "".join(f'{{"id":{n},"method":"containers.list"}}\n' for n in range(1000))
        done = await self.script("nc -N -U {path}", text)
        ids = [json.loads(line)["id"] for line in done.stdout.splitlines()]
        self.assertEqual(sorted(ids), list(range(1000)))

    async def test_wait_for_long(self) -> None:
        """A half-closed client that waits for something long gets its answer."""
        self.listen()
        self.running()
        script = self.script(
            "nc -N -U {path}", '{"method":"containers.wait","params":{"id":"web"}}\n'
        )
        await until(self.waiting)
        await deferLater(reactor, 0.2)
        self.assertTrue(self.waiting())
        self.rig.containers.end("web", 9)
        done = await script
        self.assertEqual(json.loads(done.stdout)["result"]["exit_status"], 9)

    async def test_killed_after_half_close(self) -> None:
        """When a half-closed client is killed its calls are cancelled at once."""
        self.listen()
        self.running()
        for _ in range(2):
            client = subprocess.Popen(
                ["nc", "-N", "-U", str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            assert client.stdin is not None
            client.stdin.write(b'{"method":"containers.wait","params":{"id":"web"}}\n')
            client.stdin.close()
            await until(self.waiting)
            await deferLater(reactor, 0.1)
            self.assertTrue(self.waiting())
            client.send_signal(signal.SIGKILL)
            client.wait()
            await until(lambda: not self.waiting(), 2)
        self.assertEqual(self.hangups.fileno(), -1)

    async def test_full_close(self) -> None:
        """A client that closes its socket cancels its calls, read or unread."""
        self.listen()
        self.running()
        client = self.connect()
        client.sendall(b'{"method":"containers.wait","params":{"id":"web"}}\n')
        await until(self.waiting)
        client.close()
        await until(lambda: not self.waiting())

    async def test_stop(self) -> None:
        """Stopping tells a waiting client why, and waits for nobody who does not read."""
        service = self.listen()
        self.running()
        client = self.connect()
        client.sendall(b'{"method":"containers.wait","params":{"id":"web"}}\n')
        await until(self.waiting)
        await service.stopService()
        reply = json.loads(client.makefile().readline())
        self.assertEqual(reply["error"]["data"]["kind"], "unavailable")
        self.assertEqual(client.recv(1), b"")


class HostileTests(SocketTestCase):
    """Clients that mean no good."""

    async def fill(self, client: socket.socket, request: bytes) -> int:
        """Send requests until the server takes no more; how many it took."""
        client.setblocking(False)
        pending, sent, blocked = b"", 0, 0
        while blocked < 20:
            pending = pending or request * 100
            try:
                count = client.send(pending)
            except BlockingIOError:
                blocked += 1
                await deferLater(reactor, 0.01)
            else:
                blocked = 0
                sent += count
                pending = pending[count:]
                await deferLater(reactor, 0)
        client.setblocking(True)
        client.settimeout(10)
        return sent // len(request)

    async def test_never_reading(self) -> None:
        """From a client that never reads little is taken; when it reads, it gets every answer."""
        self.listen(limits=Limits(unread=1))
        client = self.connect()
        taken = await self.fill(client, b'{"method":"containers.list","params":{}}\n')
        self.assertLess(taken, 60_000)
        other = self.connect()
        other.sendall(b'{"method":"containers.list"}\n')
        reply = await deferToThread(other.makefile().readline)
        self.assertIn("result", json.loads(reply))

        def read() -> int:
            lines = client.makefile()
            return sum("result" in json.loads(lines.readline()) for _ in range(taken))

        self.assertEqual(await deferToThread(read), taken)

    async def test_large_answers(self) -> None:
        """Large answers wait one at a time: their number does not multiply the memory."""
        self.listen(limits=Limits(unread=1 << 20))
        client = self.connect()
        taken = await self.fill(client, b'{"method":"rpc.discover"}\n')
        self.assertFalse(any(c.transport.disconnecting for c in self.factory._clients))
        self.assertLess(taken, 30_000)

    async def test_answers_at_once(self) -> None:
        """A client that lets more answers come due than the bound, and reads none, is cut off."""
        self.listen(limits=Limits(unread=1 << 20))
        labels = {"x": "y" * 100_000}
        self.rig.client().call("containers.create", {"id": "web", "image": "x", "labels": labels})
        gate: Deferred[None] = Deferred()
        get = self.rig.containers.get

        async def gated(namespace: str, id: str) -> Container:
            await ended(gate)
            return await get(namespace, id)

        self.patch(self.rig.containers, "get", gated)
        client = self.connect()
        client.sendall(b'{"method":"containers.get","params":{"id":"web"}}\n' * 100)
        await deferLater(reactor, 0.2)
        gate.callback(None)
        await until(lambda: not self.factory._clients)

    async def test_slow_reader_of_events(self) -> None:
        """Ten thousand events reach a client that begins to read late, each once, in order."""
        self.listen()
        client = self.connect()
        client.sendall(b'{"id":1,"method":"events.subscribe","params":{"since":0}}\n')
        await until(lambda: self.rig.journal.followers == 1)
        for _ in range(10_000):
            self.rig.journal.emit("x")
        await deferLater(reactor, 0.1)

        def read() -> list[int]:
            lines = client.makefile()
            assert "subscribed" in json.loads(lines.readline())["params"]
            return [json.loads(lines.readline())["params"]["event"]["seq"] for _ in range(10_000)]

        self.assertEqual(await deferToThread(read), list(range(1, 10_001)))

    async def test_too_long(self) -> None:
        """Fifty megabytes without a newline cost an error and no memory."""
        self.listen()
        client = self.connect()

        def send() -> list[dict[str, Any]]:
            for _ in range(50):
                client.sendall(b"x" * (1 << 20))
            client.sendall(b'\n{"method":"containers.list"}\n')
            lines = client.makefile()
            return [json.loads(lines.readline()) for _ in range(2)]

        first, second = await deferToThread(send)
        self.assertEqual(first["error"]["data"]["kind"], "resource_exhausted")
        self.assertIn("result", second)

    async def test_other_users(self) -> None:
        """A user outside the group is refused with an error line; one inside is served."""
        self.directory.chmod(0o755)
        self.listen(gid=4242)
        self.path.parent.chmod(0o755)
        self.path.chmod(0o666)

        def ask(groups: list[int]) -> dict[str, Any]:
            done = subprocess.run(
                ["nc", "-N", "-U", str(self.path)],
                user=NOBODY,
                group=NOBODY,
                extra_groups=groups,
                input=b'{"method":"containers.list"}\n',
                capture_output=True,
                timeout=20,
            )
            reply: dict[str, Any] = json.loads(done.stdout)
            return reply

        refused = await deferToThread(ask, [])
        self.assertEqual(refused["error"]["data"]["kind"], "permission_denied")
        self.assertEqual(refused["error"]["data"]["uid"], NOBODY)
        served = await deferToThread(ask, [4242])
        self.assertIn("result", served)
