"""Root file systems, in a mount namespace of the shim's own."""

from __future__ import annotations

import contextlib
import errno
import os
import re

from ctd import kernel
from ctd.shim.proc import read_proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

#: mount(2) takes a page of options, with the NUL at its end.
_PAGE = 4096

# Compiled once, in the template: compiling is memory to each shim that does it.
_OPTION = re.compile(r"(?:[^,\\]|\\.)+", re.DOTALL)


def leave_namespace() -> None:
    """Have an own mount namespace, in which the working directory's mount is a slave.

    Mounts of the host still come in everywhere; those made below the working
    directory do not get out.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, _mount_point("."), None, kernel.MS_SLAVE)


def mount_all(mounts: Sequence[dict[str, Any]], root: str) -> None:
    """Mount what makes up a root file system.  What is there is unmounted first.

    :raise OSError: one failed; none is left.
    """
    unmount_all(root)
    try:
        for mount in mounts:
            _mount(mount, _target(root, mount.get("target") or ""))
    except OSError:
        unmount_all(root)
        raise


def unmount_all(root: str) -> None:
    """Unmount whatever is on *root*, with all below it.  Can be repeated."""
    with contextlib.suppress(OSError):  # EINVAL: nothing is mounted there any more
        while True:
            kernel.umount(root, kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)


def _target(root: str, inside: str) -> str:
    """The path to mount on; *inside* is resolved as if *root* were ``/``."""
    if not inside.strip("/"):
        return root
    base = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = kernel.openat2(base, inside, os.O_PATH, resolve=kernel.RESOLVE_IN_ROOT)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(base)


def _mount(mount: dict[str, Any], target: str) -> None:
    options = [str(option) for option in mount.get("options") or ()]
    flags, data = kernel.mount_options(options)
    fstype, source = str(mount["type"]), str(mount["source"])
    if fstype == "bind" or flags & kernel.MS_BIND:
        _bind(source, target, flags | kernel.MS_BIND, data)
    elif fstype == "overlay" and len(os.fsencode(data)) >= _PAGE:
        _long_overlay(source, target, flags, data)
    else:
        kernel.mount(source, target, fstype, flags, data)


def _bind(source: str, target: str, flags: int, data: str) -> None:
    kernel.mount(source, target, None, flags & (kernel.MS_BIND | kernel.MS_REC), "")
    changes = flags & ~(kernel.MS_BIND | kernel.MS_REC)
    if changes:
        kernel.mount(None, target, None, changes | kernel.MS_REMOUNT | kernel.MS_BIND, data)


def split_options(data: str) -> list[str]:
    """Options at their commas, but not at escaped ones."""
    return _OPTION.findall(data)


def _long_overlay(source: str, target: str, flags: int, data: str) -> None:
    """Mount an overlay whose options are longer than mount(2) takes.

    Relative to a directory they may be short enough, which all kernels can do;
    else each layer is given by itself, which Linux 6.5 can.
    """
    options = split_options(data)
    layers: list[str] = []
    others = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            layers = kernel.split_layers(value)
        else:
            others.append(option)
    directory, shorter = shortened(layers)
    short = ",".join([f"lowerdir={':'.join(shorter)}", *others])
    if len(os.fsencode(short)) < _PAGE:
        _mount_from(directory, source, os.path.abspath(target), flags, short)
        return
    each = [f"lowerdir+={kernel.unescaped(layer)}" for layer in layers]
    attributes = kernel.MOUNT_ATTR_RDONLY if flags & kernel.MS_RDONLY else 0
    fd = kernel.detached("overlay", [f"source={source}", *each, *others], attributes)
    try:
        kernel.attach(fd, target)
    finally:
        os.close(fd)


def shortened(layers: Sequence[str]) -> tuple[str, list[str]]:
    """A directory, and paths relative to it that are the same as *layers*."""
    common = os.path.commonpath(layers) if layers else "/"
    if "\\" in common:
        return "/", list(layers)
    prefix = common.rstrip("/") + "/"
    if any(not layer.startswith(prefix) for layer in layers):
        return "/", list(layers)
    return common, [layer[len(prefix) :] for layer in layers]


def _mount_from(directory: str, source: str, target: str, flags: int, data: str) -> None:
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        kernel.mount(source, target, "overlay", flags, data)
    finally:
        os.fchdir(here)
        os.close(here)


def _mount_point(path: str) -> str:
    """Where the mount that *path* is on is mounted."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _, _, rest = read_proc(f"/proc/self/fdinfo/{fd}").partition(b"mnt_id:")
    finally:
        os.close(fd)
    number = rest.split(None, 1)[0]
    for line in read_proc("/proc/self/mountinfo").splitlines():
        fields = line.split(b" ", 5)
        if fields[0] == number:
            return os.fsdecode(_plain(fields[4]))
    raise OSError(errno.ENOENT, "no mount point", path)


def _plain(octal: bytes) -> bytes:
    """A path of mountinfo without its escapes, which are a backslash and three octal digits."""
    first, *others = octal.split(b"\\")
    return first + b"".join(bytes([int(piece[:3], 8)]) + piece[3:] for piece in others)
