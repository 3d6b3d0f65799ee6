"""Copying a directory tree with everything a root file system may have.

Owners, modes, times to the nanosecond, extended attributes, hard links,
holes, devices, fifos and sockets.  Trees of any depth: see
:mod:`ctd.storage.trees`.  For worker threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from ctd.storage.trees import Cursor, cursor, remove_tree

_FICLONE = 0x40049409
_CHUNK = 1 << 30
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}
_BLOCK = 1 << 20


def copy_tree(source: Path, target: Path, links: Path) -> None:
    """Copy the directory *source* to *target*, which is not there yet.

    :param links: a directory to make for the while, on the same file system:
        each file with several names has one there, from which the others are
        linked.
    """
    target.mkdir(0o700)
    links.mkdir(0o700)
    with cursor(source) as old, cursor(target) as new, cursor(links) as linked:
        _Copy(old, new, linked.fd).run()
    remove_tree(links)


class _Copy:
    def __init__(self, old: Cursor, new: Cursor, links: int) -> None:
        self._old = old
        self._new = new
        self._links = links
        self._linked: set[int] = set()

    def run(self) -> None:
        top = os.fstat(self._old.fd)
        waiting = [("", top, os.listdir(self._old.fd))]
        while waiting:
            name, found, below = waiting[-1]
            if not below:
                waiting.pop()
                if waiting:
                    self._old.up()
                    self._new.up()
                    self._dress(name, found)
                continue
            name = below.pop()
            found = os.stat(name, dir_fd=self._old.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.mkdir(name, 0o700, dir_fd=self._new.fd)
                self._old.down(name)
                self._new.down(name)
                waiting.append((name, found, os.listdir(self._old.fd)))
            elif found.st_nlink > 1:
                self._link(name, found)
            else:
                self._copy(name, found)
        self._dress(".", top)

    def _link(self, name: str, found: os.stat_result) -> None:
        first = str(found.st_ino)
        if found.st_ino in self._linked:
            os.link(
                first,
                name,
                src_dir_fd=self._links,
                dst_dir_fd=self._new.fd,
                follow_symlinks=False,
            )
            return
        self._copy(name, found)
        os.link(name, first, src_dir_fd=self._new.fd, dst_dir_fd=self._links, follow_symlinks=False)
        self._linked.add(found.st_ino)

    def _copy(self, name: str, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode):
            self._copy_file(name, found.st_size)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._old.fd), name, dir_fd=self._new.fd)
        else:
            os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=self._new.fd)
        self._dress(name, found)

    def _dress(self, name: str, found: os.stat_result) -> None:
        """Owner, then mode and attributes, which a change of owner would clear, then times."""
        os.chown(name, found.st_uid, found.st_gid, dir_fd=self._new.fd, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=self._new.fd)
        old, new = (f"/proc/self/fd/{at.fd}/{name}" for at in (self._old, self._new))
        for attribute in os.listxattr(old, follow_symlinks=False):
            value = os.getxattr(old, attribute, follow_symlinks=False)
            os.setxattr(new, attribute, value, follow_symlinks=False)
        os.utime(
            name,
            ns=(found.st_atime_ns, found.st_mtime_ns),
            dir_fd=self._new.fd,
            follow_symlinks=False,
        )

    def _copy_file(self, name: str, size: int) -> None:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        source = os.open(name, os.O_RDONLY | flags, dir_fd=self._old.fd)
        try:
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            target = os.open(name, made | flags, 0o600, dir_fd=self._new.fd)
            try:
                copy_data(source, target, size)
            finally:
                os.close(target)
        finally:
            os.close(source)


def copy_data(source: int, target: int, size: int) -> None:
    """Make *target*, which is empty, have the *size* bytes of *source*, holes too."""
    if size == 0:
        return
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here
                return
            raise
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        _copy_range(source, target, at, end)
        at = end


def _copy_range(source: int, target: int, at: int, end: int) -> None:
    try:
        while at < end:
            copied = os.copy_file_range(source, target, min(end - at, _CHUNK), at, at)
            if copied == 0:
                return
            at += copied
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        while at < end and (data := os.pread(source, min(_BLOCK, end - at), at)):
            at += os.pwrite(target, data, at)
