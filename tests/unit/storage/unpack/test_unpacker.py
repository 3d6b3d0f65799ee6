"""The unpacker, with real workers, on real snapshotters."""

from __future__ import annotations

import os
import signal
import tarfile
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from zope.interface.verify import verifyObject

from ctd.errors import InvalidArgument
from ctd.model import Descriptor, Digest, MediaType
from ctd.storage.errors import DiffIDMismatch, DigestMismatch, LayerMalformed, LayerTooLarge, WorkerDied
from ctd.storage.interfaces import SHARED, IUnpacker, SnapshotKind, UnpackProgress
from ctd.storage.unpack.faults import Budget
from tests.unit.storage.unpack.archives import (
    Made,
    Member,
    chain,
    directory,
    hard_link,
    layer_of,
    opaque,
    pack,
    symlink,
    whiteout,
)
from tests.unit.storage.unpack.rig import UnpackTestCase

BASE = pack(
    [
        directory("etc", 0o750, uid=7, gid=8, mtime=1_100_000_000),
        Member("etc/passwd", b"root:x:0:0\n", mode=0o600, uid=1, gid=2),
        directory("usr"),
        directory("usr/bin"),
        Member("usr/bin/su", b"su", mode=0o4755),
        symlink("bin", "usr/bin"),
        hard_link("usr/bin/same", "usr/bin/su"),
        directory("old"),
        Member("old/file", b"old"),
        directory("old/deep"),
        Member("old/deep/file", b"old"),
        Member("gone", b"gone"),
        Member("fifo", type=tarfile.FIFOTYPE, mode=0o622),
        Member("null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
    ]
)


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
        other = Made(attrs_media(made, "application/zip"), made.blob)
        with self.assertRaises(InvalidArgument):
            await self.begin(other)


def attrs_media(made: Made, media_type: str) -> Any:
    import attrs

    blob = attrs.evolve(made.layer.blob, media_type=media_type)
    return attrs.evolve(made.layer, blob=blob)
