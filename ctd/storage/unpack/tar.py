"""Reading tar archives from a stream: headers by hand, everything bounded and checked.

Formats: v7, ustar (POSIX.1-1988), pax with global headers (POSIX.1-2001), GNU
long names, base-256 numbers and all four ways of GNU sparse files
(https://www.gnu.org/software/tar/manual/html_node/Tar-Internals.html).
Archives are hostile: what is not understood is :class:`Malformed`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from zlib import adler32

from ctd.storage.unpack.faults import Budget, Malformed, TooLarge
from ctd.storage.unpack.pax import Records, apply_sparse, apply_standard, check_map, parse_records

BLOCK = 512
REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = "0123456"

_ZERO = bytes(BLOCK)
_LAST_TIME = (1 << 62) * 1_000_000_000  # what fits into a time_t
# name mode uid gid size mtime checksum type link magic owner group major minor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_PLAIN = {b"0", b"\0", b"7"}
_TYPES = {b"1", b"2", b"3", b"4", b"5", b"6"}


class Bytes:
    """A stream of chunks, read in pieces of other sizes.  :ivar count: bytes taken so far."""

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks = chunks
        self._view = memoryview(b"")
        self._at = 0
        self._limit = limit
        self._ended = 0  # bytes in chunks that are used up

    @property
    def count(self) -> int:
        """Bytes taken so far."""
        return self._ended + self._at

    def _more(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._ended += len(self._view)
                self._view, self._at = memoryview(chunk), 0
                if self._ended + len(chunk) > self._limit:
                    raise TooLarge("bytes", self._limit)
                return True
        return False

    def block(self) -> bytes | memoryview | None:
        """The next 512 bytes, or None at the end.  :raise Malformed: it is cut off inside them."""
        at = self._at
        if at + BLOCK <= len(self._view):
            self._at = at + BLOCK
            return self._view[at : at + BLOCK]
        if at == len(self._view) and not self._more():
            return None
        return self.take(BLOCK)

    def take(self, size: int) -> bytes:
        """The next *size* bytes.  :raise Malformed: there are not as many."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next *size* bytes, piece by piece.  :raise Malformed: there are not as many."""
        while size:
            left = len(self._view) - self._at
            if not left:
                if not self._more():
                    raise Malformed("the archive is cut off")
                continue
            at, use = self._at, min(left, size)
            self._at += use
            size -= use
            yield self._view[at : at + use]

    def skip(self, size: int) -> None:
        """Pass over *size* bytes.  :raise Malformed: there are not as many."""
        for _ in self.pieces(size):
            pass

    def skip_padding(self, size: int) -> None:
        """Pass over *size* bytes, or fewer if the archive ends: umoci's and Go's may lack them."""
        while size and (self._at < len(self._view) or self._more()):
            use = min(len(self._view) - self._at, size)
            self._at += use
            size -= use

    def drain(self) -> None:
        """Pass over all that is left."""
        self._at = len(self._view)
        while self._more():
            self._at = len(self._view)


class Entry:
    """One member.

    :ivar type: :data:`REGULAR` and so on.
    :ivar name: as it is in the archive.
    :ivar size: bytes that follow the header.
    :ivar mtime: in nanoseconds.
    :ivar sparse: where those bytes belong, as (offset, length), or None.
    :ivar length: the file's size.
    """

    __slots__ = (
        "gid", "length", "link", "major", "minor", "mode", "mtime",
        "name", "size", "sparse", "type", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self) -> None:
        self.type = REGULAR
        self.name = self.link = b""
        self.mode = self.uid = self.gid = self.size = self.mtime = self.length = 0
        self.major = self.minor = 0
        self.sparse: list[tuple[int, int]] | None = None
        self.xattrs: dict[bytes, bytes] = {}


