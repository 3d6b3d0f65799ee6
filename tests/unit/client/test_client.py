"""The client library against the real server, and against a daemon gone wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ctd.client import Client, RemoteError
from ctd.client.connection import WAITING_EVENTS
from ctd.client.errors import remote
from ctd.errors import ResourceExhausted, Unavailable
from ctd.images.interfaces import PullProgress
from ctd.protocols.hangup import HangUps
from ctd.protocols.listen import ControlSocket
from ctd.protocols.server import ControlFactory
from tests.unit.protocols.rig import Rig


class ServerTests(TestCase):
    """The client and the server on a real socket."""

    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        self.rig = Rig()
        factory = ControlFactory(self.rig.table, reactor, HangUps(reactor))
        self.path = directory / "ctd.sock"
        self.service = ControlSocket(reactor, self.path, factory)
        self.service.startService()
        self.addCleanup(self.stop)

    def stop(self) -> Deferred[None] | None:
        return self.service.stopService() if self.service.running else None

    async def client(self) -> Client:
        client = await Client.connect(UNIXClientEndpoint(reactor, str(self.path)))
        self.addCleanup(lambda: Deferred.fromCoroutine(client.close()))
        return client

    async def test_call(self) -> None:
        """A call gives its result."""
        client = await self.client()
        self.assertEqual((await client.call("daemon.info"))["version"], "1.2.3")
        made = await client.call("containers.create", {"image": "alpine"})
        self.assertEqual(made["status"], "created")

    async def test_errors(self) -> None:
        """A failed call raises the daemon's error with its kind and fields."""
        client = await self.client()
        with self.assertRaises(RemoteError) as caught:
            await client.call("containers.get", {"id": "web"})
        error = caught.exception
        self.assertEqual(error.kind, "not_found")
        self.assertEqual(error.data["name"], "web")
        self.assertEqual(str(error), "container 'web' not found")

    async def test_concurrent(self) -> None:
        """Calls run at once, and each gets its own answer."""
        self.rig.started("a")
        self.rig.started("b")
        client = await self.client()
        waits = [Deferred.fromCoroutine(client.call("containers.wait", {"id": id})) for id in "ab"]
        await client.call("containers.list")
        self.rig.containers.end("b", 2)
        self.assertEqual((await waits[1])["exit_status"], 2)
        self.rig.containers.end("a", 1)
        self.assertEqual((await waits[0])["exit_status"], 1)

    async def test_progress(self) -> None:
        """Progress reaches the function given; one that fails ends nothing."""
        client = await self.client()
        seen: list[str] = []

        def progress(params: dict[str, Any]) -> None:
            seen.append(params["phase"])
            raise ValueError("mine")

        call = Deferred.fromCoroutine(
            client.call("images.pull", {"ref": "slow"}, progress=progress)
        )
        await client.call("containers.list")
        assert self.rig.images.progress is not None
        self.rig.images.progress(PullProgress("downloading"))
        self.rig.images.progress(PullProgress("done"))
        self.rig.images.finish()
        self.assertEqual((await call)["name"], "slow")
        self.assertEqual(seen, ["downloading", "done"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    async def test_cancel(self) -> None:
        """Cancelling a call cancels it at the daemon, and the connection goes on."""
        client = await self.client()
        call = Deferred.fromCoroutine(client.call("images.pull", {"ref": "slow"}))
        await client.call("containers.list")
        call.cancel()
        with self.assertRaises(CancelledError):
            await call
        await client.call("containers.list")
        self.assertEqual(self.rig.images.cancelled, 1)

    async def test_stopped(self) -> None:
        """When the daemon stops, calls end as unavailable, and later ones fail at once."""
        self.rig.started("web")
        client = await self.client()
        wait = Deferred.fromCoroutine(client.call("containers.wait", {"id": "web"}))
        await client.call("containers.list")
        await self.service.stopService()
        with self.assertRaises(RemoteError) as caught:
            await wait
        self.assertEqual(caught.exception.kind, "unavailable")
        with self.assertRaises(Unavailable):
            await client.call("containers.list")
        with self.assertRaises(ConnectError):
            await self.client()

    async def test_events(self) -> None:
        """Events come from since on, then as they happen, until the iterator is closed."""
        client = await self.client()
        for _ in range(3):
            self.rig.journal.emit("x")
        seen = []
        async with aclosing(client.events(since=1)) as events:
            async for event in events:
                seen.append(event["seq"])
                if event["seq"] == 3:
                    self.rig.journal.emit("y")
                if event["seq"] == 4:
                    break
        self.assertEqual(seen, [2, 3, 4])
        await client.call("containers.list")
        self.assertEqual(self.rig.journal.followers, 0)

    async def test_slow_reader(self) -> None:
        """A reader that falls far behind still gets every event once, in order.

        Meanwhile it can make calls on the same connection.
        """
        client = await self.client()
        total = 3 * WAITING_EVENTS
        seen = []
        async with aclosing(client.events(since=0)) as events:
            self.rig.journal.emit("x")
            async for event in events:
                seen.append(event["seq"])
                if len(seen) == 1:
                    for _ in range(total - 1):
                        self.rig.journal.emit("x")
                    await deferLater(reactor, 0.2)
                    await client.call("containers.list")
                if len(seen) == total:
                    break
        self.assertEqual(seen, list(range(1, total + 1)))

    async def test_trimmed(self) -> None:
        """A gap in the journal is told."""
        client = await self.client()
        for _ in range(4):
            self.rig.journal.emit("x")
        self.rig.journal.oldest = 3
        async with aclosing(client.events(since=0)) as events:
            items = [await anext(events) for _ in range(3)]
        self.assertEqual(items[0], {"trimmed": {"since": 0, "oldest": 3}})
        self.assertEqual([i["seq"] for i in items[1:]], [3, 4])

    async def test_events_end(self) -> None:
        """The iterator raises what ended it, after the events before that."""
        client = await self.client()
        self.rig.journal.emit("x")
        events = client.events(since=0)
        self.assertEqual((await anext(events))["seq"], 1)
        await self.service.stopService()
        with self.assertRaises(RemoteError):
            await anext(events)


class HostileDaemonTests(SynchronousTestCase):
    """What the client makes of nonsense."""

    def setUp(self) -> None:
        self.transport = StringTransport()
        self.client = Client()
        self.client.makeConnection(self.transport)

    def begin(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.client.call("daemon.info"))

    def test_nonsense(self) -> None:
        """A line that is no JSON object ends the connection."""
        for line in (b"x\n", b"[]\n", b"[" * 100_000 + b"\n", b"x" * (5 << 20)):
            self.setUp()
            self.client.dataReceived(line)
            self.assertTrue(self.transport.disconnecting)

    def test_strangers(self) -> None:
        """Answers and notifications that belong to no call are left aside."""
        call = self.begin()
        for message in (
            {"id": 99, "result": 1},
            {"id": "x", "result": 1},
            {"method": "progress", "params": {"call": 99}},
            {"method": "progress", "params": []},
            {"method": "progress", "params": {"call": 1}},
        ):
            self.client.dataReceived(json.dumps(message).encode() + b"\n")
        self.assertNoResult(call)
        self.client.dataReceived(b'{"id":1,"result":{"a":1}}\n')
        self.assertEqual(self.successResultOf(call), {"a": 1})
        self.assertFalse(self.transport.disconnecting)

    def test_odd_answers(self) -> None:
        """An id of another type is no call's, and an odd error is still an error."""
        call = self.begin()
        self.client.dataReceived(b'{"id":[1],"result":1}\n')
        self.assertNoResult(call)
        self.client.dataReceived(b'{"id":1,"error":5}\n')
        self.assertEqual(self.failureResultOf(call, RemoteError).value.kind, "internal")
        self.assertEqual(remote({"data": {"kind": ["x"]}}).kind, "internal")
        self.assertEqual(remote({"code": 1, "data": {"kind": "aborted"}}).kind, "aborted")

    def test_refused(self) -> None:
        """A daemon that refuses the connection says why, and calls under way get that."""
        call = self.begin()
        self.client.dataReceived(
            b'{"id":null,"error":{"code":-32007,"message":"not you",'
            b'"data":{"kind":"permission_denied"}}}\n'
        )
        self.assertEqual(self.failureResultOf(call, RemoteError).value.kind, "permission_denied")
        self.assertTrue(self.transport.disconnecting)

    def test_too_large(self) -> None:
        """A call that fits no line is not sent."""
        call = Deferred.fromCoroutine(self.client.call("x", {"a": "b" * (4 << 20)}))
        self.failureResultOf(call, ResourceExhausted)
        self.assertEqual(self.transport.value(), b"")

    def test_lost(self) -> None:
        """When the connection breaks, what waits fails as unavailable."""
        call = self.begin()
        self.client.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(call, Unavailable)
        self.failureResultOf(self.begin(), Unavailable)
        self.successResultOf(Deferred.fromCoroutine(self.client.close()))
