"""Blobs decompressed, and refused where they are not what they say."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.storage.unpack.compression import CHUNK, KINDS
from ctd.storage.unpack.faults import Malformed

DATA = os.urandom(300_000) + b"text " * 200_000


def reader(blob: bytes, size: int) -> Callable[[int], bytes]:
    """A blob that comes at most *size* bytes at a time."""
    at = 0

    def read(most: int) -> bytes:
        nonlocal at
        piece = blob[at : at + min(most, size)]
        at += len(piece)
        return piece

    return read


def unpacked(kind: str, blob: bytes, size: int = 1 << 20) -> bytes:
    return b"".join(KINDS[kind](reader(blob, size)))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd}


class CompressionTests(SynchronousTestCase):
    """Each kind."""

    def test_split_anywhere(self) -> None:
        """Whatever the pieces a blob comes in, its data is the same."""
        for kind, packed in (("none", lambda d: d), *PACKERS.items()):
            for size in (7, 1000, 128 << 10, 1 << 20):
                self.assertEqual(unpacked(kind, packed(DATA[:400_000]), size), DATA[:400_000])

    def test_several(self) -> None:
        """Gzip members and zstd frames follow one another."""
        for kind, packed in PACKERS.items():
            blob = packed(b"one") + packed(b"") + packed(DATA) + packed(b"two")
            for size in (1, 100, 1 << 20):
                self.assertEqual(unpacked(kind, blob, size), b"one" + DATA + b"two")

    def test_skippable_frames(self) -> None:
        """Zstd's frames without data are passed over."""
        self.assertEqual(unpacked("zstd", SKIPPABLE + zstd(b"a") + SKIPPABLE), b"a")

    def test_cut_off(self) -> None:
        """A blob that is cut off anywhere is refused."""
        for kind, packed in PACKERS.items():
            blob = packed(DATA[:100_000])
            for end in (1, 5, 12, 1000, len(blob) - 9, len(blob) - 4, len(blob) - 1):
                with self.assertRaises(Malformed):
                    unpacked(kind, blob[:end])

    def test_garbage_after_it(self) -> None:
        """What follows the compressed data and is none is refused."""
        for kind, packed in PACKERS.items():
            for garbage in (b"x", b"garbage" * 100, bytes(1000)):
                with self.assertRaises(Malformed):
                    unpacked(kind, packed(b"data") + garbage)

    def test_another_kind(self) -> None:
        """A blob of another kind than it says is refused."""
        for kind, packed in (
            ("gzip", zstd),
            ("zstd", gzip.compress),
            ("gzip", bytes),
            ("zstd", bytes),
        ):
            with self.assertRaises(Malformed):
                unpacked(kind, packed(DATA))

    def test_damage(self) -> None:
        """A wrong checksum is found."""
        blob = bytearray(gzip.compress(DATA))
        blob[-6] ^= 1
        with self.assertRaises(Malformed):
            unpacked("gzip", bytes(blob))
        checked = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(DATA))
        checked[-2] ^= 1
        with self.assertRaises(Malformed):
            unpacked("zstd", bytes(checked))

    def test_bombs_come_in_pieces(self) -> None:
        """A small blob of much data never becomes one large chunk."""
        zeros = bytes(200 << 20)
        for kind, packed in PACKERS.items():
            sizes = [len(c) for c in KINDS[kind](reader(packed(zeros), 1 << 20))]
            self.assertEqual(sum(sizes), len(zeros))
            self.assertLessEqual(max(sizes), (128 << 20) + CHUNK)

    def test_windows(self) -> None:
        """A zstd blob that wants more memory than 128 MiB is refused."""
        parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        with self.assertRaises(Malformed):
            unpacked("zstd", compressor.compress(b"x" * 1000) + compressor.flush())

    @given(st.binary(min_size=1, max_size=500))
    @settings(max_examples=100, deadline=None)
    def test_noise(self, noise: bytes) -> None:
        """Noise is refused; nothing else happens."""
        for kind in PACKERS:
            try:
                unpacked(kind, noise, 100)
            except Malformed:
                pass


class BoundTests(SynchronousTestCase):
    """What comes of little must not all come at once."""

    def test_zstd(self) -> None:
        """However dense a zstd blob is, its chunks are small."""
        blob = zstd(bytes(64 << 20))
        chunks = [len(chunk) for chunk in KINDS["zstd"](reader(blob, 1 << 20))]
        self.assertEqual(sum(chunks), 64 << 20)
        self.assertLessEqual(max(chunks), 2 * CHUNK)
