"""What a layer unpacked apart from its parent learns of it in the end.

A directory without an entry of its own looks as it does below; whiteouts of
what is not there go, since an overlay shows them in directories that only the
upper layer has.  If the layer's paths mean something else on the parent, it
has to be unpacked again on the full view.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from ctd.storage.unpack.faults import Malformed, NeedsParent
from ctd.storage.unpack.places import OPAQUE, Directory, Metadata, Places, is_whiteout

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Below:
    """A directory of the layers below: its parts, topmost first; none if there is no such."""

    def __init__(self, parts: Sequence[int]) -> None:
        self._parts = parts

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in self._parts:
            os.close(fd)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def find(self, name: bytes) -> os.stat_result | None:
        """What *name* is here, or None; a whiteout is nothing."""
        for fd in self._parts:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            return None if is_whiteout(found) else found
        return None

    def step(self, name: bytes) -> Below:
        """The directory *name* in this one."""
        parts = []
        for fd in self._parts:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if not stat.S_ISDIR(found.st_mode):
                    break  # a whiteout, or a file that hides what is under it
                parts.append(os.open(name, _OPEN, dir_fd=fd))
                if _is_opaque(parts[-1]):
                    break
        return Below(parts)

    def metadata(self) -> Metadata:
        """Its metadata: its topmost part's."""
        fd = self._parts[0]
        found = os.fstat(fd)
        xattrs = {
            os.fsencode(name): os.getxattr(fd, name)
            for name in os.listxattr(fd)
            if not name.startswith(("trusted.overlay.", "user.overlay."))
        }
        mode = stat.S_IMODE(found.st_mode)
        return Metadata(mode, found.st_uid, found.st_gid, found.st_mtime_ns, xattrs)


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE) == b"y"
    except OSError:
        return False


def settle(
    places: Places, whiteouts: Sequence[tuple[Directory, bytes]], layers: Sequence[int]
) -> None:
    """Settle what depended on the parent.

    :param layers: descriptors of its layers' directories, topmost first; none
        if there is no parent.  They are closed.
    :raise NeedsParent: the layer means something else on it.
    :raise Malformed: an entry's path leads through what is no directory below.
    """
    hidden: dict[Directory, list[bytes]] = {}
    for directory, name in whiteouts:
        hidden.setdefault(directory, []).append(name)
    wanted = {places.root}
    for directory in places.root.walk():
        if directory.was_implied or directory in hidden:
            wanted.update(directory.lineage())
    line: list[tuple[Below, Iterator[Directory]]] = []

    def enter(directory: Directory, below: Below) -> None:
        if directory.implied and below:
            directory.metadata = below.metadata()
        if directory.opaque:
            below.close()
            below = Below(())
        line.append((below, iter([d for d in directory.inside.values() if d in wanted])))
        for name in hidden.get(directory, ()):
            if below.find(name) is None:
                _show(places, directory, name)

    enter(places.root, Below(layers))
    try:
        while line:
            below, rest = line[-1]
            inside = next(rest, None)
            if inside is None:
                below.close()
                line.pop()
                continue
            _check(inside, below)
            enter(inside, Below(()) if inside.replaced else below.step(inside.name))
    finally:
        for below, _ in line:
            below.close()


def _check(directory: Directory, above: Below) -> None:
    if not directory.was_implied or directory.replaced:
        return
    found = above.find(directory.name)
    if found is None or stat.S_ISDIR(found.st_mode):
        return
    if stat.S_ISLNK(found.st_mode):
        raise NeedsParent
    raise Malformed(f"{os.fsdecode(directory.path)!r} is no directory", directory.path)


def _show(places: Places, directory: Directory, name: bytes) -> None:
    places.trim()
    at = places.fd(directory)
    try:
        if is_whiteout(os.stat(name, dir_fd=at, follow_symlinks=False)):
            os.unlink(name, dir_fd=at)
    except FileNotFoundError:
        pass
