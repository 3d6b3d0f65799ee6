"""Layer blobs decompressed piece by piece, bounded; refused where they are not of their type."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard
from isal import igzip_lib

from ctd.storage.unpack.faults import Malformed

#: Bytes of a decompressed chunk; small enough to stay in the cache and the allocator's arenas.
CHUNK = 256 << 10
_INPUT = 128 << 10
#: A zstd block of 4 bytes can become 128 KiB, and one call gives all of its input's: 32 MiB.
_ZSTD_INPUT = 1 << 10
_ZSTD_WINDOW = 1 << 27

#: Reads up to so many bytes of the blob; empty at its end.
Read = Callable[[int], "bytes | memoryview"]


def plain(read: Read) -> Iterator[bytes]:
    """A blob that is not compressed."""
    while piece := read(CHUNK):
        yield bytes(piece)


def gzip(read: Read) -> Iterator[bytes]:
    """All members of a gzip blob.

    :raise Malformed: it is not gzip, damaged, cut off, or followed by something else.
    """
    rest: bytes | memoryview = read(_INPUT)
    while rest:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        try:
            chunk = member.decompress(rest, CHUNK)
            while True:
                if chunk:
                    yield chunk
                if member.eof:
                    break
                if not member.needs_input:
                    chunk = member.decompress(b"", CHUNK)
                elif piece := read(_INPUT):
                    chunk = member.decompress(piece, CHUNK)
                else:
                    raise Malformed("the gzip stream is cut off")
        except (igzip_lib.error, EOFError, ValueError) as error:  # type: ignore[misc]
            raise Malformed(f"not a sound gzip stream: {error}") from error
        rest = member.unused_data or read(_INPUT)
    # An empty blob gives an empty archive, as it does to gzip.


def zstd(read: Read) -> Iterator[bytes]:
    """All frames of a zstd blob.  :raise Malformed: as for :func:`gzip`."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    rest: bytes | memoryview = b""
    at = 0
    frame = None
    gathered: list[bytes] = []
    size = 0
    while True:
        if at >= len(rest):
            rest, at = bytes(read(_INPUT)), 0
            if not rest:
                break
        piece = rest[at : at + _ZSTD_INPUT]
        at += len(piece)
        if frame is None:
            frame = decompressor.decompressobj()
        try:
            chunk = frame.decompress(piece)
        except zstandard.ZstdError as error:
            raise Malformed(f"not a sound zstd stream: {error}") from error
        if frame.eof:
            at -= len(frame.unused_data)
            frame = None
        gathered.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield from _cut(b"".join(gathered))
            gathered, size = [], 0
    if frame is not None:
        raise Malformed("the zstd stream is cut off")
    yield from _cut(b"".join(gathered))


def _cut(data: bytes) -> Iterator[bytes]:
    """*data* in chunks of the usual size: those behind count chunks."""
    if len(data) <= 2 * CHUNK:
        yield data
        return
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


KINDS = {"none": plain, "gzip": gzip, "zstd": zstd}