def number(field: bytes) -> int:
    """A number field: octal, or base-256 with the high bit set.  :raise ValueError: neither."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True)
        bits = len(field) * 8
        return value if field[0] & 0x40 else value + (1 << (bits - 1))
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError(field)
    return int(digits, 8)


#: For fields that are much the same in all members.
_same = lru_cache(256)(number)


def _checksum_is_right(block: bytes | memoryview, stored: int, field: bytes) -> bool:
    # adler32's low half is 1 + the sum of the bytes, modulo 65521: exact for 256 bytes.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    total += 8 * 32 - sum(field)
    if total == stored:
        return True
    high = sum(b > 127 for b in bytes(block)) - sum(b > 127 for b in field)
    return total - 256 * high == stored  # as some old tars did: signed bytes


class Reader:
    """The members of an archive, in order.

    :ivar headers: how many have been read, extended ones too.
    """

    def __init__(self, stream: Bytes, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget
        self._left = 0  # of the current member's data
        self._padding = 0
        self._globals: Records = {}
        self.headers = 0

    def __iter__(self) -> Iterator[Entry]:
        """Each member; its :meth:`body` is to be read before the next, or is passed over.

        :raise Malformed: this is no archive, or it is cut off.
        :raise TooLarge: over a budget.
        """
        records: Records = {}
        long_name = long_link = None
        pending = False
        while (block := self._next_header()) is not None:
            entry, kind, prefix_name = self._parse(block)
            pending = kind in b"xLK"
            if kind == b"x":
                records |= self._records(entry, records)
                continue
            if kind == b"g":
                self._globals |= self._records(entry, self._globals)
                self._globals = {k: v for k, v in self._globals.items() if v}
                continue
            if kind == b"L":
                long_name = self._long(entry)
                continue
            if kind == b"K":
                long_link = self._long(entry)
                continue
            entry.name = prefix_name if long_name is None else long_name
            if long_link is not None:
                entry.link = long_link
            try:
                self._complete(entry, kind, block, records)
            except ValueError as error:
                raise Malformed(f"bad field in its header: {error}", entry.name) from error
            except Malformed as error:
                error.entry = error.entry or entry.name
                raise
            if b"\0" in entry.name or b"\0" in entry.link:
                raise Malformed("a name with a NUL in it", entry.name)
            records, long_name, long_link = {}, None, None
            yield entry
        if pending:
            raise Malformed("an extended header without an entry")

    def body(self) -> Iterator[memoryview]:
        """The data of the current member; what is not read of it is passed over."""
        for piece in self._stream.pieces(self._left):
            self._left -= len(piece)
            yield piece

    def _next_header(self) -> bytes | memoryview | None:
        if self._left or self._padding:
            self._stream.skip(self._left)
            self._stream.skip_padding(self._padding)
            self._left = self._padding = 0
        block = self._stream.block()
        if block is None:
            return None
        self.headers += 1
        if self.headers > self._budget.entries:
            raise TooLarge("entries", self._budget.entries)
        if block[0] == 0 and block == _ZERO:
            block = self._stream.block()
            if block is not None and block != _ZERO:
                raise Malformed("one block of zeros and then more entries")
            return None
        return block

    def _parse(self, block: bytes | memoryview) -> tuple[Entry, bytes, bytes]:
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix) = (
            _HEADER.unpack(block)
        )
        entry = Entry()
        name = name.partition(b"\0")[0]
        try:
            if not _checksum_is_right(block, number(checksum), checksum):
                raise Malformed("a header's checksum is wrong: damaged, or no tar", name)
            entry.mode = _same(mode) & 0o7777
            entry.uid = _same(uid)
            entry.gid = _same(gid)
            entry.size = number(size)
            entry.mtime = number(mtime) * 1_000_000_000
            if kind in b"34":
                entry.major = number(major)
                entry.minor = number(minor)
        except ValueError as error:
            raise Malformed(f"bad number in a header: {error}", name) from error
        if magic[:6] == b"ustar\0":
            prefix = prefix.partition(b"\0")[0]
            if prefix:
                name = prefix + b"/" + name
        entry.link = link.partition(b"\0")[0]
        self._expect(entry.size, name)
        return entry, kind, name

    def _expect(self, size: int, name: bytes) -> None:
        if size < 0:
            raise Malformed("a negative size", name)
        self._left, self._padding = size, -size % BLOCK

    def _extended(self, entry: Entry, limit: int) -> bytes:
        if entry.size > limit:
            raise TooLarge("extended", limit)
        self._left = 0
        return self._stream.take(entry.size)

    def _long(self, entry: Entry) -> bytes:
        return self._extended(entry, self._budget.path + 1).partition(b"\0")[0]

    def _records(self, entry: Entry, before: Records) -> Records:
        # One header is bounded, and so are all of one entry's together, and all global ones.
        limit = self._budget.extended
        records = parse_records(self._extended(entry, limit), before)
        size = sum(len(k) + len(v) for k, v in before.items() if k not in records)
        if size + sum(len(k) + len(v) for k, v in records.items()) > limit:
            raise TooLarge("extended", limit)
        return records

    def _complete(
        self, entry: Entry, kind: bytes, block: bytes | memoryview, records: Records
    ) -> None:
        """Put together what header and records say."""
        if records or self._globals:
            records = {**self._globals, **records}
            apply_standard(entry, records, self._budget.xattrs)
        if kind in _PLAIN:
            entry.type = DIRECTORY if entry.name.endswith(b"/") and kind != b"7" else REGULAR
        elif kind in _TYPES:
            entry.type = kind.decode("ascii")
        elif kind == b"S":
            entry.type = REGULAR
        else:
            raise Malformed(f"an entry of the unknown type {kind!r}")
        if entry.type in (HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, FIFO):
            entry.size = 0  # whatever the header says: nothing follows
        if entry.uid < 0 or entry.gid < 0 or max(entry.uid, entry.gid) >= (1 << 32) - 1:
            raise Malformed("an owner that is no number of a user")
        if not -_LAST_TIME < entry.mtime < _LAST_TIME:
            entry.mtime = 0
        self._expect(entry.size, entry.name)
        entry.length = entry.size
        if kind == b"S":
            self._old_sparse(entry, bytes(block))
        elif records and entry.type == REGULAR:
            used = apply_sparse(entry, records, self._stream, self._budget)
            self._left -= used
        if entry.length > self._budget.bytes:
            raise TooLarge("bytes", self._budget.bytes)

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """The map in a GNU header of type S, and in the blocks after it."""
        entry.sparse = []
        entry.length = number(block[483:495])
        place, count, more = 386, 4, block[482]
        while True:
            for at in range(place, place + 24 * count, 24):
                if not block[at]:
                    break
                entry.sparse.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
            if not more:
                break
            block = self._stream.take(BLOCK)
            self.headers += 1
            if self.headers > self._budget.entries or len(entry.sparse) > self._budget.extended:
                raise TooLarge("entries", self._budget.entries)
            place, count, more = 0, 21, block[504]
        check_map(entry, entry.size)
