"""A layer's entries applied to a directory: files, links, devices, whiteouts, metadata.

What a layer means is said by the OCI image-spec (layer.md): an entry replaces
what it finds, except that a directory's entry on a directory keeps what is in
it; whiteouts hide what lies below the layer and nothing of the layer itself,
wherever in the archive they come.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ctd import kernel
from ctd.storage.unpack import tar
from ctd.storage.unpack.faults import Budget, Malformed, NeedsParent, TooLarge
from ctd.storage.unpack.places import (
    APART,
    FULL,
    NOTHING,
    Directory,
    Metadata,
    Places,
    is_whiteout,
    remove_at,
)

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_OTHER_AUFS = b".wh..wh."
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DOTS = (b"", b".", b"..")
#: From this size on write-back begins as soon as a file is whole: the commit's sync is shorter.
_EARLY = 1 << 20
_SPECIAL = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}


class Applier:
    """Applies one layer.

    :param root: a descriptor of the directory that becomes the layer.
    :param below: see :data:`ctd.storage.unpack.places.NOTHING`.
    :ivar whiteouts: those made, and where.
    """

    def __init__(self, root: int, below: str, budget: Budget) -> None:
        self.places = Places(root, below, budget)
        self.whiteouts: list[tuple[Directory, bytes]] = []
        self._below = below
        self._full = below == FULL
        self._budget = budget

    def apply(self, entry: tar.Entry, body: Iterator[memoryview]) -> None:
        """Apply one entry.

        :raise Malformed: it cannot be applied, or must not be.
        :raise NeedsParent: what it means depends on what lies below.
        """
        places = self.places
        places.trim()
        name = entry.name
        head, _, tail = name.removeprefix(b"./").rstrip(b"/").rpartition(b"/")
        directory = places.known(head)
        if directory is None or tail in _DOTS or len(tail) > 255:
            parts = self._split(name)
            if not parts:
                self._root(entry)
                return
            if any(part.startswith(_OTHER_AUFS) and part != _OPAQUE for part in parts):
                return  # aufs' own housekeeping
            if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
                raise Malformed("a whiteout on its way is no directory")
            tail = parts.pop()
            if self._below == NOTHING and tail.startswith(_WHITEOUT):
                self._whiteout(places.root, tail)
                return
            directory = places.find(parts, create=True)
        if tail.startswith(_WHITEOUT):
            self._whiteout(directory, tail)
            return
        if entry.type == tar.REGULAR:
            self._file(directory, tail, entry, body)
        elif entry.type == tar.DIRECTORY:
            self._directory(directory, tail, entry)
        elif entry.type == tar.SYMLINK:
            self._symlink(directory, tail, entry)
        elif entry.type == tar.HARD_LINK:
            self._hard_link(directory, tail, entry)
        else:
            self._special(directory, tail, entry)
        if self._full:
            directory.made.add(tail)

    def finish(self) -> None:
        """Set the directories' metadata; nothing may be applied after it."""
        for directory in self.places.root.walk():
            it, mtime = directory.metadata, directory.mtime
            if it is None and mtime is None:
                continue
            self.places.trim()
            fd = self.places.fd(directory)
            if it is not None:
                os.fchown(fd, it.uid, it.gid)
                os.fchmod(fd, it.mode)
                for name, value in it.xattrs.items():
                    _set_xattr(fd, name, value)
                mtime = it.mtime
            elif os.fstat(fd).st_mtime_ns == mtime:
                continue  # nothing was changed in it: it stays in its layer
            if mtime is not None:
                os.utime(fd, ns=(mtime, mtime))

    def _split(self, name: bytes, what: str = "its name") -> list[bytes]:
        """The components of a path, without the dots."""
        if len(name) > self._budget.path:
            raise TooLarge("path", self._budget.path)
        if not name:
            raise Malformed(f"{what} is empty")
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if not parts:
                    raise Malformed(f"{what} leads out of the root")
                parts.pop()
            elif part not in (b"", b"."):
                if len(part) > 255:
                    raise Malformed(f"{what} has a component of more than 255 bytes")
                parts.append(part)
        if len(parts) > self._budget.depth:
            raise TooLarge("depth", self._budget.depth)
        return parts

    def _root(self, entry: tar.Entry) -> None:
        if entry.type != tar.DIRECTORY:
            raise Malformed("the root is a directory")
        self._describe(self.places.root, entry)

    def _describe(self, directory: Directory, entry: tar.Entry) -> None:
        """*directory* has *entry* for its own."""
        directory.implied = False
        xattrs = {k: v for k, v in entry.xattrs.items() if not k.startswith(_OVERLAY)}
        for name in xattrs:
            _check_xattr(name)
        directory.metadata = Metadata(entry.mode, entry.uid, entry.gid, entry.mtime, xattrs)

    # What hides.

    def _whiteout(self, directory: Directory, name: bytes) -> None:
        if name == _OPAQUE:
            self._hide(directory)
            return
        if name.startswith(_OTHER_AUFS):
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in _DOTS:
            raise Malformed("a whiteout of no name")
        inside = directory.inside.get(hidden)
        if self._below == APART:
            if inside is not None:
                inside.replaced = True
                self.places.hide(inside)
                return
            try:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=self.places.fd(directory))
            except FileExistsError:
                return  # this layer's own, which hides it anyway
            self.whiteouts.append((directory, hidden))
        elif self._full:
            if hidden not in directory.made and (inside is None or not inside.holds()):
                try:
                    self._remove(directory, hidden)
                except FileNotFoundError:
                    pass
            elif inside is not None:
                self._bare(directory, inside)
                self._hide(inside)

    def _hide(self, directory: Directory) -> None:
        """Hide what lies below *directory*, and nothing that this layer made."""
        if self._below == APART:
            if directory.parent is None:
                raise NeedsParent  # overlayfs does not look for the mark on a root
            self.places.hide(directory)
        elif self._full:
            for text in os.listdir(self.places.fd(directory)):
                name = os.fsencode(text)
                inside = directory.inside.get(name)
                if inside is not None and (name in directory.made or inside.holds()):
                    self._bare(directory, inside)
                    self._hide(inside)
                elif name not in directory.made:
                    self._remove(directory, name)
                self.places.trim()

    def _bare(self, parent: Directory, inside: Directory) -> None:
        """What was only passed through becomes this layer's own, without the lower one's data."""
        if inside.name not in parent.made:
            parent.made.add(inside.name)
            _strip_xattrs(self.places.fd(inside))
            inside.metadata = Metadata(0o755, 0, 0, None, {})

    def _remove(self, directory: Directory, name: bytes) -> None:
        remove_at(self.places.fd(directory), name)
        self.places.forget(directory, name)

    def _clear(self, directory: Directory, name: bytes) -> bool:
        """Make place for an entry; gives whether something that hides the lower was there."""
        self._remove(directory, name)
        directory.made.discard(name)
        return self._below == APART

    # What is made.

    def _file(
        self, directory: Directory, name: bytes, entry: tar.Entry, body: Iterator[memoryview]
    ) -> None:
        at = self.places.fd(directory)
        try:
            fd = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=at)
        except FileExistsError:
            self._clear(directory, name)
            fd = os.open(name, _CREATE, entry.mode & 0o777, dir_fd=self.places.fd(directory))
        try:
            if entry.sparse is None:
                for piece in body:
                    written = os.write(fd, piece)
                    while written < len(piece):
                        written += os.write(fd, piece[written:])
            else:
                _write_sparse(fd, entry, body)
            if entry.uid or entry.gid or self._full:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
            if entry.size >= _EARLY:
                kernel.sync_file_range(fd, 0, 0)
        finally:
            os.close(fd)

    def _directory(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        replaced = False
        it = parent.inside.get(name)
        if it is None:
            at = self.places.fd(parent)
            try:
                os.mkdir(name, 0o755, dir_fd=at)
            except FileExistsError:
                if _is_directory(at, name):
                    it = self.places.enter(parent, name)
                else:
                    replaced = self._clear(parent, name)
                    os.mkdir(name, 0o755, dir_fd=self.places.fd(parent))
        if it is None:
            it = self.places.enter(parent, name)
        elif self._full:
            _strip_xattrs(self.places.fd(it))
        if replaced:
            it.replaced = True
            self.places.hide(it)
        self._describe(it, entry)

    def _symlink(self, directory: Directory, name: bytes, entry: tar.Entry) -> None:
        if not entry.link:
            raise Malformed("a symbolic link to nothing")
        at = self.places.fd(directory)
        try:
            os.symlink(entry.link, name, dir_fd=at)
        except FileExistsError:
            self._clear(directory, name)
            at = self.places.fd(directory)
            os.symlink(entry.link, name, dir_fd=at)
        self._own(at, name, entry)

    def _special(self, directory: Directory, name: bytes, entry: tar.Entry) -> None:
        device = 0
        if entry.type != tar.FIFO:
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise Malformed("a device number that there is not")
            device = os.makedev(entry.major, entry.minor)
            if entry.type == tar.CHARACTER and not device:
                raise Malformed("the character device 0:0 is an overlay's whiteout")
        mode = _SPECIAL[entry.type] | entry.mode
        at = self.places.fd(directory)
        try:
            os.mknod(name, mode, device, dir_fd=at)
        except FileExistsError:
            self._clear(directory, name)
            at = self.places.fd(directory)
            os.mknod(name, mode, device, dir_fd=at)
        self._own(at, name, entry)

    def _own(self, at: int, name: bytes, entry: tar.Entry) -> None:
        """Owner, mode and time of what cannot be opened."""
        os.chown(name, entry.uid, entry.gid, dir_fd=at, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=at)
        if entry.xattrs:
            os.fchdir(at)
            self._xattrs(name, entry)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _hard_link(self, directory: Directory, name: bytes, entry: tar.Entry) -> None:
        parts = self._split(entry.link, "the target of its link")
        if not parts:
            raise Malformed("a hard link to the root")
        target = parts.pop()
        places = self.places
        try:
            source = places.find(parts, create=False)
            found = os.stat(target, dir_fd=places.fd(source), follow_symlinks=False)
            if self._below == APART and is_whiteout(found):
                raise FileNotFoundError
        except (FileNotFoundError, NotADirectoryError):
            if self._below == APART:
                raise NeedsParent from None
            raise Malformed(f"a hard link to {_shown(entry.link)}, which is not there") from None
        if stat.S_ISDIR(found.st_mode):
            raise Malformed(f"a hard link to the directory {_shown(entry.link)}")
        for last in (False, True):
            try:
                os.link(
                    target,
                    name,
                    src_dir_fd=places.fd(source),
                    dst_dir_fd=places.fd(directory),
                    follow_symlinks=False,
                )
                return
            except FileExistsError:
                there = os.stat(name, dir_fd=places.fd(directory), follow_symlinks=False)
                if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                    return
                if last:
                    raise
                if directory.inside.get(name) in (source, *source.lineage()):
                    raise Malformed(f"a hard link in the place of {_shown(entry.link)}") from None
                self._clear(directory, name)

    def _xattrs(self, file: int | bytes, entry: tar.Entry) -> None:
        for name, value in entry.xattrs.items():
            if not name.startswith(_OVERLAY):
                _check_xattr(name)
                _set_xattr(file, name, value)


def _write_sparse(fd: int, entry: tar.Entry, body: Iterator[memoryview]) -> None:
    os.ftruncate(fd, entry.length)
    piece = memoryview(b"")
    for offset, length in entry.sparse or ():
        while length:
            if not piece:
                piece = next(body)
            written = os.pwrite(fd, piece[:length], offset)
            piece = piece[written:]
            offset += written
            length -= written


def _is_directory(at: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)


def _check_xattr(name: bytes) -> None:
    if not name or len(name) > 255 or b"\0" in name:
        raise Malformed("an extended attribute with a bad name")


def _set_xattr(file: int | bytes, name: bytes, value: bytes) -> None:
    """Set an attribute; what this file system or this sort of file has not is left out."""
    try:
        if isinstance(file, int):
            os.setxattr(file, name, value)
        else:
            os.setxattr(file, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        if error.errno == errno.EPERM and name.startswith(b"user."):
            return
        raise Malformed(f"the attribute {_shown(name)} cannot be set: {error.strerror}") from error


def _strip_xattrs(fd: int) -> None:
    """Take away the attributes of a directory that gets new ones."""
    for name in os.listxattr(fd):
        if not os.fsencode(name).startswith(_OVERLAY):
            try:
                os.removexattr(fd, name)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA):
                    raise


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))
