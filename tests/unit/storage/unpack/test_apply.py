"""Entries applied to real directories: what they make, and what is refused."""

from __future__ import annotations

import os
import struct
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.storage.trees import cursor, remove_tree
from ctd.storage.unpack import tar
from ctd.storage.unpack.apply import Applier
from ctd.storage.unpack.faults import Budget, Malformed, NeedsParent, TooLarge
from ctd.storage.unpack.places import APART, FULL, NOTHING
from tests.unit.storage.unpack.archives import (
    Member,
    directory,
    hard_link,
    opaque,
    pack,
    symlink,
    whiteout,
)
from tests.unit.storage.unpack.listing import listing

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0).decode("latin-1")


def xattr(name: str, value: str) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value}


class ApplyTestCase(SynchronousTestCase):
    """With a directory that is a root, beside one that nothing may touch."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.addCleanup(remove_tree, self.top)
        self.fresh()
        self.addCleanup(os.umask, os.umask(0))
        self.fds = len(os.listdir("/proc/self/fd"))

    def fresh(self) -> None:
        """Begin with nothing."""
        remove_tree(self.top)
        (self.top / "root").mkdir(parents=True, mode=0o755)
        (self.top / "outside").mkdir(mode=0o700)
        (self.top / "outside" / "secret").write_text("secret")
        self.root = self.top / "root"
        self.outside = listing(str(self.top / "outside"))

    def apply(
        self, *members: Member, below: str = NOTHING, look: bool = True, **budget: int
    ) -> dict[str, Any]:
        """Apply *members* and give what is there then; nothing outside is touched."""
        limits = Budget(**budget)
        fd = os.open(self.root, os.O_RDONLY)
        here = os.open(".", os.O_RDONLY)
        applier = Applier(fd, below, limits)
        try:
            reader = tar.Reader(tar.Bytes(iter([pack(members)]), limits.bytes), limits)
            for entry in reader:
                applier.apply(entry, reader.body())
            applier.finish()
        finally:
            for known in applier.places.root.walk():
                if known.fd >= 0:
                    os.close(known.fd)
            os.fchdir(here)
            os.close(here)
            self.assertEqual(listing(str(self.top / "outside")), self.outside)
            self.assertEqual(sorted(os.listdir(self.top)), ["outside", "root"])
        return listing(str(self.root)) if look else {}

    def refused(self, *members: Member, below: str = NOTHING, **budget: int) -> Malformed:
        with self.assertRaises(Malformed) as caught:
            self.apply(*members, below=below, **budget)
        return caught.exception


class MakingTests(ApplyTestCase):
    """What entries make."""

    def test_metadata(self) -> None:
        """Owner, special modes and times are as the entry says, a directory's too."""
        seen = self.apply(
            directory("d", 0o3770, uid=3, gid=4, mtime=5),
            Member("d/f", b"x", mode=0o6755, uid=1, gid=2, pax={"mtime": "3.25"}),
            Member("d/g", b"x", mode=0o666),
            symlink("d/s", "f"),
        )
        self.assertEqual(seen["d"], {"mode": "0o43770", "owner": (3, 4), "mtime": 5 * 10**9})
        self.assertEqual(seen["d/f"]["mode"], "0o106755")
        self.assertEqual(seen["d/f"]["owner"], (1, 2))
        self.assertEqual(seen["d/f"]["mtime"], 3_250_000_000)
        self.assertEqual(seen["d/g"]["mode"], "0o100666")
        self.assertEqual(seen["d/g"]["owner"], (0, 0))
        self.assertEqual(seen["d/s"]["mtime"], 10**18)

    def test_root(self) -> None:
        """An entry for the root gives it its metadata."""
        for name in ("./", ".", "/", "a/.."):
            self.assertEqual(self.apply(directory(name, 0o555, uid=3))["."]["mode"], "0o40555")
        self.refused(Member("./", b"", type=tarfile.SYMTYPE, link="x"))

    def test_parents(self) -> None:
        """Directories without an entry are made, with root as owner and mode 0755."""
        seen = self.apply(Member("a/b/c", b"x"))
        self.assertEqual((seen["a/b"]["mode"], seen["a/b"]["owner"]), ("0o40755", (0, 0)))

    def test_late_directories(self) -> None:
        """A directory's entry may come after what is in it, and again."""
        seen = self.apply(
            Member("a/b", b"x"), directory("a", 0o700), directory("a", 0o711, mtime=9)
        )
        self.assertEqual((seen["a"]["mode"], seen["a"]["mtime"]), ("0o40711", 9 * 10**9))
        self.assertIn("a/b", seen)

    def test_ways_to_write_a_name(self) -> None:
        """Slashes and dots more or less name the same file."""
        for name in ("a/b", "./a/b", "/a/b", "a//b", "a/./b", "a/x/../b", "x/../a/b"):
            self.fresh()
            self.assertEqual(set(self.apply(Member(name, b"x"))), {".", "a", "a/b"})

    def test_replacing(self) -> None:
        """An entry replaces what it finds, whatever that is, and never writes through it."""
        every = {
            "file": Member("x", b"new"),
            "directory": directory("x", 0o711),
            "symlink": symlink("x", "y"),
            "fifo": Member("x", type=tarfile.FIFOTYPE),
            "device": Member("x", type=tarfile.CHRTYPE, device=(1, 3)),
            "link": hard_link("x", "other"),
        }
        other = Member("other", b"other")
        for first in every.values():
            for name, second in every.items():
                self.fresh()
                alone = self.apply(other, second)
                self.fresh()
                seen = self.apply(other, first, second)
                for one in (alone, seen):
                    one["."]["mtime"] = 0
                self.assertEqual(seen, alone, name)

    def test_replacing_a_tree(self) -> None:
        """A file replaces a directory with all that is in it, and a directory that file again."""
        seen = self.apply(
            directory("x"),
            Member("x/y/z/w", b"1"),
            Member("x", b"2"),
            Member("x2", b"3"),
        )
        self.assertEqual(set(seen), {".", "x", "x2"})
        seen = self.apply(directory("x"), Member("x/n", b"4"))
        self.assertEqual(set(seen), {".", "x", "x/n", "x2"})

    def test_replaced_link_stays_whole(self) -> None:
        """Replacing one of two hard links leaves the other as it was."""
        seen = self.apply(Member("a", b"old"), hard_link("b", "a"), Member("b", b"new"))
        self.assertNotEqual(seen["a"]["data"], seen["b"]["data"])
        self.assertEqual((self.root / "a").read_bytes(), b"old")

    def test_links_on_the_way(self) -> None:
        """Symbolic links on the way are followed as a process in that root would."""
        for target in ("real/deep", "/real/deep", "../../../real/deep", "./real/../real/deep"):
            self.fresh()
            seen = self.apply(directory("real"), symlink("l", target), Member("l/f", b"x"))
            self.assertIn("real/deep/f", seen)
            self.assertEqual(seen["l"]["link"], target.encode())

    def test_a_link_replaced(self) -> None:
        """What was found through a link is not found there when the link is another one."""
        seen = self.apply(
            symlink("l", "one"),
            Member("l/f", b"1"),
            symlink("l", "two"),
            Member("l/g", b"2"),
        )
        self.assertIn("one/f", seen)
        self.assertIn("two/g", seen)

    def test_hard_links(self) -> None:
        """Links to files and to symbolic links are links; to itself nothing happens."""
        seen = self.apply(
            Member("d/a", b"x"),
            hard_link("b", "./d/a"),
            hard_link("/c", "/d/a"),
            hard_link("d/a", "d/a"),
            symlink("s", "d/a"),
            hard_link("t", "s"),
        )
        self.assertEqual({seen[n]["same"] for n in ("d/a", "b", "c")}, {"b"})
        self.assertEqual(seen["t"]["link"], b"d/a")

    def test_sparse(self) -> None:
        """A sparse file has its size and holes."""
        records = {"GNU.sparse.map": "1048576,3", "GNU.sparse.size": str(64 << 20)}
        seen = self.apply(Member("f", b"abc", pax=records))
        self.assertEqual(seen["f"]["size"], 64 << 20)
        self.assertLess(os.stat(self.root / "f").st_blocks, 1000)
        with (self.root / "f").open("rb") as file:
            self.assertEqual(os.pread(file.fileno(), 5, 1048575), b"\0abc\0")

    def test_attributes(self) -> None:
        """Capabilities and user attributes are set, on directories too."""
        seen = self.apply(
            Member("f", b"x", mode=0o755, uid=5, pax=xattr("security.capability", CAPABILITY)),
            Member("g", b"x", pax=xattr("user.a", "v")),
            directory("d", pax=xattr("user.b", "w")),
        )
        self.assertEqual(seen["f"]["xattrs"], {"security.capability": CAPABILITY.encode()})
        self.assertEqual(seen["g"]["xattrs"], {"user.a": b"v"})
        self.assertEqual(seen["d"]["xattrs"], {"user.b": b"w"})

    def test_attributes_that_cannot_be(self) -> None:
        """A user's attribute on what can have none is left out."""
        seen = self.apply(Member("f", type=tarfile.FIFOTYPE, pax=xattr("user.a", "v")))
        self.assertNotIn("xattrs", seen["f"])

    def test_many_directories(self) -> None:
        """More directories than there may be descriptors are no trouble."""
        made = [directory(f"d{n}/e") for n in range(400)]
        files = [Member(f"d{n}/e/f{m}", b"x") for m in range(2) for n in range(400)]
        self.assertEqual(len(self.apply(*made, *files)), 1 + 400 * 2 + 800)

    def test_deep(self) -> None:
        """A path may be longer than the kernel takes at once."""
        name = "/".join(["n" * 100] * 100)
        self.apply(Member(name + "/f", b"x"), hard_link(name + "/g", name + "/f"), look=False)
        with cursor(self.root) as at:
            for _ in range(100):
                at.down("n" * 100)
            self.assertEqual(sorted(os.listdir(at.fd)), ["f", "g"])
        with self.assertRaises(TooLarge):
            self.apply(Member("/".join(["n"] * 600), b"x"))


