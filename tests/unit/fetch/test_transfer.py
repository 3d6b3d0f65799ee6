"""A blob's stream: backpressure, silence, and bodies that end too early or too late."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from ctd.fetch.errors import TransferBroken
from ctd.fetch.interfaces import IBlobStream
from ctd.fetch.reference import Reference
from ctd.fetch.transfer import CHUNK_SIZE, LINGER, SILENCE_SECONDS, WAITING_LIMIT
from ctd.model import Descriptor, Digest
from tests.unit.fetch.stage import Reply, Stage, Wire, collect

REF = Reference.parse("reg.example/a/b:1")
SIZE = 8 << 20
BODY = bytes(range(256)) * (SIZE // 256)
BIG = Descriptor("a/b", Digest.of(BODY), SIZE)


class Bare(Reply):
    """A reply that says nothing of its body's length."""

    def wire(self) -> bytes:
        return b"HTTP/1.1 200 OK\r\n\r\n" + self.body


class StreamTestCase(SynchronousTestCase):
    def start(self, reply: Reply | bytes | None = None, split: int = 64 << 10) -> Any:
        """A stream of the big blob, or of whatever *reply* is."""
        self.stage = Stage()
        self.stage.network.split = split
        self.stage.fake.blobs[str(BIG.digest)] = BODY
        if reply is not None:
            self.stage.fake.change = lambda request, _: reply
        opening = self.stage.begin(self.stage.registry.blob(REF, BIG))
        return self.successResultOf(opening)

    @property
    def wire(self) -> Wire:
        return self.stage.network.wires[-1]

    def next(self, stream: Any) -> Deferred[bytes]:
        return self.stage.begin(stream.__anext__())

    def broken(self, stream: Any) -> TransferBroken:
        """How a stream ends that is read to its end."""
        with self.assertRaises(TransferBroken) as caught:
            self.stage.result(collect(stream))
        return caught.exception


class FlowTests(StreamTestCase):
    """Chunks, and when the network is read."""

    def test_interface(self) -> None:
        """A stream is one."""
        verifyObject(IBlobStream, self.start())

    def test_reader_holds_the_network(self) -> None:
        """About a MiB waits for a slow reader, and reading goes on when half of it is taken."""
        stream = self.start()
        self.assertTrue(self.wire.paused)
        delivered = self.stage.network.delivered
        self.assertLess(delivered, WAITING_LIMIT + (128 << 10))
        self.stage.wait(1000)
        self.assertEqual(self.stage.network.delivered, delivered)
        self.successResultOf(self.next(stream))
        self.assertEqual(self.stage.network.delivered, delivered)
        self.successResultOf(self.next(stream))
        self.assertGreater(self.stage.network.delivered, delivered)
        self.assertLess(self.stage.network.delivered, delivered + WAITING_LIMIT)

    def test_slow_reader_is_no_silence(self) -> None:
        """However long a reader holds a chunk, the stream goes on and is whole."""
        stream = self.start()
        parts = []
        for _ in range(5):
            parts.append(self.successResultOf(self.next(stream)))
            self.stage.wait(SILENCE_SECONDS * 3)
        parts.append(self.stage.result(collect(stream)))
        self.assertEqual(b"".join(parts), BODY)

    def test_large_pieces_are_not_copied(self) -> None:
        """A piece of a chunk's size goes through as the very object that came."""
        stream = self.start(split=CHUNK_SIZE)
        self.successResultOf(self.next(stream))
        piece = b"x" * CHUNK_SIZE
        stream.dataReceived(piece)
        taken = [self.successResultOf(self.next(stream)) for _ in range(5)]
        self.assertTrue(any(chunk is piece for chunk in taken))

    def test_small_pieces_are_joined(self) -> None:
        """Small pieces that come quickly make up chunks of CHUNK_SIZE and little more."""
        stream = self.start(split=1000)
        sizes = []

        async def read() -> None:
            async for chunk in stream:
                sizes.append(len(chunk))

        self.stage.result(read())
        self.assertEqual(sum(sizes), SIZE)
        self.assertLess(max(sizes[:-1]), CHUNK_SIZE + 1000)
        self.assertGreaterEqual(min(sizes[:-1]), CHUNK_SIZE)

    def test_small_piece_does_not_wait_long(self) -> None:
        """What comes slowly is handed on after a moment."""
        stream = self.start(Reply(200, BODY, sent=100))
        reading = self.next(stream)
        self.stage.wait(LINGER / 2)
        self.assertNoResult(reading)
        self.stage.wait(LINGER / 2)
        self.assertEqual(self.successResultOf(reading), BODY[:100])

    def test_left_early(self) -> None:
        """Leaving a stream cuts its connection, whatever waits, and leaves no timer."""
        stream = self.start()

        async def leave() -> None:
            async with stream:
                await stream.__anext__()

        self.stage.result(leave())
        self.assertTrue(self.wire.closed)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_cancelled(self) -> None:
        """A reader that is cancelled while it waits leaves."""
        stream = self.start(Reply(200, BODY, sent=0))
        reading = self.stage.begin(collect(stream))
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        self.stage.settle()
        self.assertTrue(self.wire.closed)
        self.assertEqual(self.stage.clock.getDelayedCalls(), [])

    def test_read_to_its_end(self) -> None:
        """A stream that is read to its end leaves its connection for the next one."""
        stream = self.start()
        self.assertEqual(self.stage.result(collect(stream)), BODY)
        again = self.stage.result(self.stage.registry.blob(REF, BIG))
        self.assertEqual(self.stage.result(collect(again)), BODY)
        self.assertEqual(len(self.stage.network.wires), 1)


