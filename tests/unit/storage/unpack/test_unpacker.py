"""The unpacker, with real workers, on real snapshotters."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from ctd.errors import InvalidArgument
from ctd.model import MediaType
from ctd.storage.interfaces import SHARED, IUnpacker, SnapshotKind, UnpackProgress
from tests.unit.storage.unpack.archives import (
    BASE,
    Member,
    chain,
    layer_of,
    pack,
)
from tests.unit.storage.unpack.rig import UnpackTestCase


class UnpackingTests(UnpackTestCase):
    """One layer."""

    def test_interface(self) -> None:
        """It is what the interface says."""
        verifyObject(IUnpacker, self.unpacker)

    async def test_a_layer(self) -> None:
        """A layer's snapshot is committed under its chain ID and has all the tar has."""
        made = layer_of(BASE)
        for on, storage in self.snapshotters.items():
            self.assertEqual(await self.unpack(made, None, on), made.layer.chain_id)
            info = await storage.info(SHARED, made.layer.chain_id)
            self.assertEqual((info.kind, info.parent), (SnapshotKind.COMMITTED, None))
            seen = await self.look(made.layer.chain_id, on)
            self.assertEqual(seen["etc"]["owner"], (7, 8))
            self.assertEqual(seen["etc"]["mode"], "0o40750")
            self.assertEqual(seen["etc"]["mtime"], 1_100_000_000 * 10**9)
            self.assertEqual(seen["etc/passwd"]["mode"], "0o100600")
            self.assertEqual(seen["usr/bin/su"]["mode"], "0o104755")
            self.assertEqual(seen["usr/bin/su"]["same"], seen["usr/bin/same"]["same"])
            self.assertEqual(seen["bin"]["link"], b"usr/bin")
            self.assertEqual(seen["null"]["device"], os.makedev(1, 3))
            self.assertEqual(seen["null"]["mode"], "0o20666")

    async def test_media_types(self) -> None:
        """A layer may be plain, gzip or zstd."""
        for media_type in (MediaType.OCI_LAYER, MediaType.OCI_LAYER_GZIP, MediaType.OCI_LAYER_ZSTD):
            tar = pack([Member("a", media_type.encode() * 100_000)])
            await self.unpack(layer_of(tar, media_type))

    async def test_again(self) -> None:
        """A committed layer is not read again, nor is its parent waited for."""
        made = layer_of(BASE)
        await self.unpack(made)
        await self.content.delete(made.layer.blob.digest)
        self.assertEqual(await self.begin(made, Deferred()), made.layer.chain_id)

    async def test_while_it_arrives(self) -> None:
        """A layer is unpacked while it arrives, and committed when it is verified."""
        data = os.urandom(6 << 20)
        made = layer_of(pack([Member(f"f{n}", data[n << 20 : (n + 1) << 20]) for n in range(6)]))
        told: list[UnpackProgress] = []
        ingest = await self.content.ingest("ref", made.layer.blob)
        work = self.begin(made, progress=told.append)
        half = len(made.blob) // 2
        await ingest.write(made.blob[:half])
        await self.until(lambda: told and told[-1].read > half // 2)
        await ingest.write(made.blob[half:-1])
        await self.until(lambda: told[-1].read > half)
        self.assertFalse(work.called)
        await ingest.write(made.blob[-1:])
        await ingest.commit()
        self.assertEqual(await work, made.layer.chain_id)

    async def test_empty(self) -> None:
        """An archive without entries is a layer too."""
        await self.unpack(layer_of(pack([])))

    async def test_unknown(self) -> None:
        """An unknown snapshotter or media type is the caller's mistake."""
        made = layer_of(BASE)
        with self.assertRaises(InvalidArgument):
            await self.begin(made, on="other")
        blob = attrs.evolve(made.layer.blob, media_type="application/zip")
        with self.assertRaises(InvalidArgument):
            await self.begin(attrs.evolve(made, layer=attrs.evolve(made.layer, blob=blob)))


class AskingTogetherTests(UnpackTestCase):
    """Several who want the same layer."""

    async def test_once(self) -> None:
        """A layer is unpacked once for all who ask, and all hear how far it is."""
        made = layer_of(BASE)
        told: list[list[UnpackProgress]] = [[], []]
        both = [self.begin(made, progress=t.append) for t in told]
        await self.store(made)
        for one in both:
            self.assertEqual(await one, made.layer.chain_id)
        self.assertTrue(told[0] and told[1])
        self.assertEqual(len(self.database.rows("SELECT * FROM snapshots")), 1)

    async def test_one_goes(self) -> None:
        """When the one who asked first goes, the parent of another will do."""
        layers = chain(BASE, pack([Member("etc/x", b"x")]))
        below = await self.unpack(layers[0])
        first = self.begin(layers[1], Deferred())
        parent: Deferred[Any] = Deferred()
        second = self.begin(layers[1], parent)
        await self.store(layers[1])
        first.cancel()
        with self.assertRaises(CancelledError):
            await first
        parent.callback(below)
        self.assertEqual(await second, layers[1].layer.chain_id)

    async def test_another_blob(self) -> None:
        """When the one whose blob is unpacked goes, another's blob of the same layer is."""
        tar = BASE
        gzipped, plain = layer_of(tar), layer_of(tar, MediaType.OCI_LAYER)
        first = self.begin(gzipped)  # a blob that never comes
        await self.store(plain)
        second = self.begin(plain)
        first.cancel()
        with self.assertRaises(CancelledError):
            await first
        self.assertEqual(await second, plain.layer.chain_id)

    async def test_all_go(self) -> None:
        """When all have gone nothing is left, and it can be begun again."""
        data = os.urandom(1 << 20)
        made = layer_of(pack([Member(f"f{n}", data) for n in range(4)]))
        ingest = await self.content.ingest("ref", made.layer.blob)
        await ingest.write(made.blob[: 2 << 20])
        told: list[UnpackProgress] = []
        both = [self.begin(made, progress=told.append) for _ in range(2)]
        await self.until(lambda: told)
        for one in both:
            one.cancel()
        for one in both:
            with self.assertRaises(CancelledError):
                await one
        self.assertEqual(self.database.rows("SELECT * FROM snapshots"), [])
        self.assertEqual(self.jobs(), set())
        await ingest.write(made.blob[2 << 20 :])
        await ingest.commit()
        self.assertEqual(await self.begin(made), made.layer.chain_id)

    async def test_cancelled_at_any_moment(self) -> None:
        """Whenever it is cancelled nothing is left but perhaps the whole layer."""
        made = layer_of(BASE)
        await self.store(made)
        for moment in range(0, 60, 4):
            work = self.begin(made)
            await self.pause(moment / 1000)
            work.cancel()
            try:
                await work
            except CancelledError:
                continue
            break
        self.assertEqual(await self.begin(made), made.layer.chain_id)
