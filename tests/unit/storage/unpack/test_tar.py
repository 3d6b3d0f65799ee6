"""Reading archives: what tarfile and GNU tar write, however the bytes come; and what is refused."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.storage.unpack import tar
from ctd.storage.unpack.faults import Budget, Malformed, TooLarge
from ctd.storage.unpack.pax import nanoseconds, parse_records
from tests.unit.storage.unpack.archives import Member, directory, hard_link, pack, symlink

BUDGET = Budget()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, size: int = 1 << 16, budget: Budget = BUDGET) -> list[tuple[Any, bytes]]:
    """All members and their data, the bytes coming *size* at a time."""
    stream = tar.Bytes(pieces(data, size), budget.bytes)
    reader = tar.Reader(stream, budget)
    found = [(entry, b"".join(reader.body())) for entry in reader]
    stream.drain()
    assert stream.count == len(data)
    return found


def block(name: bytes, kind: bytes = b"0", size: bytes = b"00000000000\0", **fields: Any) -> bytes:
    """A header made by hand; ``fields`` are ``at_N=bytes``."""
    header = bytearray(512)
    header[0 : len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = size
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    for field, value in fields.items():
        at = int(field.removeprefix("at_"))
        header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


END = bytes(1024)

names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]),
    min_size=1,
    max_size=60,
).filter(lambda n: n not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=6).map("/".join)
members = st.builds(
    Member,
    name=paths,
    data=st.binary(max_size=1500),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, (1 << 32) - 2),
    gid=st.integers(0, (1 << 32) - 2),
    mtime=st.integers(-(1 << 31), 1 << 40),
)


class ReadingTests(SynchronousTestCase):
    """Archives that are sound."""

    @given(
        st.lists(members, max_size=6),
        st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
        st.sampled_from([1, 7, 511, 512, 513, 4096, 1 << 20]),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_what_tarfile_writes(self, made: list[Member], format: int, size: int) -> None:
        """Names, numbers, times and data come out as they went in, however the bytes are split."""
        found = read(pack(made, format), size)
        self.assertEqual(len(found), len(made))
        for member, (entry, data) in zip(made, found, strict=True):
            self.assertEqual(entry.name, member.name.encode())
            self.assertEqual(data, member.data)
            self.assertEqual(
                (entry.mode, entry.uid, entry.gid), (member.mode, member.uid, member.gid)
            )
            self.assertEqual(entry.mtime, member.mtime * 10**9)

    def test_types(self) -> None:
        """Each type comes out with its link or device."""
        made = [
            directory("d"),
            symlink("s", "x" * 300),
            hard_link("h", "y" * 300),
            Member("c", type=tarfile.CHRTYPE, device=(1, 3)),
            Member("b", type=tarfile.BLKTYPE, device=(8, 1)),
            Member("f", type=tarfile.FIFOTYPE),
        ]
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
            found = [entry for entry, _ in read(pack(made, format))]
            self.assertEqual("".join(e.type for e in found), "521346")
            self.assertEqual(found[1].link, b"x" * 300)
            self.assertEqual(found[2].link, b"y" * 300)
            self.assertEqual((found[3].major, found[3].minor), (1, 3))

    def test_ustar_prefix(self) -> None:
        """A ustar prefix is the front of the name."""
        made = Member("p" * 90 + "/" + "n" * 90)
        [(entry, _)] = read(pack([made], tarfile.USTAR_FORMAT))
        self.assertEqual(entry.name, made.name.encode())

    def test_fractions_and_attributes(self) -> None:
        """Fractions of a second and attributes come from extended headers, exactly."""
        made = Member("a", pax={"mtime": "1.123456789", "SCHILY.xattr.user.x": "v"})
        [(entry, _)] = read(pack([made]))
        self.assertEqual(entry.mtime, 1_123_456_789)
        self.assertEqual(entry.xattrs, {b"user.x": b"v"})
        self.assertEqual(nanoseconds(b"-1.5"), -1_500_000_000)

    def test_global_headers(self) -> None:
        """A global header holds for all after it, a local one before it, and an empty value not."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", pax_headers={"uid": "7", "comment": "x"}) as it:
            it.addfile(tarfile.TarInfo("a"))
            other = tarfile.TarInfo("b")
            other.pax_headers = {"uid": "8"}
            it.addfile(other)
        self.assertEqual([e.uid for e, _ in read(out.getvalue())], [7, 8])

    def test_without_an_end(self) -> None:
        """An archive may end without blocks of zeros, or have anything after them."""
        whole = pack([Member("a", b"x" * 512)])
        self.assertEqual(len(read(whole[:1024])), 1)
        self.assertEqual(len(read(whole + b"anything" * 100)), 1)

    def test_old_directories(self) -> None:
        """A name with a slash at its end is a directory's, whatever its type says."""
        [(entry, _)] = read(block(b"d/", b"\0") + END)
        self.assertEqual(entry.type, tar.DIRECTORY)

    def test_links_have_no_data(self) -> None:
        """What follows a link is the next header, whatever its size says."""
        data = block(b"l", b"1", b"00000001000\0", at_157=b"t") + block(b"next") + END
        self.assertEqual([e.name for e, _ in read(data)], [b"l", b"next"])

    def test_signed_checksums(self) -> None:
        """A checksum of signed bytes, as some old programs wrote it, is right too."""
        made = bytearray(block(b"\xe4\xe4"))
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % (sum(made) - 512)
        self.assertEqual(len(read(bytes(made) + END)), 1)


