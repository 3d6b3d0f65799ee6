"""The server in memory: calls, cancelling, hanging up, limits."""

from __future__ import annotations

import json

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ctd.images.interfaces import PullProgress
from ctd.protocols.call import Call
from ctd.protocols.connection import GRACE, TURN, Limits
from ctd.protocols.control.results import Done
from ctd.protocols.lines import LINE_LIMIT
from ctd.protocols.methods import MethodTable, method
from ctd.protocols.params import Params
from ctd.protocols.peers import Access, Peer
from tests.unit.protocols.rig import Rig


class Odd:
    """A service whose methods do what none should."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.clean_up: Deferred[None] = Deferred()
        self.cleaned = 0

    @method("odd.fail")
    async def fail(self, call: Call, params: Params) -> Done:
        """Raise what nobody foresaw."""
        raise KeyError("secret")

    @method("odd.large")
    async def large(self, call: Call, params: Params) -> dict[str, str]:
        """Answer more than a line holds."""
        return {"x": "x" * LINE_LIMIT}

    @method("odd.unencodable")
    async def unencodable(self, call: Call, params: Params) -> dict[str, str]:
        """Answer what is no UTF-8."""
        return {"x": "\udcff"}

    @method("odd.stubborn")
    async def stubborn(self, call: Call, params: Params) -> Done:
        """Clean up for long when cancelled."""
        self.call = call
        try:
            await Deferred()
        except CancelledError:
            await self.clean_up
            self.cleaned += 1
            raise
        return Done()


class CallTests(SynchronousTestCase):
    """Requests and answers."""

    def setUp(self) -> None:
        self.rig = Rig()
        self.odd = Odd()
        self.rig.table.add(self.odd)
        self.client = self.rig.client()

    def test_interfaces(self) -> None:
        """The protocol can be half closed, and its outbox is a producer."""
        verifyObject(IHalfCloseableProtocol, self.client.protocol)
        verifyObject(IPushProducer, self.client.transport.producer)

    def test_answer(self) -> None:
        """A call is answered under its id."""
        self.client.send("daemon.info", id="x")
        (reply,) = self.client.read()
        self.assertEqual(reply["id"], "x")
        self.assertEqual(reply["jsonrpc"], "2.0")
        self.assertEqual(reply["result"]["version"], "1.2.3")

    def test_without_id(self) -> None:
        """A call without an id is answered with the id null, any number of them at once."""
        client = self.rig.started()
        client.write(b'{"method":"containers.wait","params":{"id":"web"}}\n' * 3)
        self.rig.containers.end("web", 4)
        replies = client.read()
        self.assertEqual([r["id"] for r in replies], [None] * 3)
        self.assertEqual([r["result"]["exit_status"] for r in replies], [4] * 3)

    def test_split_everywhere(self) -> None:
        """A request may come in any pieces."""
        line = b'{"id":1,"method":"containers.list"}\n'
        for cut in range(len(line) + 1):
            self.client.write(line[:cut])
            self.client.write(line[cut:])
            (reply,) = self.client.read()
            self.assertEqual(reply["result"], {"items": [], "next": None})

    def test_concurrent(self) -> None:
        """A call that takes long does not hold back those after it."""
        client = self.rig.started()
        client.send("containers.wait", {"id": "web"}, id=1)
        client.send("containers.get", {"id": "web"}, id=2)
        self.assertEqual([r["id"] for r in client.read()], [2])
        self.rig.containers.end("web")
        self.assertEqual([r["id"] for r in client.read()], [1])

    def test_errors_keep_the_connection(self) -> None:
        """After lines that are no requests the next call works."""
        self.client.write(b"nonsense\n[]\n{}\n" + b"x" * (LINE_LIMIT + 1) + b"\n\n")
        codes = [r["error"]["code"] for r in self.client.read()]
        self.assertEqual(codes, [-32700, -32600, -32600, -32006])
        self.client.call("containers.list")

    def test_unknown_method(self) -> None:
        """An unknown method is refused with the nearest name."""
        error = self.client.error("container.list")
        self.assertEqual(error["code"], -32601)
        self.assertIn("'containers.list'", error["message"])
        self.assertEqual(error["data"]["kind"], "unimplemented")
        self.assertLess(len(self.client.error("x" * 100_000)["message"]), 300)

    def test_invalid_params(self) -> None:
        """Wrong parameters are refused with the field's path."""
        error = self.client.error("containers.get", {"idd": "x"})
        self.assertEqual(error["code"], -32602)
        self.assertEqual(error["data"]["field"], "idd")
        self.assertEqual(self.client.error("containers.get", ["x"])["code"], -32602)

    def test_defect(self) -> None:
        """A defect is logged under a number, and its words do not reach the client."""
        error = self.client.error("odd.fail")
        self.assertEqual(error["code"], -32603)
        self.assertNotIn("secret", json.dumps(error))
        self.assertEqual(error["data"]["exception"], "KeyError")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.client.call("containers.list")

    def test_answers_that_cannot_be_sent(self) -> None:
        """A result that fits no line or is no text becomes an error."""
        self.assertEqual(self.client.error("odd.large")["data"]["kind"], "resource_exhausted")
        self.assertEqual(self.client.error("odd.unencodable")["data"]["kind"], "internal")
        self.flushLoggedErrors(UnicodeEncodeError)

    def test_duplicate_id(self) -> None:
        """An id in use is refused without ending the first call, and is free again after it."""
        client = self.rig.started()
        client.send("containers.wait", {"id": "web"}, id=5)
        client.send("containers.list", id=5)
        (reply,) = client.read()
        self.assertIsNone(reply["id"])
        self.assertEqual(reply["error"]["code"], -32600)
        client.send("containers.list", id="5")
        self.assertEqual(client.read()[0]["id"], "5")
        self.rig.containers.end("web")
        self.assertEqual(client.read()[0]["id"], 5)
        client.call("containers.list", id=5)

    def test_calls_limit(self) -> None:
        """One call more than the limit is refused, and there is room again after one ends."""
        client = self.rig.started()
        for id in range(1024):
            client.send("containers.wait", {"id": "web"}, id=id)
        self.assertEqual(client.read(), [])
        error = client.error("containers.list", id=1024)
        self.assertEqual(error["data"]["kind"], "resource_exhausted")
        self.assertEqual(error["data"]["limit"], 1024)
        self.rig.containers.end("web")
        self.assertEqual(len(client.read()), 1024)
        client.call("containers.list", id=1024)


