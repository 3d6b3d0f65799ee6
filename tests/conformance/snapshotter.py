"""What every snapshotter does; see :class:`ctd.storage.interfaces.ISnapshotter`.

The mounts are made for real, in a mount namespace of a child.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from zope.interface.verify import verifyObject

from ctd.errors import AlreadyExists, FailedPrecondition, NotFound
from ctd.model import Mount
from ctd.storage.interfaces import SHARED, ISnapshotter, SnapshotInfo, SnapshotKind
from tests.conformance.mounted import inside

NS = "default"


def write(**files: str) -> Callable[[str], None]:
    """Writes files; ``None`` as text removes one."""

    def do(root: str) -> None:
        for name, text in files.items():
            Path(root, name).write_text(text)

    return do


def tree(root: str) -> dict[str, str]:
    """The files below *root* and their texts; directories have none."""
    return {
        str(p.relative_to(root)): p.read_text() if p.is_file() else ""
        for p in Path(root).rglob("*")
    }


def everything(root: str) -> None:
    """A tree with all that a root file system may have."""
    os.mkdir(f"{root}/dir", 0o2751)
    os.chmod(f"{root}/dir", 0o2751)
    os.chown(f"{root}/dir", 12, 34)
    Path(root, "dir/file").write_text("text")
    os.chown(f"{root}/dir/file", 1000, 2000)
    os.chmod(f"{root}/dir/file", 0o4711)
    os.setxattr(f"{root}/dir/file", "user.note", b"\0\1\2")
    os.setxattr(f"{root}/dir/file", "trusted.note", b"secret")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(f"{root}/dir/file", "security.capability", capability)
    os.setxattr(f"{root}/dir", "user.dir", b"d")
    os.link(f"{root}/dir/file", f"{root}/again")
    os.mkdir(f"{root}/other")
    os.link(f"{root}/dir/file", f"{root}/other/third")
    os.symlink("/etc/passwd", f"{root}/absolute")
    os.symlink("nowhere", f"{root}/dangling")
    os.chown(f"{root}/dangling", 5, 6, follow_symlinks=False)
    os.mknod(f"{root}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(f"{root}/loop", stat.S_IFBLK | 0o660, os.makedev(7, 0))
    os.mkfifo(f"{root}/fifo", 0o600)
    os.mknod(f"{root}/socket", stat.S_IFSOCK | 0o640)
    with Path(root, "sparse").open("wb") as file:
        file.write(b"start")
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(100 << 20)
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_text("latin")
    Path(root, "empty").touch()
    for name in ("dir/file", "null", "dangling", "other", "dir"):
        os.utime(f"{root}/{name}", ns=(10**18 + 1, 10**18 + 123456789), follow_symlinks=False)


def described(root: str) -> dict[str, Any]:
    """All that can be seen of each thing below *root*."""
    seen: dict[str, Any] = {}
    links: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            it = os.lstat(path)
            facts: list[Any] = [oct(it.st_mode), it.st_uid, it.st_gid, it.st_rdev]
            facts.append(
                {
                    a: os.getxattr(path, a, follow_symlinks=False)
                    for a in os.listxattr(path, follow_symlinks=False)
                    if not a.startswith("trusted.overlay.")
                }
            )
            if not stat.S_ISDIR(it.st_mode):
                facts += [it.st_nlink, it.st_size]
                facts.append(links.setdefault(it.st_ino, os.path.relpath(path, root)))
            if stat.S_ISREG(it.st_mode):
                facts.append(it.st_blocks < 1000 or it.st_size)
            if stat.S_ISLNK(it.st_mode):
                facts.append(os.readlink(path))
            if it.st_mtime_ns < 1_500_000_000 * 10**9:
                facts.append(it.st_mtime_ns)
            seen[os.fsencode(os.path.relpath(path, root)).hex()] = facts
    return seen


class SnapshotterSuite:
    """For a TestCase whose ``async def make_snapshotter()`` gives a new one, with nothing in it."""

    async def layer(
        self: Any, it: Any, name: str, parent: str | None, fill: Callable[[str], object]
    ) -> None:
        """A committed snapshot *name* on *parent*, filled by *fill*."""
        mounts = await it.prepare(NS, f"making-{name}", parent)
        inside(mounts, fill)
        await it.commit(NS, name, f"making-{name}")

    async def seen(self: Any, it: Any, parent: str, look: Callable[[str], Any] = tree) -> Any:
        """What is seen in a view of *parent*."""
        mounts = await it.view(NS, "looking", parent)
        try:
            return inside(mounts, look)
        finally:
            await it.remove(NS, "looking")

    async def test_interface(self: Any) -> None:
        """The snapshotter is what it says."""
        it = await self.make_snapshotter()
        verifyObject(ISnapshotter, it)
        self.assertIsInstance(it.capabilities, frozenset)

    async def test_prepare(self: Any) -> None:
        """A snapshot without a parent is an empty directory to be written to."""
        it = await self.make_snapshotter()
        mounts = await it.prepare(NS, "a")
        self.assertEqual(inside(mounts, tree), {})
        inside(mounts, write(file="text"))
        self.assertEqual(inside(await it.mounts(NS, "a"), tree), {"file": "text"})
        self.assertEqual(oct(inside(mounts, lambda root: os.stat(root).st_mode)), "0o40755")

    async def test_same_mounts(self: Any) -> None:
        """The mounts of a key are the same each time they are asked for."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        for make in (it.prepare, it.view):
            mounts = await make(NS, make.__name__, "base")
            self.assertIsInstance(mounts[0], Mount)
            self.assertEqual(list(await it.mounts(NS, make.__name__)), list(mounts))

    async def test_commit(self: Any) -> None:
        """A committed snapshot's files are seen in what is prepared on it; its key is gone."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(file="text"))
        with self.assertRaises(NotFound):
            await it.info(NS, "making-base")
        mounts = await it.prepare(NS, "top", "base")
        self.assertEqual(inside(mounts, tree), {"file": "text"})

    async def test_isolation(self: Any) -> None:
        """What is written on top of a snapshot changes neither it nor its other children."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(file="base", other="base"))
        one = await it.prepare(NS, "one", "base")
        two = await it.prepare(NS, "two", "base")
        inside(one, write(file="one"))
        inside(two, write(other="two"))
        self.assertEqual(inside(one, tree), {"file": "one", "other": "base"})
        self.assertEqual(inside(two, tree), {"file": "base", "other": "two"})
        self.assertEqual(await self.seen(it, "base"), {"file": "base", "other": "base"})

    async def test_whiteouts(self: Any) -> None:
        """What a layer removes or replaces is so for those above it."""
        it = await self.make_snapshotter()

        def base(root: str) -> None:
            for directory in ("kept", "gone", "opaque"):
                os.mkdir(f"{root}/{directory}")
                Path(root, directory, "file").write_text(directory)
            Path(root, "file").write_text("file")
            Path(root, "becomes").write_text("a file")

        def top(root: str) -> None:
            os.unlink(f"{root}/file")
            os.unlink(f"{root}/becomes")
            os.mkdir(f"{root}/becomes")
            for directory in ("gone", "opaque"):
                os.unlink(f"{root}/{directory}/file")
                os.rmdir(f"{root}/{directory}")
            os.mkdir(f"{root}/opaque")
            Path(root, "opaque/new").write_text("new")

        await self.layer(it, "base", None, base)
        await self.layer(it, "top", "base", top)
        expected = {
            "kept": "", "kept/file": "kept", "becomes": "", "opaque": "", "opaque/new": "new",
        }  # fmt: skip
        self.assertEqual(await self.seen(it, "top"), expected)
        await self.layer(it, "third", "top", lambda root: None)
        self.assertEqual(await self.seen(it, "third"), expected)

    async def test_everything(self: Any) -> None:
        """Owners, modes, times, attributes, links, holes and special files survive layers."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, everything)
        expected = await self.seen(it, "base", described)
        await self.layer(it, "top", "base", lambda root: None)
        self.assertEqual(await self.seen(it, "top", described), expected)
        self.assertEqual(await self.seen(it, "top", lambda r: os.stat(f"{r}/null").st_rdev), 259)

    async def test_root_directory(self: Any) -> None:
        """The root directory keeps the mode and owner its topmost layer gave it."""
        it = await self.make_snapshotter()

        def base(root: str) -> None:
            os.chmod(root, 0o1777)
            os.chown(root, 7, 8)

        def facts(root: str) -> tuple[int, int, int]:
            found = os.stat(root)
            return found.st_mode, found.st_uid, found.st_gid

        await self.layer(it, "base", None, base)
        mounts = await it.prepare(NS, "top", "base")
        self.assertEqual(inside(mounts, facts), (0o41777, 7, 8))

    async def test_deep(self: Any) -> None:
        """A tree deeper than a path can be long is kept, measured and removed."""
        it = await self.make_snapshotter()

        def dig(root: str) -> None:
            os.chdir(root)
            for _ in range(1500):
                os.mkdir("abcdefgh")
                os.chdir("abcdefgh")
            Path("bottom").write_text("here")

        def find(root: str) -> str:
            os.chdir(root)
            for _ in range(1500):
                os.chdir("abcdefgh")
            return Path("bottom").read_text()

        await self.layer(it, "deep", None, dig)
        mounts = await it.prepare(NS, "top", "deep")
        self.assertEqual(inside(mounts, find), "here")
        self.assertEqual((await it.usage(NS, "deep")).inodes, 1502)
        await it.remove(NS, "top")
        await it.remove(NS, "deep")
        self.assertEqual(list(await it.list()), [])

    async def test_many_layers(self: Any) -> None:
        """Thirty layers lie on one another in their order."""
        it = await self.make_snapshotter()
        parent = None
        for number in range(30):
            files = {f"file{number}": "x", "last": str(number)}
            await self.layer(it, f"layer{number}", parent, write(**files))
            parent = f"layer{number}"
        seen = await self.seen(it, "layer29")
        self.assertEqual((len(seen), seen["last"]), (31, "29"))

    async def test_view(self: Any) -> None:
        """A view shows its parent, or nothing, cannot be written to, and cannot be committed."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        await self.layer(it, "top", "base", write(b="2"))
        for number, (parent, expected) in enumerate(
            [(None, {}), ("base", {"a": "1"}), ("top", {"a": "1", "b": "2"})]
        ):
            mounts = await it.view(NS, f"view{number}", parent)
            self.assertEqual(inside(mounts, tree), expected)

            def refused(root: str) -> bool:
                try:
                    Path(root, "new").touch()
                except OSError as error:
                    return error.errno == 30
                return False

            self.assertTrue(inside(mounts, refused))
            with self.assertRaises(FailedPrecondition):
                await it.commit(NS, "never", f"view{number}")

    async def test_taken(self: Any) -> None:
        """A key that is taken is refused, whatever it is the key of."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write())
        await it.prepare(NS, "active")
        await it.view(NS, "view")
        for key in ("active", "view", "base"):
            with self.assertRaises(AlreadyExists):
                await it.prepare(NS, key)
            with self.assertRaises(AlreadyExists):
                await it.view(NS, key)

    async def test_commit_name_taken(self: Any) -> None:
        """A commit to a name that is taken leaves the key active."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        inside(await it.prepare(NS, "active"), write(b="2"))
        with self.assertRaises(AlreadyExists):
            await it.commit(NS, "base", "active")
        self.assertEqual(inside(await it.mounts(NS, "active"), tree), {"b": "2"})
        await it.commit(NS, "other", "active")
        self.assertEqual(await self.seen(it, "base"), {"a": "1"})

    async def test_not_found(self: Any) -> None:
        """What is not there is not found; an active snapshot is nobody's parent."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "active")
        for call in (it.info, it.usage, it.mounts, it.remove):
            with self.assertRaises(NotFound):
                await call(NS, "nothing")
        for parent in ("nothing", "active"):
            with self.assertRaises(NotFound):
                await it.prepare(NS, "new", parent)
            with self.assertRaises(NotFound):
                await it.view(NS, "new", parent)
        with self.assertRaises(NotFound):
            await it.commit(NS, "name", "nothing")
        self.assertEqual([s.key for s in await it.list()], ["active"])

    async def test_committed_has_no_mounts(self: Any) -> None:
        """A committed snapshot is looked into through a view only."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write())
        with self.assertRaises(NotFound):
            await it.mounts(NS, "base")

    async def test_remove(self: Any) -> None:
        """A removed key or name is free again, and its files do not come back."""
        it = await self.make_snapshotter()
        inside(await it.prepare(NS, "a"), write(file="old"))
        await it.remove(NS, "a")
        self.assertEqual(inside(await it.prepare(NS, "a"), tree), {})

    async def test_remove_with_children(self: Any) -> None:
        """A snapshot that others lie on cannot be removed, until they are."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        await self.layer(it, "top", "base", write(b="2"))
        await it.view(NS, "view", "top")
        for name in ("base", "top"):
            with self.assertRaises(FailedPrecondition):
                await it.remove(NS, name)
        for name in ("view", "top", "base"):
            await it.remove(NS, name)
        self.assertEqual(list(await it.list()), [])

    async def test_namespaces(self: Any) -> None:
        """Keys are a namespace's own; parents may also be shared."""
        it = await self.make_snapshotter()
        inside(await it.prepare("one", "key"), write(a="one"))
        inside(await it.prepare("two", "key"), write(a="two"))
        await it.commit("one", "base", "key")
        await it.commit("two", "base", "key", target=SHARED)
        with self.assertRaises(NotFound):
            await it.info("two", "base")
        self.assertEqual(inside(await it.view("one", "v", "base"), tree), {"a": "one"})
        self.assertEqual(inside(await it.view("two", "v", "base"), tree), {"a": "two"})
        self.assertEqual(
            [(s.namespace, s.key) for s in await it.list()],
            [(SHARED, "base"), ("one", "base"), ("one", "v"), ("two", "v")],
        )
        self.assertEqual([s.key for s in await it.list("two")], ["v"])

    async def test_info(self: Any) -> None:
        """A record says what it is, what it lies on, and its labels."""
        it = await self.make_snapshotter()
        await it.prepare(NS, "key", labels={"a": "b"})
        info = await it.info(NS, "key")
        self.assertEqual(
            info, SnapshotInfo(NS, "key", SnapshotKind.ACTIVE, None, info.created_at, {"a": "b"})
        )
        await it.commit(NS, "base", "key", labels={"c": "d"})
        await it.view(NS, "view", "base")
        info = await it.info(NS, "base")
        self.assertEqual((info.kind, info.labels), (SnapshotKind.COMMITTED, {"c": "d"}))
        info = await it.info(NS, "view")
        self.assertEqual((info.kind, info.parent), (SnapshotKind.VIEW, "base"))
        self.assertEqual([await it.info(NS, s.key) for s in await it.list()], await it.list())

    async def test_usage(self: Any) -> None:
        """Usage counts bytes on disk and inodes, a file with two names once."""
        it = await self.make_snapshotter()

        def fill(root: str) -> None:
            Path(root, "big").write_bytes(b"x" * (1 << 20))
            os.link(f"{root}/big", f"{root}/again")
            os.sync()

        inside(await it.prepare(NS, "active"), fill)
        used = await it.usage(NS, "active")
        self.assertEqual(used.inodes, 2)
        self.assertTrue(1 << 20 <= used.size < (1 << 20) + 20000, used)
        await it.commit(NS, "base", "active")
        for _ in range(2):
            self.assertEqual((await it.usage(NS, "base")).inodes, 2)

    async def test_concurrent_prepares(self: Any) -> None:
        """Of several who prepare the same key at once, one does."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        results = await DeferredList(
            [Deferred.fromCoroutine(it.prepare(NS, "key", "base")) for _ in range(5)],
            consumeErrors=True,
        )
        made = [value for good, value in results if good]
        self.assertEqual(len(made), 1)
        for good, value in results:
            self.assertTrue(good or value.check(AlreadyExists))
        self.assertEqual(inside(made[0], tree), {"a": "1"})

    async def test_recover_changes_nothing(self: Any) -> None:
        """Recovery leaves whole snapshots as they are."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        inside(await it.prepare(NS, "key", "base"), write(b="2"))
        before = list(await it.list())
        await it.recover()
        await it.recover()
        self.assertEqual(list(await it.list()), before)
        self.assertEqual(inside(await it.mounts(NS, "key"), tree), {"a": "1", "b": "2"})

    async def test_layers(self: Any) -> None:
        """The directories of a name, topmost first, make up its files."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1", b="1"))
        await self.layer(it, "top", "base", write(b="2"))
        seen: dict[str, str] = {}
        layers: Sequence[str] = await it.layers(NS, "top")
        for directory in layers:
            seen = {**tree(directory), **seen}
        self.assertEqual(seen, {"a": "1", "b": "2"})
        with self.assertRaises(NotFound):
            await it.layers(NS, "nothing")

    async def test_rebase(self: Any) -> None:
        """With ``rebase`` a snapshot without a parent may be committed onto one; else not."""
        it = await self.make_snapshotter()
        await self.layer(it, "base", None, write(a="1"))
        inside(await it.prepare(NS, "apart"), write(b="2"))
        if "rebase" not in it.capabilities:
            with self.assertRaises(FailedPrecondition):
                await it.commit(NS, "top", "apart", "base")
            return
        with self.assertRaises(NotFound):
            await it.commit(NS, "top", "apart", "nothing")
        await it.commit(NS, "top", "apart", "base")
        self.assertEqual(await self.seen(it, "top"), {"a": "1", "b": "2"})
        self.assertEqual((await it.info(NS, "top")).parent, "base")
        with self.assertRaises(FailedPrecondition):
            await it.remove(NS, "base")
        await it.prepare(NS, "on base", "base")
        with self.assertRaises(FailedPrecondition):
            await it.commit(NS, "other", "on base", "top")