class HidingTests(ApplyTestCase):
    """Whiteouts, as an overlay's upper directory and in full view."""

    def below(self) -> None:
        self.apply(
            Member("d/old", b"1"),
            Member("d/sub/old", b"2"),
            Member("f", b"3"),
            directory("e", 0o700),
        )

    def names(self, *members: Member) -> set[str]:
        self.fresh()
        self.below()
        return set(self.apply(*members, below=FULL))

    ALL = {".", "d", "d/old", "d/sub", "d/sub/old", "f", "e"}

    def test_full_view(self) -> None:
        """A whiteout removes what lies below, and an opaque mark all in its directory."""
        self.assertEqual(self.names(whiteout("f")), self.ALL - {"f"})
        self.assertEqual(self.names(whiteout("d")), {".", "f", "e"})
        self.assertEqual(self.names(whiteout("d/sub/old")), self.ALL - {"d/sub/old"})
        self.assertEqual(self.names(opaque("d")), {".", "d", "f", "e"})
        self.assertEqual(self.names(whiteout("nothing")), self.ALL)
        self.assertEqual(self.names(Member(".wh..wh..opq")), {"."})

    def test_own_entries_stay(self) -> None:
        """Whiteouts hide nothing of their own layer, wherever they come."""
        new = Member("d/sub/new", b"n")
        for order in (
            [opaque("d"), new],
            [new, opaque("d")],
            [new, whiteout("d")],
            [whiteout("d"), new],
        ):
            self.assertEqual(self.names(*order), {".", "d", "d/sub", "d/sub/new", "f", "e"})
        for order in ([Member("f", b"n"), whiteout("f")], [whiteout("f"), Member("f", b"n")]):
            self.assertEqual(self.names(*order), self.ALL)
            self.assertEqual((self.root / "f").read_bytes(), b"n")

    def test_hidden_metadata(self) -> None:
        """A directory that was hidden and is needed again has nothing of the old one's."""
        self.fresh()
        self.below()
        seen = self.apply(whiteout("e"), Member("e/new", b"x"), below=FULL)
        self.assertEqual(seen["e"]["mode"], "0o40755")

    def test_apart(self) -> None:
        """Apart, a whiteout is a device 0:0, and an opaque directory is marked."""
        seen = self.apply(whiteout("f"), directory("d"), opaque("d"), below=APART)
        self.assertEqual((seen["f"]["mode"], seen["f"]["device"]), ("0o20000", 0))
        self.assertEqual(seen["d"]["xattrs"], {"trusted.overlay.opaque": b"y"})

    def test_apart_and_replaced(self) -> None:
        """Apart, a directory in the place of what hid the lower one is opaque."""
        for first in (whiteout("d"), Member("d", b"x"), symlink("d", "e")):
            self.fresh()
            seen = self.apply(first, directory("d"), below=APART)
            self.assertIn("xattrs", seen["d"])
        self.fresh()
        self.assertIn("xattrs", self.apply(directory("d"), whiteout("d"), below=APART)["d"])
        self.fresh()
        self.assertNotIn("xattrs", self.apply(directory("d"), directory("d"), below=APART)["d"])

    def test_apart_needs_the_parent(self) -> None:
        """Apart, links into what lies below and an opaque root need the parent."""
        for members in (
            [hard_link("a", "lower")],
            [symlink("l", "lower"), Member("l/f", b"x")],
            [Member(".wh..wh..opq")],
            [whiteout("f"), hard_link("a", "f")],
        ):
            self.fresh()
            with self.assertRaises(NeedsParent):
                self.apply(*members, below=APART)

    def test_first_layer(self) -> None:
        """In the first layer whiteouts hide nothing and leave nothing."""
        self.assertEqual(set(self.apply(whiteout("a/f"), opaque("b"), Member("c"))), {".", "c"})

    def test_aufs(self) -> None:
        """What aufs kept for itself is left out."""
        seen = self.apply(
            directory(".wh..wh.plnk"), Member(".wh..wh.plnk/1.2", b"x"), Member(".wh..wh.aufs")
        )
        self.assertEqual(set(seen), {"."})


