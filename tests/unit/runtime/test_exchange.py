"""Requests and replies as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import DeadlineExceeded
from ctd.protocols import shim as words
from ctd.runtime.errors import ShimGone
from ctd.runtime.exchange import Exchange, Refused


class ExchangeTests(SynchronousTestCase):
    """One connection."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[bytes] = []
        self.notified: list[tuple[str, Mapping[str, Any]]] = []
        self.exchange = self.make()

    def make(self) -> Exchange:
        return Exchange(
            self.clock,
            self.sent.append,
            lambda method, params: self.notified.append((method, params)),
        )

    def test_request(self) -> None:
        """A request is one line with a number of its own; its answer is the reply's result."""
        first = self.exchange.request("state", {}, 5)
        second = self.exchange.request("kill", {"signal": 9}, 5)
        self.assertEqual(
            [json.loads(line) for line in self.sent],
            [
                {"id": 1, "method": "state", "params": {}},
                {"id": 2, "method": "kill", "params": {"signal": 9}},
            ],
        )
        self.assertTrue(all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in self.sent))
        self.exchange.received(b'{"id": 2, "result": {}}\n{"id": 1, "result": null}\n')
        self.assertEqual(self.successResultOf(second), {})
        self.assertIsNone(self.successResultOf(first))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_split(self) -> None:
        """Wherever the bytes are split, replies and notifications are the same, in order."""
        data = (
            '{"method":"exited","params":{"é":1}}\n{"id":1,"result":[2]}\n{"method":"b"}\n'.encode()
        )
        for size in range(1, len(data) + 1):
            exchange = self.make()
            self.notified.clear()
            reply = exchange.request("state", {}, 5)
            for at in range(0, len(data), size):
                exchange.received(data[at : at + size])
            self.assertEqual(self.successResultOf(reply), [2])
            self.assertEqual(self.notified, [("exited", {"é": 1}), ("b", {})])

    def test_refused(self) -> None:
        """An error becomes Refused with its kind, its message and all its fields."""
        for error, kind, message in (
            ({"kind": "not_found", "message": "no", "x": 1}, "not_found", "no"),
            ({}, "internal", "no reason given"),
            ({"kind": 3, "message": None}, "internal", "no reason given"),
        ):
            exchange = self.make()
            reply = exchange.request("state", {}, 5)
            exchange.received(json.dumps({"id": 1, "error": error}).encode() + b"\n")
            refused = self.failureResultOf(reply, Refused).value
            self.assertEqual((refused.kind_, str(refused), refused.data), (kind, message, error))

    def test_garbage(self) -> None:
        """Lines that are no messages are logged and passed over; the next one counts."""
        reply = self.exchange.request("state", {}, 5)
        garbage = (
            b"hello",
            b"\xff\xfe",
            b"[1]",
            b"{",
            b'{"id": "1", "result": 2}',
            b'{"id": 1, "error": "x"}',
            b'{"method": 3}',
            b"[" * 100_000,
            b"x" * (words.MAX_LINE + 1),
        )
        self.exchange.received(b"\n".join(garbage) + b"\n \n\n" + b'{"id": 1, "result": 3}\n')
        self.assertEqual(self.successResultOf(reply), 3)
        self.assertEqual(self.notified, [])

    def test_stranger(self) -> None:
        """Replies that nobody waits for, or that come twice, are nothing."""
        reply = self.exchange.request("state", {}, 5)
        self.exchange.received(b'{"id": 7, "result": 1}\n{"id": 1, "result": 2}\n')
        self.exchange.received(b'{"id": 1, "result": 3}\n{}\n{"result": 4}\n')
        self.assertEqual(self.successResultOf(reply), 2)

    def test_longest(self) -> None:
        """A line of the most bytes there may be is taken."""
        reply = self.exchange.request("state", {}, 5)
        head = b'{"id": 1, "result": "'
        body = b"x" * (words.MAX_LINE - len(head) - 2)
        self.exchange.received(head + body + b'"}\n')
        self.assertEqual(self.successResultOf(reply), body.decode())

    def test_late(self) -> None:
        """A request that is not answered in time fails, alone; its late answer is nothing."""
        late = self.exchange.request("state", {}, 5)
        other = self.exchange.request("create", {}, 50)
        self.clock.advance(4.9)
        self.assertNoResult(late)
        self.clock.advance(0.2)
        error = self.failureResultOf(late, DeadlineExceeded).value
        self.assertEqual((error.what, error.seconds), ("reply to state", 5))
        self.exchange.received(b'{"id": 1, "result": 1}\n{"id": 2, "result": 2}\n')
        self.assertEqual(self.successResultOf(other), 2)

    def test_cancel(self) -> None:
        """A cancelled request leaves no timer, and its answer is nothing."""
        reply = self.exchange.request("state", {}, 5)
        reply.cancel()
        self.failureResultOf(reply, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.exchange.received(b'{"id": 1, "result": 1}\n')

    def test_lost(self) -> None:
        """When the connection is lost all who wait get the reason, and no timer is left."""
        waiting = [self.exchange.request("state", {}, 5) for _ in range(3)]
        reason = ShimGone("a", "gone")
        self.exchange.lost(reason)
        for reply in waiting:
            self.assertIs(self.failureResultOf(reply, ShimGone).value, reason)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reentrant(self) -> None:
        """Whoever gets an answer may ask again, or cancel another, at once."""
        first = self.exchange.request("state", {}, 5)
        second = self.exchange.request("state", {}, 5)
        again: list[Deferred[Any]] = []

        def answered(_: Any) -> None:
            second.cancel()
            again.append(self.exchange.request("kill", {}, 5))

        first.addCallback(answered)
        self.exchange.received(b'{"id":1,"result":1}\n{"id":2,"result":2}\n{"id":3,"result":3}\n')
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.successResultOf(again[0]), 3)