class CancelTests(SynchronousTestCase):
    """Cancelling, hanging up, stopping."""

    def setUp(self) -> None:
        self.rig = Rig()
        self.odd = Odd()
        self.rig.table.add(self.odd)

    def test_cancel(self) -> None:
        """A cancelled call is answered with the kind cancelled; the connection stays."""
        client = self.rig.started()
        client.send("containers.wait", {"id": "web"}, id="w")
        client.send("rpc.cancel", {"call": "w"}, id=2)
        replies = {r["id"]: r for r in client.read()}
        self.assertEqual(replies["w"]["error"]["data"]["kind"], "cancelled")
        self.assertEqual(replies[2]["result"], {"found": True})
        self.assertEqual(self.rig.containers.cancelled, 1)
        client.call("containers.list")

    def test_cancel_nothing(self) -> None:
        """Cancelling what is not there, another connection's call or itself does nothing."""
        client, other = self.rig.started(), self.rig.client()
        client.send("containers.wait", {"id": "web"}, id=1)
        self.assertEqual(other.call("rpc.cancel", {"call": 1}, id=7), {"found": False})
        self.assertEqual(other.call("rpc.cancel", {"call": 7}, id=7), {"found": False})
        self.assertEqual(self.rig.containers.waiting("web"), 1)

    def test_cancel_twice(self) -> None:
        """A second cancel does not cut the clean-up the first one began."""
        client = self.rig.client()
        client.send("odd.stubborn", id=1)
        self.assertEqual(client.call("rpc.cancel", {"call": 1}, id=2), {"found": True})
        self.assertEqual(client.call("rpc.cancel", {"call": 1}, id=2), {"found": True})
        client.hang_up()
        stopped = Deferred.fromCoroutine(self.rig.factory.stop())
        self.assertNoResult(stopped)
        self.odd.clean_up.callback(None)
        self.assertEqual(self.odd.cleaned, 1)
        self.successResultOf(stopped)

    def test_hang_up(self) -> None:
        """Hanging up cancels the client's calls, and nobody else's."""
        client, other = self.rig.started(), self.rig.client()
        client.send("containers.wait", {"id": "web"}, id=1)
        other.send("containers.wait", {"id": "web"}, id=1)
        client.hang_up()
        self.assertEqual(self.rig.containers.waiting("web"), 1)
        self.rig.containers.end("web")
        self.assertEqual(len(other.read()), 1)
        self.assertEqual(client.read(), [])

    def test_half_close(self) -> None:
        """A client that has closed its writing side still gets its answers, then the end."""
        client = self.rig.started()
        client.send("containers.wait", {"id": "web"})
        client.write(b'{"method":"containers.list"}')  # no newline
        client.half_close()
        self.assertEqual(len(client.read()), 1)
        self.assertFalse(client.transport.disconnecting)
        self.rig.containers.end("web", 3)
        self.assertEqual(client.read()[0]["result"]["exit_status"], 3)
        self.assertTrue(client.transport.disconnecting)
        client.hang_up()
        self.assertEqual(self.rig.watch.watched, {})

    def test_half_close_idle(self) -> None:
        """A client without calls that closes its writing side is hung up on."""
        client = self.rig.client()
        client.half_close()
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(self.rig.watch.watched, {})

    def test_half_close_then_gone(self) -> None:
        """A half-closed client that then leaves cancels its calls."""
        client = self.rig.started()
        client.send("containers.wait", {"id": "web"})
        client.half_close()
        self.rig.watch.hang_up()
        self.assertTrue(client.transport.aborted)
        client.hang_up()
        self.assertEqual(self.rig.containers.cancelled, 1)

    def test_stop(self) -> None:
        """Stopping ends calls with the kind unavailable, then hangs up."""
        client, idle = self.rig.started(), self.rig.client()
        client.send("containers.wait", {"id": "web"})
        stopped = Deferred.fromCoroutine(self.rig.factory.stop())
        self.assertEqual(client.read()[0]["error"]["data"]["kind"], "unavailable")
        self.assertTrue(client.transport.disconnecting)
        self.assertTrue(idle.transport.disconnecting)
        client.hang_up()
        self.assertNoResult(stopped)
        idle.hang_up()
        self.successResultOf(stopped)
        self.assertEqual(self.rig.clock.getDelayedCalls(), [])

    def test_stop_with_a_stuck_client(self) -> None:
        """A client that does not read its last words is cut off after a moment."""
        client = self.rig.client()
        stopped = Deferred.fromCoroutine(self.rig.factory.stop())
        self.rig.clock.advance(GRACE)
        self.assertTrue(client.transport.aborted)
        client.hang_up()
        self.successResultOf(stopped)

    def test_stop_without_clients(self) -> None:
        """Stopping without clients is done at once, and newcomers are refused."""
        self.successResultOf(Deferred.fromCoroutine(self.rig.factory.stop()))
        client = self.rig.client()
        self.assertEqual(client.read()[0]["error"]["data"]["kind"], "unavailable")