class HostileTests(ApplyTestCase):
    """Entries that try to get out, or to be what they must not."""

    def test_names_that_lead_out(self) -> None:
        """A name that leads out of the root is refused, and so is a link's target."""
        for name in ("../x", "a/../../x", "/../x", "..", "a/b/../../../outside/secret"):
            self.assertIn("leads out", self.refused(Member(name, b"x")).reason)
            self.assertIn("leads out", self.refused(hard_link("l", name)).reason)

    def test_links_that_lead_out(self) -> None:
        """Links that point out of the root lead to places in it."""
        for target in (
            "../outside",
            "/",
            "../../../../..",
            str(self.top / "outside"),
            "/proc/self/cwd",
        ):
            self.fresh()
            self.apply(symlink("l", target), Member("l/secret", b"mine"))

    def test_hard_link_through_a_link(self) -> None:
        """A hard link to a file outside by way of a symbolic link finds nothing."""
        outside = str(self.top / "outside")
        self.refused(symlink("l", outside), hard_link("s", "l/secret"))
        seen = self.apply(
            symlink("l", "../outside/secret"), hard_link("s", "l"), Member("s", b"mine")
        )
        self.assertEqual(seen["l"]["link"], b"../outside/secret")

    def test_directory_turned_link(self) -> None:
        """A directory that becomes a link later does not let later entries through."""
        self.apply(
            directory("d"),
            Member("d/a", b"x"),
            symlink("d", "../outside"),
            Member("d/secret", b"mine"),
        )

    def test_links_in_circles(self) -> None:
        """Links that lead to one another are refused."""
        self.refused(symlink("a", "b"), symlink("b", "a"), Member("a/f", b"x"))

    def test_files_on_the_way(self) -> None:
        """A file on the way is refused."""
        self.refused(Member("a", b"x"), Member("a/b", b"x"))
        self.refused(Member("a", b"x"), hard_link("b", "a/c"))

    def test_names(self) -> None:
        """Empty names, long ones and whiteouts of nothing are refused."""
        self.refused(Member("", b"x", pax={"path": "x" * 256}))
        self.refused(Member("a/" + "x" * 256))
        self.refused(Member("d/", b"", type=tarfile.SYMTYPE))
        for name in (".wh.", ".wh..", ".wh...", "a/.wh..."):
            self.refused(Member(name), below=APART)
        self.refused(Member(".wh.d/f", b"x"), below=APART)

    def test_whiteout_devices(self) -> None:
        """A device that an overlay takes for a whiteout is refused, and numbers there are not."""
        for below in (NOTHING, APART, FULL):
            self.refused(Member("x", type=tarfile.CHRTYPE, device=(0, 0)), below=below)
        self.refused(Member("x", type=tarfile.BLKTYPE, device=(1 << 13, 0)))
        self.refused(Member("x", type=tarfile.BLKTYPE, device=(0, (1 << 20) + 1)))

    def test_overlay_attributes(self) -> None:
        """An overlay's own attributes never come from an archive."""
        for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.whiteout"):
            seen = self.apply(
                Member("f", pax=xattr(name, "y")), directory("d", pax=xattr(name, "y"))
            )
            self.assertNotIn("xattrs", seen["f"])
            self.assertNotIn("xattrs", seen["d"])

    def test_bad_attributes(self) -> None:
        """Attributes that the kernel does not take are refused."""
        for name, value in (
            ("", "x"),
            ("x" * 300, "x"),
            ("user.x", "x" * 70_000),
            ("nonsense", "x"),
        ):
            if name == "nonsense":
                self.apply(Member("f", pax=xattr(name, value)))
            else:
                self.refused(Member("f", pax=xattr(name, value)))

    def test_links_to_directories(self) -> None:
        """A hard link to a directory, to the root or into what it replaces is refused."""
        self.refused(directory("d"), hard_link("l", "d"))
        self.refused(hard_link("l", "./"))
        self.refused(Member("d/f", b"x"), hard_link("d", "d/f"))

    def test_budgets(self) -> None:
        """Depth, length and directories made for want of entries are bounded."""
        with self.assertRaises(TooLarge) as caught:
            self.apply(Member("/".join(["d"] * 10_000), b"x"))
        self.assertIn(caught.exception.budget, ("depth", "path"))
        with self.assertRaises(TooLarge):
            self.apply(Member("a/b/c/d/e/f", b"x"), entries=3)
        with self.assertRaises(TooLarge):
            links = [symlink(f"l{n}", "/".join([f"l{n - 1}/d"] * 2)) for n in range(1, 30)]
            self.apply(directory("l0"), *links, Member("l29/f", b"x"), depth=20)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["file", "dir", "link", "hard", "white", "opaque", "fifo"]),
                st.sampled_from(["a", "b", "a/b", "b/a", "a/b/a", "../a", "a/../..", "/a", "."]),
                st.sampled_from(
                    ["a", "b", "/", "..", "../outside", "/../outside", "a/b", "b/../.."]
                ),
            ),
            max_size=8,
        ),
        st.sampled_from([NOTHING, APART, FULL]),
    )
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_any_order(self, steps: list[tuple[str, str, str]], below: str) -> None:
        """Whatever comes in whatever order, nothing outside is touched."""
        make = {
            "file": lambda n, t: Member(n, b"x"),
            "dir": lambda n, t: directory(n),
            "link": symlink,
            "hard": hard_link,
            "white": lambda n, t: whiteout(n),
            "opaque": lambda n, t: opaque(n),
            "fifo": lambda n, t: Member(n, type=tarfile.FIFOTYPE),
        }
        self.fresh()
        try:
            self.apply(*(make[kind](name, target) for kind, name, target in steps), below=below)
        except (Malformed, NeedsParent, TooLarge):
            pass
