"""Reading a blob while it arrives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from ctd.model import Descriptor, Digest
from ctd.storage.arrival import IArrivalListener, Source
from ctd.storage.content import ContentStore
from ctd.storage.errors import DigestMismatch, IngestDiscarded, SizeMismatch
from ctd.storage.ingest import BATCH
from tests.conformance.content import described
from tests.unit.storage.stage import Power, PoweredWorkers, StagedDatabase, WallClock

DATA = bytes(range(256)) * (3 * BATCH // 256)


@implementer(IArrivalListener)
@attrs.define
class Reader:
    """Reads what it is told of, as it is told of it."""

    told: list[tuple[int, bool]] = attrs.field(factory=list)
    read: bytes = b""
    fd: int = -1
    failure: Failure | None = None

    def grown(self, fd: int, size: int, complete: bool) -> None:
        assert self.fd in (-1, fd)
        self.fd = fd
        self.told.append((size, complete))
        self.read += os.read(fd, size - len(self.read))

    def failed(self, reason: Failure) -> None:
        self.failure = reason


class FollowingTests(SynchronousTestCase):
    """Followers of blobs that are there, are coming, or are not yet."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp()).absolute()
        self.root.mkdir()
        self.fds = len(os.listdir("/proc/self/fd"))
        power = Power()
        self.database = StagedDatabase(power=power)
        self.store = ContentStore(
            self.database,  # type: ignore[arg-type]
            PoweredWorkers(power),
            self.root,
            WallClock(),
        )
        self.do(self.store.recover())

    def tearDown(self) -> None:
        """Nothing is open when nobody reads or writes any more."""
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), self.fds)

    def do(self, coroutine: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def source(self, data: bytes = DATA) -> Source:
        return self.store.source(described(data))

    def begin(self, data: bytes = DATA) -> Any:
        return self.do(self.store.ingest("ref", described(data)))

    def test_interface(self) -> None:
        """The listener of these tests is one."""
        verifyObject(IArrivalListener, Reader())

    def test_stored(self) -> None:
        """A stored blob is told of at once, all of it."""
        self.do(self.store.put(described(b"data"), b"data"))
        reader = Reader()
        stop = self.source(b"data").follow(reader)
        self.assertEqual((reader.told, reader.read), ([(4, True)], b"data"))
        stop()
        stop()

    def test_growing(self) -> None:
        """An ingest is told of as it grows: what the file has, not what waits for it."""
        reader = Reader()
        stop = self.source().follow(reader)
        ingest = self.begin()
        self.do(ingest.write(DATA[: BATCH - 1]))
        self.assertEqual(reader.told, [])
        self.do(ingest.write(DATA[BATCH - 1 : BATCH + 5]))
        self.assertEqual(reader.told, [(BATCH + 5, False)])
        self.do(ingest.write(DATA[BATCH + 5 :]))
        self.assertEqual(reader.told[-1], (len(DATA), True))
        self.do(ingest.commit())
        self.assertEqual(reader.read, DATA)
        self.assertEqual(len(reader.told), 2)
        stop()

    def test_late(self) -> None:
        """Who comes late is told at once what there is; each has an offset of its own."""
        ingest = self.begin()
        self.do(ingest.write(DATA[: 2 * BATCH]))
        readers = [Reader(), Reader()]
        stops = [self.source().follow(r) for r in readers]
        for reader in readers:
            self.assertEqual((reader.told, reader.read), ([(2 * BATCH, False)], DATA[: 2 * BATCH]))
        stops[0]()
        self.do(ingest.write(DATA[2 * BATCH :]))
        self.do(ingest.commit())
        self.assertEqual(len(readers[0].told), 1)
        self.assertEqual(readers[1].read, DATA)
        stops[1]()

    def test_fd_outlives_commit_and_deletion(self) -> None:
        """The descriptor can be read until the following is stopped, whatever comes."""
        reader = Reader()
        stop = self.source().follow(reader)
        ingest = self.begin()
        self.do(ingest.write(DATA))
        self.do(ingest.commit())
        self.do(self.store.delete(Digest.of(DATA)))
        self.assertEqual(os.pread(reader.fd, 100, 0), DATA[:100])
        stop()

    def test_deleted_and_discarded(self) -> None:
        """Who has all of a verified blob is not told of what becomes of a later ingest of it."""
        self.do(self.store.put(described(DATA), DATA))
        reader = Reader()
        stop = self.source().follow(reader)
        self.do(self.store.delete(Digest.of(DATA)))
        ingest = self.begin()
        self.do(ingest.write(b"?" * BATCH))
        self.do(ingest.discard())
        self.assertEqual((reader.told, reader.failure), ([(len(DATA), True)], None))
        self.assertEqual(reader.read, DATA)
        stop()

    def test_resumed(self) -> None:
        """A follower sees the ingest go on in the same file after it was closed."""
        reader = Reader()
        stop = self.source().follow(reader)
        ingest = self.begin()
        self.do(ingest.write(DATA[:BATCH]))
        self.do(ingest.close())
        self.assertEqual((reader.told, reader.failure), ([(BATCH, False)], None))
        ingest = self.begin()
        self.assertEqual(ingest.offset, BATCH)
        self.do(ingest.write(DATA[BATCH:]))
        self.do(ingest.commit())
        self.assertEqual(reader.read, DATA)
        stop()

    def test_left(self) -> None:
        """An ingest that nobody writes is not told of: who resumes it hashes it first."""
        ingest = self.begin()
        self.do(ingest.write(DATA[:BATCH]))
        self.do(ingest.close())
        reader = Reader()
        stop = self.source().follow(reader)
        self.assertEqual(reader.told, [])
        ingest = self.begin()
        self.assertEqual(reader.told, [(BATCH, False)])
        stop()
        self.do(ingest.discard())

    def test_discarded(self) -> None:
        """A discarded ingest fails its followers; a new one has to be followed anew."""
        first, second = Reader(), Reader()
        stop_first = self.source().follow(first)
        ingest = self.begin()
        self.do(ingest.write(DATA[:BATCH]))
        self.do(ingest.discard())
        assert first.failure is not None
        self.assertTrue(first.failure.check(IngestDiscarded))
        stop_second = self.source().follow(second)
        ingest = self.begin()
        self.do(ingest.write(DATA))
        self.do(ingest.commit())
        self.assertEqual((len(first.told), second.read), (1, DATA))
        stop_first()
        stop_second()

    def test_aborted_and_replaced(self) -> None:
        """Aborting a left ingest, or using its ref for another blob, fails its followers."""
        for end in (
            lambda: self.do(self.store.abort("ref")),
            lambda: self.do(self.do(self.store.ingest("ref", described(b"x"))).discard()),
        ):
            reader = Reader()
            stop = self.source().follow(reader)
            ingest = self.begin()
            self.do(ingest.write(DATA[:BATCH]))
            self.do(ingest.close())
            end()
            assert reader.failure is not None
            self.assertTrue(reader.failure.check(IngestDiscarded))
            stop()

    def test_wrong(self) -> None:
        """Bytes that turn out wrong are failed, although all of them were told of."""
        reader = Reader()
        stop = self.source().follow(reader)
        ingest = self.begin()
        self.do(ingest.write(b"?" * len(DATA)))
        self.assertEqual(reader.told[-1], (len(DATA), True))
        self.failureResultOf(Deferred.fromCoroutine(ingest.commit()), DigestMismatch)
        assert reader.failure is not None
        self.assertTrue(reader.failure.check(DigestMismatch))
        stop()

    def test_other_size(self) -> None:
        """A blob that is here with another size than declared fails its follower."""
        self.do(self.store.put(described(b"data"), b"data"))
        reader = Reader()
        stop = self.store.source(Descriptor("", Digest.of(b"data"), 5)).follow(reader)
        assert reader.failure is not None
        self.assertTrue(reader.failure.check(SizeMismatch))
        stop()

    def test_empty(self) -> None:
        """A blob of no bytes is complete as soon as it is begun."""
        reader = Reader()
        stop = self.source(b"").follow(reader)
        ingest = self.begin(b"")
        self.assertEqual(reader.told, [(0, True)])
        self.do(ingest.commit())
        stop()

    def test_put(self) -> None:
        """A blob that comes at once is told of to who waited for it."""
        reader = Reader()
        stop = self.source(b"data").follow(reader)
        self.do(self.store.put(described(b"data"), b"data"))
        self.assertEqual(reader.read, b"data")
        stop()

    def test_stop_while_told(self) -> None:
        """A follower may stop, and stop another, while it is told."""
        stops: list[Any] = []

        @implementer(IArrivalListener)
        class Stopping(Reader):
            def grown(self, fd: int, size: int, complete: bool) -> None:
                self.told.append((size, complete))
                for stop in stops:
                    stop()

        readers = [Stopping(), Stopping()]
        stops += [self.source().follow(r) for r in readers]
        ingest = self.begin()
        self.do(ingest.write(DATA[:BATCH]))
        self.assertEqual([len(r.told) for r in readers], [1, 0])
        self.do(ingest.discard())

    def test_waiting_cancelled(self) -> None:
        """Who waits for a blob may stop waiting."""
        waiting = Deferred.fromCoroutine(self.source().verified())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(1, 2 * BATCH), st.booleans()), max_size=12))
    def test_any_writer(self, writes: list[tuple[int, bool]]) -> None:
        """However a blob is written and resumed, a follower reads just its bytes."""
        self.setUp()
        reader = Reader()
        stop = self.source().follow(reader)
        ingest = self.begin()
        for size, reopen in writes:
            self.do(ingest.write(DATA[ingest.offset : ingest.offset + size]))
            if reopen:
                self.do(ingest.close())
                ingest = self.begin()
            self.assertEqual(reader.read, DATA[: len(reader.read)])
        self.do(ingest.write(DATA[ingest.offset :]))
        self.do(ingest.commit())
        self.assertEqual(reader.read, DATA)
        self.assertEqual(reader.told[-1], (len(DATA), True))
        stop()