class SparseTests(SynchronousTestCase):
    """Sparse files as GNU tar writes them."""

    def test_all_versions(self) -> None:
        """The four formats give the same map, with data only where there was some."""
        root = Path(self.mktemp())
        root.mkdir()
        with (root / "file").open("wb") as file:
            for n in range(60):
                os.pwrite(file.fileno(), bytes([n + 1]) * 4096, n << 20)
            os.truncate(file.fileno(), 100 << 20)
        content = (root / "file").read_bytes()
        for options in (
            ["--format=gnu"],
            ["--format=posix", "--sparse-version=0.0"],
            ["--format=posix", "--sparse-version=0.1"],
            ["--format=posix", "--sparse-version=1.0"],
        ):
            command = ["tar", "-C", str(root), "--sparse", *options, "-cf", "-", "file"]
            made = subprocess.run(command, capture_output=True, check=True).stdout
            self.assertLess(len(made), 1 << 20)
            for size in (100, 1 << 16):
                [(entry, data)] = read(made, size)
                self.assertEqual(entry.name, b"file")
                self.assertEqual(entry.length, 100 << 20)
                whole, at = bytearray(entry.length), 0
                for offset, length in entry.sparse:
                    whole[offset : offset + length] = data[at : at + length]
                    at += length
                self.assertEqual(bytes(whole), content)

    def test_lies(self) -> None:
        """A map out of order, outside its file, or of another size is refused."""
        for records in (
            {"GNU.sparse.map": "0,5,3,5", "GNU.sparse.size": "100"},
            {"GNU.sparse.map": "0,5,98,5", "GNU.sparse.size": "100"},
            {"GNU.sparse.map": "0,5", "GNU.sparse.size": "100"},
            {"GNU.sparse.map": "0,5,5", "GNU.sparse.size": "100"},
            {"GNU.sparse.map": "0,-5", "GNU.sparse.size": "100"},
            {"GNU.sparse.map": "0,10"},
            {"GNU.sparse.major": "2", "GNU.sparse.minor": "0"},
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
        ):
            with self.assertRaises(Malformed):
                read(pack([Member("f", b"x" * 10, pax=records)]))