class PeerTests(SynchronousTestCase):
    """Who may connect."""

    def refused(self, peer: Peer, access: Access) -> bool:
        rig = Rig(access=access)
        rig.peer = peer
        client = rig.client()
        client.send("containers.list")
        (reply,) = client.read()
        if "result" in reply:
            return False
        self.assertEqual(reply["error"]["data"]["kind"], "permission_denied")
        self.assertTrue(client.transport.disconnecting)
        self.assertIsNone(reply["id"])
        return True

    def test_access(self) -> None:
        """Root, the daemon's user and the group's members may, first group or not; others not."""
        access = Access(gid=50, uids=frozenset({0, 10}))
        self.assertFalse(self.refused(Peer(1, 0, 0), access))
        self.assertFalse(self.refused(Peer(1, 10, 10), access))
        self.assertFalse(self.refused(Peer(1, 99, 50), access))
        self.assertFalse(self.refused(Peer(1, 99, 99, frozenset({50})), access))
        self.assertTrue(self.refused(Peer(1, 99, 99, frozenset({51})), access))
        self.assertTrue(self.refused(Peer(1, 99, 99), Access(uids=frozenset({0}))))

    def test_unknown(self) -> None:
        """Whoever the kernel cannot name may not."""
        rig = Rig()
        rig.peer = OSError(22, "no")
        client = rig.client()
        self.assertEqual(client.read()[0]["error"]["data"]["kind"], "unavailable")
        self.assertTrue(client.transport.disconnecting)

    def test_connections_limit(self) -> None:
        """One connection more than the limit is refused, until another one ends."""
        rig = Rig(Limits(connections=2))
        first, _ = rig.client(), rig.client()
        third = rig.client()
        self.assertEqual(third.read()[0]["error"]["data"]["kind"], "resource_exhausted")
        third.hang_up()
        first.hang_up()
        rig.client().call("containers.list")


