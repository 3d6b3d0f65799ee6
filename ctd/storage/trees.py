"""Walking, removing and measuring directory trees of any depth, by descriptor.

What is in a snapshot was made by others: names that are not text, links that
lead out, directories deeper than a path can be long or than there are
descriptors.  So no path is ever joined: a :class:`Cursor` moves one
descriptor from directory to directory and follows no symbolic link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ctd.errors import FailedPrecondition
from ctd.kernel import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


class Cursor:
    """A directory descriptor that moves through a tree; one descriptor at any depth.

    :ivar fd: the directory it is at.
    """

    def __init__(self, root: str | Path) -> None:
        self.fd = os.open(root, _DIRECTORY)
        self._above: list[tuple[int, int]] = []

    def down(self, name: str) -> None:
        """Go into *name*.  :raise OSError: it is no directory, or a mount (EXDEV)."""
        below = openat2(self.fd, name, _DIRECTORY, resolve=_INSIDE)
        self._above.append(self._here())
        os.close(self.fd)
        self.fd = below

    def up(self) -> None:
        """Go back to where :meth:`down` was called."""
        above = os.open("..", _DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = above
        if self._here() != self._above.pop():
            raise FailedPrecondition("directory", "..", "moved while it was being walked")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def _here(self) -> tuple[int, int]:
        here = os.fstat(self.fd)
        return here.st_dev, here.st_ino


@contextmanager
def cursor(root: str | Path) -> Iterator[Cursor]:
    """A cursor at *root*, closed in the end."""
    it = Cursor(root)
    try:
        yield it
    finally:
        it.close()


def remove_tree(root: str | Path) -> None:
    """Remove *root* and all that is below it; nothing there is fine.  Can be repeated.

    :raise OSError: something below it cannot be removed, for example a mount.
    """
    try:
        at = Cursor(root)
    except FileNotFoundError:
        return
    try:
        waiting = [("", _clear(at.fd))]
        while len(waiting) > 1 or waiting[0][1]:
            name, below = waiting[-1]
            if below:
                at.down(below[-1])
                waiting.append((below.pop(), _clear(at.fd)))
                continue
            waiting.pop()
            at.up()
            os.rmdir(name, dir_fd=at.fd)
    finally:
        at.close()
    os.rmdir(root)


def _clear(fd: int) -> list[str]:
    """Remove what is not a directory from *fd*, and give the directories' names."""
    directories = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return directories


@attrs.frozen
class Measure:
    """What a tree holds.  :ivar size: bytes on disk; hard links count once."""

    size: int
    inodes: int


def measure(root: str | Path) -> Measure:
    """Measure *root* and all below it; nothing there is nothing."""
    try:
        at = Cursor(root)
    except FileNotFoundError:
        return Measure(0, 0)
    try:
        size, inodes, linked = os.fstat(at.fd).st_blocks * 512, 1, set[tuple[int, int]]()
        waiting = [_names(at.fd)]
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                if waiting:
                    at.up()
                continue
            name = waiting[-1].pop()
            found = os.stat(name, dir_fd=at.fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                at.down(name)
                waiting.append(_names(at.fd))
            elif found.st_nlink > 1:
                if (found.st_dev, found.st_ino) in linked:
                    continue
                linked.add((found.st_dev, found.st_ino))
            size += found.st_blocks * 512
            inodes += 1
    finally:
        at.close()
    return Measure(size, inodes)


def _names(fd: int) -> list[str]:
    return os.listdir(fd)
