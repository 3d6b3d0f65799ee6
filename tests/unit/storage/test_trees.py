"""Walking, removing and copying trees that others made."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.storage.snapshots.copying import copy_data, copy_tree
from ctd.storage.trees import cursor, measure, remove_tree
from tests.conformance.snapshotter import described, everything

TREE = st.recursive(
    st.binary(max_size=20),
    lambda below: st.dictionaries(st.sampled_from("abcd"), below, max_size=4),
    max_leaves=20,
)


def build(root: Path, tree: bytes | dict[str, object]) -> None:
    """Make *tree* at *root*."""
    if isinstance(tree, bytes):
        root.write_bytes(tree)
        return
    root.mkdir()
    for name, below in tree.items():
        build(root / name, below)  # type: ignore[arg-type]


class RemovalTests(SynchronousTestCase):
    """Removing."""

    def setUp(self) -> None:
        self.at = Path(self.mktemp()).absolute()
        self.at.mkdir()

    def test_nothing(self) -> None:
        """What is not there is removed."""
        remove_tree(self.at / "nothing")

    def test_links(self) -> None:
        """Symbolic links are removed, not followed, wherever they lead."""
        outside = self.at / "outside"
        outside.mkdir()
        (outside / "file").write_text("kept")
        tree = self.at / "tree"
        tree.mkdir()
        (tree / "link").symlink_to(outside)
        (tree / "up").symlink_to("..")
        remove_tree(tree)
        self.assertEqual((outside / "file").read_text(), "kept")

    def test_root_link(self) -> None:
        """A root that is a symbolic link is refused."""
        (self.at / "real").mkdir()
        (self.at / "link").symlink_to("real")
        with self.assertRaises(OSError):
            remove_tree(self.at / "link")
        self.assertTrue((self.at / "real").is_dir())

    def test_descriptors(self) -> None:
        """A tree deeper than there are descriptors is walked with two of them."""
        here = os.open(".", os.O_RDONLY)
        (self.at / "tree").mkdir()
        os.chdir(self.at / "tree")
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        os.fchdir(here)
        os.close(here)
        self.assertEqual(measure(self.at / "tree").inodes, 3001)
        remove_tree(self.at / "tree")
        self.assertEqual(os.listdir(self.at), [])

    def test_no_name_leads_out(self) -> None:
        """A cursor goes down by plain names only."""
        (self.at / "dir").mkdir()
        (self.at / "dir/link").symlink_to("/")
        with cursor(self.at / "dir") as it:
            for name in ("..", "link", "/"):
                with self.assertRaises(OSError):
                    it.down(name)

    @settings(max_examples=50, deadline=None)
    @given(st.dictionaries(st.sampled_from("abcd"), TREE, max_size=4))
    def test_any(self, tree: dict[str, object]) -> None:
        """Any tree can be copied, and copy and tree removed."""
        old, new = self.at / "old", self.at / "new"
        build(old, tree)
        copy_tree(old, new, self.at / "links")
        self.assertEqual(described(str(new)), described(str(old)))
        for root in (old, new):
            self.assertEqual(measure(root).inodes, 1 + len(list(root.rglob("*"))))
            remove_tree(root)
        self.assertEqual(os.listdir(self.at), [])


class CopyTests(SynchronousTestCase):
    """Copying."""

    def setUp(self) -> None:
        self.at = Path(self.mktemp()).absolute()
        self.at.mkdir()

    def test_everything(self) -> None:
        """A copy has all that can be seen of the tree, and nothing stays beside it."""
        (self.at / "old").mkdir()
        everything(str(self.at / "old"))
        copy_tree(self.at / "old", self.at / "new", self.at / "links")
        self.assertEqual(described(str(self.at / "new")), described(str(self.at / "old")))
        self.assertEqual(sorted(os.listdir(self.at)), ["new", "old"])

    def test_ways(self) -> None:
        """Without reflinks, and without copy_file_range, the data is the same, holes too."""
        old = self.at / "old"
        with old.open("wb") as file:
            file.write(b"start" * 1000)
            file.seek(8 << 20)
            file.write(b"end")
            file.truncate(16 << 20)
        refused = OSError(errno.EOPNOTSUPP, "no")
        for ways in (["fcntl.ioctl"], ["fcntl.ioctl", "os.copy_file_range"]):
            new = self.at / ways[-1]
            with old.open("rb") as source, new.open("wb") as target:
                patches = [
                    patch(f"ctd.storage.snapshots.copying.{way}", side_effect=refused)
                    for way in ways
                ]
                for it in patches:
                    it.start()
                try:
                    copy_data(source.fileno(), target.fileno(), 16 << 20)
                finally:
                    for it in patches:
                        it.stop()
            self.assertEqual(new.read_bytes(), old.read_bytes())
            self.assertLess(new.stat().st_blocks, 200)