class BacklogTests(SynchronousTestCase):
    """Clients that do not read."""

    def test_reading_stops(self) -> None:
        """While a client is behind nothing is read from it; what it asked for waits for it."""
        rig = Rig()
        client = rig.client()
        producer = client.transport.producer
        producer.pauseProducing()
        self.assertEqual(client.transport.producerState, "paused")
        client.send("containers.list")
        self.assertEqual(client.read(), [])
        producer.resumeProducing()
        self.assertEqual(client.transport.producerState, "producing")
        self.assertEqual(len(client.read()), 1)

    def test_bound(self) -> None:
        """When more comes due than the bound, the client is cut off and nothing is kept."""
        rig = Rig(Limits(unread=10_000))
        client = rig.started()
        for id in range(200):
            client.send("containers.wait", {"id": "web"}, id)
        client.transport.producer.pauseProducing()
        rig.containers.end("web")
        self.assertTrue(client.transport.aborted)
        client.transport.producer.resumeProducing()
        self.assertEqual(client.read(), [])

    def test_turns(self) -> None:
        """Many requests that come at once are taken some in a turn of the reactor."""
        rig = Rig()
        client = rig.client()
        client.write(b'{"method":"containers.list"}\n' * (2 * TURN + 1))
        client.half_close()
        self.assertEqual(len(client.read()), TURN)
        self.assertFalse(client.transport.disconnecting)
        rig.clock.advance(0)
        self.assertEqual(len(client.read()), TURN + 1)
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_gone_between_turns(self) -> None:
        """What a client that has left had sent is not taken any more."""
        rig = Rig()
        client = rig.client()
        client.write(b'{"method":"images.pull","params":{"ref":"slow"}}\n' * (TURN + 1))
        client.hang_up()
        rig.clock.advance(1)
        self.assertEqual(len(rig.images.pulls), TURN)
        self.assertEqual(rig.images.cancelled, TURN)

    def test_half_closed_and_behind(self) -> None:
        """A half-closed client that is behind gets everything before the end."""
        rig = Rig()
        client = rig.client()
        client.transport.producer.pauseProducing()
        client.send("containers.list")
        client.half_close()
        self.assertFalse(client.transport.disconnecting)
        client.transport.producer.resumeProducing()
        self.assertEqual(len(client.read()), 1)
        self.assertTrue(client.transport.disconnecting)

    def test_events_wait(self) -> None:
        """Events wait for a slow client where they are, in the journal."""
        rig = Rig()
        client = rig.client()
        client.send("events.subscribe", {"since": 0})
        client.read()
        client.transport.producer.pauseProducing()
        for _ in range(50):
            rig.journal.emit("container.created")
        self.assertEqual(client.read(), [])
        client.transport.producer.resumeProducing()
        self.assertEqual([n["params"]["event"]["seq"] for n in client.read()], list(range(1, 51)))
        client.hang_up()

    def test_cancelled_while_behind(self) -> None:
        """A subscriber that is behind can be cancelled, and its journal iterator is closed."""
        rig = Rig()
        client = rig.client()
        client.send("events.subscribe", {"since": 0})
        client.transport.producer.pauseProducing()
        rig.journal.emit("container.created")
        client.hang_up()
        self.assertEqual(rig.journal.followers, 0)


class ProgressTests(SynchronousTestCase):
    """Notifications of pulls."""

    def test_throttle(self) -> None:
        """The first is sent at once, then ten a second, and the last before the answer."""
        rig = Rig()
        client = rig.client()
        client.send("images.pull", {"ref": "slow"}, id="p")
        progress = rig.images.progress
        assert progress is not None
        for number in range(1, 101):
            progress(PullProgress("downloading", downloaded=number, total=102))
            rig.clock.advance(0.01)
        notes = client.read()
        self.assertIn(len(notes), range(9, 13))
        self.assertEqual(notes[0]["method"], "progress")
        self.assertEqual(notes[0]["params"]["call"], "p")
        self.assertEqual(notes[0]["params"]["downloaded"], 1)
        self.assertEqual(notes[0]["params"]["total"], 102)
        progress(PullProgress("unpacking", downloaded=101))
        progress(PullProgress("done", downloaded=102))
        rig.images.finish()
        last, reply = client.read()[-2:]
        self.assertEqual(last["params"]["phase"], "done")
        self.assertEqual(reply["id"], "p")
        progress(PullProgress("late"))
        rig.clock.advance(1)
        self.assertEqual(client.read(), [])
        self.assertEqual(rig.clock.getDelayedCalls(), [])

    def test_behind(self) -> None:
        """For a client that is behind only the latest is kept."""
        rig = Rig()
        client = rig.client()
        client.send("images.pull", {"ref": "slow"})
        progress = rig.images.progress
        assert progress is not None
        client.transport.producer.pauseProducing()
        for number in range(1000):
            progress(PullProgress("downloading", downloaded=number))
            rig.clock.advance(0.1)
        client.transport.producer.resumeProducing()
        self.assertEqual(client.read(), [])
        rig.clock.advance(0.1)
        (note,) = client.read()
        self.assertEqual(note["params"]["downloaded"], 999)
        client.hang_up()
        self.assertEqual(rig.clock.getDelayedCalls(), [])


class TableTests(SynchronousTestCase):
    """The table itself."""

    def test_same_name(self) -> None:
        """Two methods of one name are refused."""
        with self.assertRaises(ValueError):
            MethodTable(Odd(), Odd())

    def test_unknown_kind(self) -> None:
        """A method that declares a kind of error there is not is refused."""
        with self.assertRaises(ValueError):
            method("x", errors=("oops",))