class BrokenTests(StreamTestCase):
    """Bodies that are not what was declared."""

    def test_hung_up(self) -> None:
        """A server that hangs up breaks the transfer at the byte it came to."""
        for chunked in (False, True):
            error = self.broken(
                self.start(Reply(200, BODY, sent=5000, close=True, chunked=chunked))
            )
            self.assertEqual((error.digest, error.offset), (str(BIG.digest), 5000))
            self.assertEqual(error.kind, "unavailable")

    def test_everything_before_it_counts(self) -> None:
        """What came before the break is read before it is told."""
        stream = self.start(Reply(200, BODY, sent=5000, close=True))
        self.assertEqual(self.stage.result(stream.__anext__()), BODY[:5000])
        for _ in range(2):
            with self.assertRaises(TransferBroken):
                self.stage.result(stream.__anext__())

    def test_silent(self) -> None:
        """A server that falls silent is given up in time, and its connection cut."""
        stream = self.start(Reply(200, BODY, sent=5000))
        reading = self.stage.begin(collect(stream))
        self.stage.wait(SILENCE_SECONDS - 1)
        self.assertNoResult(reading)
        self.stage.wait(1)
        error = self.failureResultOf(reading, TransferBroken).value
        self.assertEqual(error.offset, 5000)
        self.assertTrue(self.wire.closed)

    def test_drip(self) -> None:
        """A server that sends a byte now and then does not hold a transfer open."""
        stream = self.start(Reply(200, BODY, sent=5000))
        reading = self.stage.begin(collect(stream))
        for _ in range(int(SILENCE_SECONDS) - 1):
            self.stage.wait(1)
            stream.dataReceived(b"x")
            self.assertNoResult(reading)
        self.stage.wait(1)
        self.failureResultOf(reading, TransferBroken)
        self.assertTrue(self.wire.closed)

    def test_too_long(self) -> None:
        """A body without a length that goes on too long gives its declared bytes and no more."""
        stream = self.start(Reply(200, BODY + b"more", chunked=True), split=1 << 20)
        parts = []

        async def read() -> None:
            async with stream:
                async for chunk in stream:
                    parts.append(chunk)

        with self.assertRaises(TransferBroken) as caught:
            self.stage.result(read())
        self.assertEqual(b"".join(parts), BODY)
        self.assertEqual(caught.exception.offset, SIZE)
        self.assertTrue(self.wire.closed)

    def test_endless(self) -> None:
        """A body without a length or an end is cut when it has passed the declared size."""
        body = b"HTTP/1.1 200 OK\r\n\r\n" + BODY * 2
        self.broken(self.start(body))
        self.assertLess(self.stage.network.delivered, SIZE + (1 << 20))

    def test_no_length_at_all(self) -> None:
        """A body that ends with its connection is as good as any if it has the size."""
        stream = self.start(Bare(200, BODY, close=True))
        self.assertEqual(self.stage.result(collect(stream)), BODY)
        self.assertEqual(self.broken(self.start(Bare(200, BODY[:-1], close=True))).offset, SIZE - 1)

    def test_no_end_of_chunks(self) -> None:
        """All bytes without the end of the chunks are a broken transfer, though all were given."""
        stream = self.start(Reply(200, BODY, chunked=True, sent=SIZE, close=True))
        self.assertEqual(self.broken(stream).offset, SIZE)

    def test_bad_chunks(self) -> None:
        """Chunks that cannot be read break the transfer."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for junk in (b"zz\r\n", b"-5\r\nabc", b"5\r\nabcdefgh", b"1" * 5000):
            self.broken(self.start(head + b"3\r\nabc\r\n" + junk))
