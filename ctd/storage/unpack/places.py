"""Where a layer's entries go: its directories as a tree of descriptors, symbolic links by hand.

Paths are never left to the kernel.  A :class:`Directory` is a real directory at
a real place; symbolic links on the way are read and followed here, inside the
root, so that what a path means is known and the same on every snapshotter.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ctd.storage.unpack.faults import Budget, Malformed, NeedsParent, TooLarge

#: What can be seen of the layers below while a layer is applied: there are
#: none; they are unknown, and the layer becomes an overlay's upper directory;
#: all their files are there, to be changed.
NOTHING, APART, FULL = "nothing", "apart", "full"

OPAQUE = "trusted.overlay.opaque"

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 128
_MOST_REMEMBERED = 8 << 20
_MOST_LINKS = 40
_LONGEST_PATH = 4000


class Metadata:
    """What a directory gets in the end.  :ivar mtime: in nanoseconds, or None to leave it."""

    __slots__ = ("gid", "mode", "mtime", "uid", "xattrs")

    def __init__(
        self, mode: int, uid: int, gid: int, mtime: int | None, xattrs: dict[bytes, bytes]
    ) -> None:
        self.mode, self.uid, self.gid, self.mtime, self.xattrs = mode, uid, gid, mtime, xattrs


class Directory:
    """A directory at a real place.

    :ivar inside: the directories in it that are known.
    :ivar made: names in it that this layer made, where that must be known.
    :ivar metadata: to be set in the end, or None.
    :ivar implied: made, or passed through, without an entry for it so far.
    :ivar was_implied: was that at any time.
    :ivar opaque: hides what the lower one has in it.
    :ivar replaced: is not the lower one of its name, but in its place.
    :ivar mtime: what it had, in nanoseconds, if it lies below this layer; else None.
    """

    __slots__ = (
        "fd", "implied", "inside", "made", "metadata", "mtime", "name", "opaque", "parent",
        "replaced", "was_implied",
    )  # fmt: skip

    def __init__(self, parent: Directory | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.fd = -1
        self.inside: dict[bytes, Directory] = {}
        self.made: set[bytes] = set()
        self.metadata: Metadata | None = None
        self.mtime: int | None = None
        self.implied = self.was_implied = self.opaque = self.replaced = False

    @property
    def path(self) -> bytes:
        """Its path, for people."""
        return b"/".join(d.name for d in self.lineage())

    def lineage(self) -> list[Directory]:
        """The directories from below the root down to this one."""
        line = []
        at = self
        while at.parent is not None:
            line.append(at)
            at = at.parent
        return line[::-1]

    def holds(self) -> bool:
        """Whether this layer made anything in it."""
        return bool(self.made) or any(d.holds() for d in self.inside.values())

    def walk(self) -> Iterator[Directory]:
        """It and all known below it, those above first."""
        waiting = [self]
        while waiting:
            it = waiting.pop()
            yield it
            waiting += it.inside.values()


class Places:
    """The directories of one layer.

    :param root: a descriptor of the root directory.
    :param below: :data:`NOTHING`, :data:`APART` or :data:`FULL`.
    :ivar implied: how many directories were made without an entry.
    """

    def __init__(self, root: int, below: str, budget: Budget) -> None:
        self.root = Directory(None, b"")
        self.root.fd = root
        self.root.implied = self.root.was_implied = True
        if below == FULL:
            self.root.mtime = os.fstat(root).st_mtime_ns
        self.implied = 0
        self._below = below
        self._budget = budget
        self._known: dict[bytes, Directory] = {b"": self.root}
        self._remembered = 0
        self._open: list[Directory] = []

    def known(self, path: bytes) -> Directory | None:
        """The directory at *path*, if it was asked for before."""
        return self._known.get(path)

    def trim(self) -> None:
        """Close descriptors if there are many; those got from :meth:`fd` are void then."""
        if len(self._open) > _MOST_OPEN:
            for directory in self._open:
                if directory.fd >= 0:
                    os.close(directory.fd)
                    directory.fd = -1
            self._open = []

    def fd(self, directory: Directory) -> int:
        """A descriptor of *directory*, good until the next :meth:`trim`."""
        if directory.fd >= 0:
            return directory.fd
        names = [directory.name]
        above = directory.parent
        while above is not None and above.fd < 0:
            names.append(above.name)
            above = above.parent
        assert above is not None  # the root is always open
        fd = above.fd
        while names:
            part = names.pop()
            while names and len(part) < _LONGEST_PATH - 256:
                part += b"/" + names.pop()
            deeper = os.open(part, _OPEN, dir_fd=fd)
            if fd != above.fd:
                os.close(fd)
            fd = deeper
        directory.fd = fd
        self._open.append(directory)
        return fd

    def find(self, parts: list[bytes], create: bool) -> Directory:
        """The directory at a path, with links on the way followed.

        :param create: make what is missing, with root as owner and mode 0755.
        :raise FileNotFoundError:, :raise NotADirectoryError: there is none, without *create*.
        :raise NeedsParent: it may lead to what lies below this layer.
        """
        path = b"/".join(parts)
        have = len(parts)
        prefix = path
        while (at := self._known.get(prefix)) is None:
            have -= 1
            prefix = prefix.rpartition(b"/")[0]
        for part in parts[have:]:
            at = self._step(at, part, create, 0)
            prefix = prefix + b"/" + part if prefix else part
            self._remember(prefix, at)
        return at

    def _remember(self, path: bytes, directory: Directory) -> None:
        """Note where a path leads; a cache, bounded by the bytes of its paths."""
        self._remembered += len(path)
        if self._remembered > _MOST_REMEMBERED:
            self._known, self._remembered = {b"": self.root}, len(path)
        self._known[path] = directory

    def _step(self, at: Directory, name: bytes, create: bool, links: int) -> Directory:
        if (known := at.inside.get(name)) is not None:
            return known
        try:
            found = os.stat(name, dir_fd=self.fd(at), follow_symlinks=False)
        except FileNotFoundError:
            if links and self._below == APART:
                raise NeedsParent from None
            if not create:
                raise
            return self._imply(at, name)
        if stat.S_ISDIR(found.st_mode):
            return self._pass(at, name, found)
        if stat.S_ISLNK(found.st_mode):
            return self._follow(at, name, create, links + 1)
        if self._below == APART and is_whiteout(found):
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.unlink(name, dir_fd=self.fd(at))
            made = self._imply(at, name)
            made.replaced = True
            self.hide(made)
            return made
        if not create:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise Malformed(f"{os.fsdecode(name)!r} on its way is no directory")

    def _follow(self, at: Directory, name: bytes, create: bool, links: int) -> Directory:
        if links > _MOST_LINKS:
            raise Malformed("too many symbolic links on its way")
        target = os.readlink(name, dir_fd=self.fd(at))
        if target.startswith(b"/"):
            at = self.root
        for part in target.split(b"/"):
            if part == b"..":
                at = at.parent or at
            elif part not in (b"", b"."):
                if len(at.lineage()) >= self._budget.depth:
                    raise TooLarge("depth", self._budget.depth)
                at = self._step(at, part, create, links)
        return at

    def _pass(self, at: Directory, name: bytes, found: os.stat_result) -> Directory:
        """A directory that lies below this layer."""
        it = self.enter(at, name)
        it.implied = it.was_implied = True
        it.mtime = found.st_mtime_ns
        return it

    def _imply(self, at: Directory, name: bytes) -> Directory:
        if self.implied >= self._budget.entries:
            raise TooLarge("entries", self._budget.entries)
        self.implied += 1
        os.mkdir(name, 0o755, dir_fd=self.fd(at))
        it = self.enter(at, name)
        it.implied = it.was_implied = True
        it.metadata = Metadata(0o755, 0, 0, None, {})
        if self._below == FULL:
            at.made.add(name)
        return it

    def enter(self, at: Directory, name: bytes) -> Directory:
        """Note that *name* in *at* is a directory."""
        it = at.inside[name] = Directory(at, name)
        return it

    def hide(self, directory: Directory) -> None:
        """Let nothing of the layers below be seen in it, as an overlay's upper directory can."""
        if self._below == APART and not directory.opaque:
            directory.opaque = True
            os.setxattr(self.fd(directory), OPAQUE, b"y")

    def forget(self, at: Directory, name: bytes) -> None:
        """Note that *name* in *at*, a directory or a link, is gone."""
        self._known = {b"": self.root}
        gone = at.inside.pop(name, None)
        if gone is None:
            return
        for directory in gone.walk():
            if directory.fd >= 0:
                os.close(directory.fd)
                directory.fd = -1
        self._open = [d for d in self._open if d.fd >= 0]


def is_whiteout(found: os.stat_result) -> bool:
    """Whether it is what an overlay takes for "nothing here": a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def remove_at(fd: int, name: bytes) -> None:
    """Remove *name* in the directory *fd*, with all that is in it, however deep."""
    try:
        os.unlink(name, dir_fd=fd)
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    at = os.open(name, _OPEN, dir_fd=fd)
    waiting = [(name, _clear(at))]
    try:
        while waiting:
            here, below = waiting[-1]
            if below:
                deeper = os.open(below[-1], _OPEN, dir_fd=at)
                os.close(at)
                at = deeper
                waiting.append((below.pop(), _clear(at)))
                continue
            waiting.pop()
            above = os.open("..", _OPEN, dir_fd=at)
            os.close(at)
            at = above
            os.rmdir(here, dir_fd=at)
    finally:
        os.close(at)


def _clear(fd: int) -> list[bytes]:
    """Remove what is not a directory from *fd*, and give the directories' names."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                os.unlink(name, dir_fd=fd)
    return directories