class RefusingTests(SynchronousTestCase):
    """Archives that are not sound."""

    def refused(self, data: bytes, error: type[Exception] = Malformed, **budget: int) -> Any:
        for size in (1, 700, 1 << 16):
            with self.assertRaises(error) as caught:
                read(data, size, Budget(**budget))
        return caught.exception

    def test_cut_off(self) -> None:
        """An archive cut off in a header or in data is refused, wherever it is cut."""
        whole = pack([Member("a", b"x" * 1000), Member("n" * 200, b"y" * 600)])[:-8192]
        sizes = {len(whole[:n]) for n in range(1, 4000, 97)}
        for n in sizes:
            try:
                found = read(whole[:n])
            except Malformed:
                continue
            self.assertIn(n % 512, range(512))
            self.assertLess(len(found), 3)
        self.refused(whole[:100])
        self.refused(whole[:1000])

    def test_checksum(self) -> None:
        """One wrong byte in a header is found."""
        made = bytearray(pack([Member("a")]))
        made[3] ^= 1
        self.refused(bytes(made))
        self.refused(b"\x1f\x8b" + os.urandom(2000))

    def test_numbers(self) -> None:
        """A number that is none, or a negative size, is refused."""
        self.refused(block(b"a", size=b"0000000000x\0") + END)
        self.refused(block(b"a", size=b"00000000-01\0") + END)
        self.refused(block(b"a", size=b"0_0000_0001\0") + END)
        self.refused(block(b"a", size=b"\xff" * 12) + END)

    def test_sizes_that_lie(self) -> None:
        """A size beyond the archive's end is refused."""
        self.refused(block(b"a", size=b"77777777777\0") + END)
        self.refused(block(b"a", size=b"\x80" + b"\x7f" * 11) + END, TooLarge)

    def test_records(self) -> None:
        """Extended records that are not of their form are refused."""
        for data in (
            b"5 a=b\n",
            b"7 a=b\n",
            b"x a=b\n",
            b"6 a=bc",
            b"6 =abc\n",
            b"-6 a=b\n",
            b"0 a=b\n",
        ):
            with self.assertRaises(Malformed):
                parse_records(data, {})
        self.assertEqual(
            parse_records(b"6 a=b\n6 c=\n\n", {}), {b"a": b"b", b"c": b"\n"[:0] + b"\n"}
        )

    def test_nul_in_a_name(self) -> None:
        """A name or link with a NUL in it is refused, with the entry's name."""
        error = self.refused(pack([Member("a", pax={"path": "x\0y"})]))
        self.assertEqual(error.entry, b"x\0y")
        self.refused(pack([Member("a", type=tarfile.SYMTYPE, pax={"linkpath": "x\0y"})]))

    def test_unknown_type(self) -> None:
        """An entry of a type that is not known is refused rather than taken for a file."""
        for kind in (b"M", b"V", b"D", b"Z", b"9"):
            self.refused(block(b"a", kind) + END)

    def test_budgets(self) -> None:
        """Too many bytes, headers or bytes of an extended header are too large."""
        many = pack([Member(f"{n}") for n in range(50)])
        self.assertEqual(self.refused(many, TooLarge, entries=40).budget, "entries")
        big = pack([Member("a", b"x" * 50_000)])
        self.assertEqual(self.refused(big, TooLarge, bytes=40_000).budget, "bytes")
        wide = pack([Member("a" * 9000)])
        self.assertEqual(self.refused(wide, TooLarge, extended=8000).budget, "extended")
        rich = pack([Member("a", pax={"SCHILY.xattr.user.x": "v" * 9000})])
        self.assertEqual(self.refused(rich, TooLarge, xattrs=8000).budget, "xattrs")
        chained = block(b"h", b"x") * 100 + block(b"a") + END
        self.assertEqual(self.refused(chained, TooLarge, entries=40).budget, "entries")

    def test_headers_add_up(self) -> None:
        """Extended headers of one entry, and global ones, are bounded together too."""

        def extended(kind: bytes, number: int) -> bytes:
            key = b"SCHILY.xattr.user.%06d=" % number
            record = b"%d " % (900 + len(key) + 5) + key
            data = (record + b"v" * (900 + len(key) + 5 - len(record) - 1) + b"\n").ljust(
                1024, b"\0"
            )
            data = data.rstrip(b"\0")
            size = b"%011o\0" % len(data)
            return block(b"h", kind, size) + data + bytes(-len(data) % 512)

        for kind in (b"x", b"g"):
            archive = b"".join(extended(kind, n) for n in range(20)) + block(b"a") + END
            self.assertEqual(len(read(archive)), 1)
            self.assertEqual(self.refused(archive, TooLarge, extended=8000).budget, "extended")

    def test_sparse_size(self) -> None:
        """A sparse file counts with the size it pretends to have."""
        made = pack([Member("f", pax={"GNU.sparse.map": "", "GNU.sparse.size": str(1 << 50)})])
        self.assertEqual(self.refused(made, TooLarge).budget, "bytes")

    def test_lone_header(self) -> None:
        """A lone extended header, or entries after one block of zeros, are refused."""
        self.refused(block(b"h", b"x") + END)
        self.refused(block(b"a") + bytes(512) + block(b"b") + END)

    @given(st.binary(max_size=3000))
    @settings(max_examples=100, deadline=None)
    def test_noise(self, noise: bytes) -> None:
        """Noise is refused or empty; nothing else happens."""
        try:
            read(noise, 300)
        except (Malformed, TooLarge):
            pass

    @given(st.integers(0, 511), st.integers(0, 255))
    @settings(max_examples=200, deadline=None)
    def test_headers_of_noise(self, at: int, value: int) -> None:
        """A header with any byte changed and the checksum right is read or refused."""
        made = bytearray(block(b"name", size=b"00000000003\0"))
        made[at] = value
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made)
        try:
            read(bytes(made) + b"abc" + bytes(509) + END)
        except (Malformed, TooLarge):
            pass
