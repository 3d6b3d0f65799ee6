"""What every content store does; see :class:`ctd.storage.interfaces.IContentStore`."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from ctd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from ctd.model import Descriptor, Digest
from ctd.storage.errors import DigestMismatch, IngestBusy, IngestDiscarded, SizeMismatch
from ctd.storage.interfaces import READ_LIMIT, IContentStore, IIngest, ISource

DATA = bytes(range(256)) * 1000


def described(data: bytes, algorithm: str = "sha256") -> Descriptor:
    """The descriptor of *data*."""
    return Descriptor("application/octet-stream", Digest.of(data, algorithm), len(data))


class ContentStoreSuite:
    """For a TestCase whose ``async def make_store()`` gives a new store, with nothing in it."""

    async def test_interfaces(self: Any) -> None:
        """The store, its ingests and its sources are what they say."""
        store = await self.make_store()
        verifyObject(IContentStore, store)
        ingest = await store.ingest("a", described(DATA))
        verifyObject(IIngest, ingest)
        verifyObject(ISource, store.source(described(DATA)))
        await ingest.discard()

    async def test_put(self: Any) -> None:
        """What was put can be read, listed and described."""
        store = await self.make_store()
        info = await store.put(described(DATA), DATA)
        self.assertEqual((info.digest, info.size), (Digest.of(DATA), len(DATA)))
        self.assertEqual(await store.read(info.digest), DATA)
        self.assertEqual(await store.info(info.digest), info)
        self.assertEqual(list(await store.list()), [info])

    async def test_put_again(self: Any) -> None:
        """Putting the same blob again changes nothing."""
        store = await self.make_store()
        first = await store.put(described(DATA), DATA)
        self.assertEqual(await store.put(described(DATA), DATA), first)

    async def test_put_wrong(self: Any) -> None:
        """Data that does not hash to its digest, or has another size, is refused."""
        store = await self.make_store()
        with self.assertRaises(DigestMismatch):
            await store.put(described(b"one"), b"two")
        with self.assertRaises(SizeMismatch):
            await store.put(described(b"one"), b"three")
        self.assertEqual(list(await store.list()), [])

    async def test_sha512(self: Any) -> None:
        """A blob may be known by its SHA-512."""
        store = await self.make_store()
        info = await store.put(described(DATA, "sha512"), DATA)
        self.assertEqual(await store.read(info.digest, 0, 10), DATA[:10])

    async def test_empty(self: Any) -> None:
        """A blob of no bytes is a blob."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(b""))
        await ingest.commit()
        self.assertEqual(await store.read(Digest.of(b"")), b"")

    async def test_read_part(self: Any) -> None:
        """A read gives what there is from its offset, at most its length."""
        store = await self.make_store()
        digest = (await store.put(described(b"0123456789"), b"0123456789")).digest
        self.assertEqual(await store.read(digest, 3, 4), b"3456")
        self.assertEqual(await store.read(digest, 8, 100), b"89")
        self.assertEqual(await store.read(digest, 5), b"56789")
        self.assertEqual(await store.read(digest, 10), b"")
        self.assertEqual(await store.read(digest, 50, 1), b"")
        self.assertEqual(await store.read(digest, 2, 0), b"")

    async def test_read_bounds(self: Any) -> None:
        """A read is bounded in what may be asked for."""
        store = await self.make_store()
        digest = (await store.put(described(b"0"), b"0")).digest
        with self.assertRaises(ResourceExhausted):
            await store.read(digest, 0, READ_LIMIT + 1)
        with self.assertRaises(InvalidArgument):
            await store.read(digest, -1)
        with self.assertRaises(InvalidArgument):
            await store.read(digest, 0, -1)

    async def test_not_found(self: Any) -> None:
        """What is not here is not found."""
        store = await self.make_store()
        for call in (store.info, store.read, store.delete):
            with self.assertRaises(NotFound):
                await call(Digest.of(b"nothing"))
        with self.assertRaises(NotFound):
            await store.abort("nothing")

    async def test_ingest(self: Any) -> None:
        """What was written and committed is a blob with the labels it was given."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        self.assertEqual(ingest.ref, "a")
        for at in range(0, len(DATA), 1000):
            self.assertEqual(ingest.offset, at)
            await ingest.write(DATA[at : at + 1000])
        info = await ingest.commit({"origin": "here"})
        self.assertEqual(info.labels, {"origin": "here"})
        self.assertEqual(await store.info(info.digest), info)
        self.assertEqual(await store.read(info.digest), DATA)
        self.assertEqual(list(await store.ingests()), [])

    async def test_unnamed_until_committed(self: Any) -> None:
        """A blob that is all written has no name before its commit."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA)
        with self.assertRaises(NotFound):
            await store.info(Digest.of(DATA))
        await ingest.discard()

    async def test_wrong_bytes(self: Any) -> None:
        """Bytes that hash to something else are dropped at commit."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:-1] + b"!")
        with self.assertRaises(DigestMismatch) as raised:
            await ingest.commit()
        self.assertEqual(raised.exception.expected, str(Digest.of(DATA)))
        self.assertEqual(list(await store.list()), [])
        self.assertEqual(list(await store.ingests()), [])

    async def test_too_short(self: Any) -> None:
        """Fewer bytes than declared are dropped at commit."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:-1])
        with self.assertRaises(SizeMismatch) as raised:
            await ingest.commit()
        self.assertEqual(raised.exception.actual, len(DATA) - 1)
        self.assertEqual(list(await store.ingests()), [])

    async def test_too_long(self: Any) -> None:
        """More bytes than declared are refused as soon as they come."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA)
        with self.assertRaises(ResourceExhausted) as raised:
            await ingest.write(b"!")
        self.assertEqual(raised.exception.limit, len(DATA))
        await ingest.discard()

    async def test_resume(self: Any) -> None:
        """A closed ingest goes on where it stopped, by its ref."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:1234])
        await ingest.close()
        [left] = await store.ingests()
        self.assertEqual((left.ref, left.offset, left.total), ("a", 1234, len(DATA)))
        self.assertEqual(left.expected, Digest.of(DATA))
        ingest = await store.ingest("a", described(DATA))
        self.assertEqual(ingest.offset, 1234)
        await ingest.write(DATA[1234:])
        await ingest.commit()
        self.assertEqual(await store.read(Digest.of(DATA)), DATA)

    async def test_resume_for_another(self: Any) -> None:
        """A ref used again for another digest starts from nothing."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:1234])
        await ingest.close()
        ingest = await store.ingest("a", described(b"other"))
        self.assertEqual(ingest.offset, 0)
        await ingest.write(b"other")
        await ingest.commit()
        self.assertEqual(await store.read(Digest.of(b"other")), b"other")
        self.assertEqual(list(await store.ingests()), [])

    async def test_busy(self: Any) -> None:
        """A ref has one writer at a time."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        with self.assertRaises(IngestBusy):
            await store.ingest("a", described(DATA))
        with self.assertRaises(IngestBusy):
            await store.abort("a")
        await ingest.close()
        await (await store.ingest("a", described(DATA))).discard()

    async def test_already_here(self: Any) -> None:
        """An ingest of what is here is refused at once."""
        store = await self.make_store()
        await store.put(described(DATA), DATA)
        with self.assertRaises(AlreadyExists):
            await store.ingest("a", described(DATA))
        self.assertEqual(list(await store.ingests()), [])

    async def test_came_meanwhile(self: Any) -> None:
        """A commit of what has come by another way meanwhile gives what is there."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA)
        there = await store.put(described(DATA), DATA)
        self.assertEqual(await ingest.commit(), there)
        self.assertEqual(list(await store.ingests()), [])
        self.assertEqual(await store.read(there.digest), DATA)

    async def test_discard(self: Any) -> None:
        """What is discarded is gone; discarding and closing can be repeated."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:10])
        await ingest.discard()
        await ingest.discard()
        await ingest.close()
        self.assertEqual(list(await store.ingests()), [])
        self.assertEqual((await store.ingest("a", described(DATA))).offset, 0)

    async def test_abort(self: Any) -> None:
        """A ref that was left can be forgotten."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[:10])
        await ingest.close()
        await store.abort("a")
        self.assertEqual(list(await store.ingests()), [])
        with self.assertRaises(NotFound):
            await store.abort("a")

    async def test_closed(self: Any) -> None:
        """A closed ingest takes nothing more."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        await ingest.close()
        with self.assertRaises(FailedPrecondition):
            await ingest.write(b"x")
        with self.assertRaises(FailedPrecondition):
            await ingest.commit()

    async def test_delete(self: Any) -> None:
        """A deleted blob is gone, and may come again."""
        store = await self.make_store()
        await store.put(described(DATA), DATA)
        await store.delete(Digest.of(DATA))
        with self.assertRaises(NotFound):
            await store.read(Digest.of(DATA))
        await store.put(described(DATA), DATA)
        self.assertEqual(await store.read(Digest.of(DATA)), DATA)

    async def test_verified(self: Any) -> None:
        """A source is verified when its blob is committed, at once if it is here."""
        store = await self.make_store()
        waiting = Deferred.fromCoroutine(store.source(described(DATA)).verified())
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA)
        self.assertNoResult(waiting)
        await ingest.commit()
        await waiting
        await store.source(described(DATA)).verified()

    async def test_verified_by_put(self: Any) -> None:
        """A source does not mind by which way its blob comes."""
        store = await self.make_store()
        waiting = Deferred.fromCoroutine(store.source(described(DATA)).verified())
        await store.put(described(DATA), DATA)
        await waiting

    async def test_never_verified(self: Any) -> None:
        """A source fails with what ended its blob's ingest."""
        store = await self.make_store()
        source = store.source(described(DATA))
        ingest = await store.ingest("a", described(DATA))
        discarded = Deferred.fromCoroutine(source.verified())
        await ingest.discard()
        with self.assertRaises(IngestDiscarded):
            await discarded
        ingest = await store.ingest("a", described(DATA))
        mismatched = Deferred.fromCoroutine(source.verified())
        await ingest.write(b"?" * len(DATA))
        with self.assertRaises(DigestMismatch):
            await ingest.commit()
        with self.assertRaises(DigestMismatch):
            await mismatched

    async def test_verified_size(self: Any) -> None:
        """A source whose descriptor has another size than the stored blob fails."""
        store = await self.make_store()
        await store.put(described(DATA), DATA)
        with self.assertRaises(SizeMismatch):
            await store.source(Descriptor("", Digest.of(DATA), 1)).verified()

    async def test_verified_after_pause(self: Any) -> None:
        """A source waits through an ingest that is closed and resumed."""
        store = await self.make_store()
        ingest = await store.ingest("a", described(DATA))
        waiting = Deferred.fromCoroutine(store.source(described(DATA)).verified())
        await ingest.write(DATA[:10])
        await ingest.close()
        self.assertNoResult(waiting)
        ingest = await store.ingest("a", described(DATA))
        await ingest.write(DATA[10:])
        await ingest.commit()
        await waiting
