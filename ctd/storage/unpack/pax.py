"""Extended headers of tar (POSIX.1-2001 pax), and what GNU tar puts there for sparse files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctd.storage.unpack.faults import Budget, Malformed, TooLarge

if TYPE_CHECKING:
    from ctd.storage.unpack.tar import Bytes, Entry

#: By keyword.  An empty value takes back what the header or an earlier record says.
Records = dict[bytes, bytes]

XATTR = b"SCHILY.xattr."
_OFFSET, _LENGTH = b"GNU.sparse.offset", b"GNU.sparse.numbytes"
_MAP = b"GNU.sparse.map"


def parse_records(data: bytes, before: Records) -> Records:
    """The records of one extended header: ``LENGTH KEYWORD=VALUE\\n`` each.

    The repeated offsets and lengths of a sparse map (version 0.0) become one
    ``GNU.sparse.map`` as version 0.1 has it.  *before* is what an earlier header
    for the same entry said.

    :raise Malformed: they are not of that form.
    """
    records: Records = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else -1
        record = data[space + 1 : end]
        key, equals, value = record.partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals or not key or b"\0" in key:
            raise Malformed("a bad record in an extended header")
        value = value[:-1]
        if key in (_OFFSET, _LENGTH):
            if (key == _OFFSET) != (len(pairs) % 2 == 0):
                raise Malformed("a sparse map out of order")
            pairs.append(value)
        else:
            records[key] = value
        at = end
    if pairs:
        records[_MAP] = b",".join([before[_MAP], *pairs] if _MAP in before else pairs)
    return records


def decimal(text: bytes) -> int:
    """A whole number without sign.  :raise ValueError: it is none."""
    if not text.isdigit() or len(text) > 20:
        raise ValueError(text[:40])
    return int(text)


def nanoseconds(text: bytes) -> int:
    """A time in seconds, perhaps negative or with a fraction, exactly.  :raise ValueError: none."""
    negative = text.startswith(b"-")
    whole, _, fraction = text[negative:].partition(b".")
    if not (whole or fraction) or (fraction and not fraction.isdigit()):
        raise ValueError(text[:40])
    value = decimal(whole or b"0") * 1_000_000_000 + int((fraction[:9] or b"0").ljust(9, b"0"))
    return -value if negative else value


def apply_standard(entry: Entry, records: Records, limit: int) -> None:
    """Let *records* say what they say of names, size, owner, time and attributes.

    :param limit: the most bytes of attributes.
    """
    total = 0
    for key, value in records.items():
        if key.startswith(XATTR):
            # The value may be empty: an attribute without one, not one taken back.
            total += len(key) + len(value)
            entry.xattrs[key[len(XATTR) :]] = value
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = decimal(value)
        elif key == b"uid":
            entry.uid = decimal(value)
        elif key == b"gid":
            entry.gid = decimal(value)
        elif key == b"mtime":
            entry.mtime = nanoseconds(value)
    if total > limit:
        raise TooLarge("xattrs", limit)


def apply_sparse(entry: Entry, records: Records, stream: Bytes, budget: Budget) -> int:
    """Make *entry* sparse if *records* say so; gives how many bytes of its data held the map."""
    used = 0
    if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
        entry.length = decimal(records.get(b"GNU.sparse.realsize", b""))
        entry.sparse, used = _map_in_data(stream, entry.size, budget)
    elif _MAP in records:
        entry.length = decimal(
            records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize", b"")
        )
        numbers = [decimal(n) for n in records[_MAP].split(b",")] if records[_MAP] else []
        if len(numbers) % 2:
            raise Malformed("a sparse map out of order")
        entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
    elif b"GNU.sparse.major" in records:
        raise Malformed("a sparse file of an unknown version")
    else:
        return 0
    if name := records.get(b"GNU.sparse.name"):
        entry.name = name
    check_map(entry, entry.size - used)
    return used


def _map_in_data(stream: Bytes, size: int, budget: Budget) -> tuple[list[tuple[int, int]], int]:
    """Version 1.0: lines of decimal numbers in whole blocks before the data."""
    text = bytearray()
    numbers: list[int] = []
    wanted = 1
    at = 0
    while len(numbers) < wanted:
        end = text.find(b"\n", at)
        if end < 0:
            if len(text) + 512 > size:
                raise Malformed("a sparse map that is cut off")
            if len(text) > budget.extended:
                raise TooLarge("extended", budget.extended)
            text += stream.take(512)
            continue
        numbers.append(decimal(bytes(text[at:end])))
        at = end + 1
        if len(numbers) == 1:
            wanted = 1 + 2 * numbers[0]
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), len(text)


def check_map(entry: Entry, size: int) -> None:
    """Check that a sparse map is in order, inside the file, and has *size* bytes of data."""
    end = total = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0:
            raise Malformed("a sparse map out of order")
        end = offset + length
        total += length
    if end > entry.length or total != size:
        raise Malformed("a sparse map that does not fit its file")
