"""Reading files of a root file system that is not mounted, without a mount that anyone can see.

A thread of its own gets a mount namespace of its own, mounts there, reads, and
ends; the kernel takes the namespace and its mounts away with the thread, even
if the process is killed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence

from ctd import kernel
from ctd.errors import ResourceExhausted
from ctd.model import Mount

#: The most bytes read of one file.
LIMIT = 4 << 20

_RESOLVE = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS


def read_files(mounts: Sequence[Mount], paths: Sequence[str], spot: str) -> list[bytes]:
    """The contents of *paths* as the root file system made of *mounts* shows them.

    Symbolic links are followed inside the root only.  What is not there, or is
    no regular file, is empty.

    :param spot: a directory to mount on, in the thread's own namespace.
    :raise ResourceExhausted: a file is larger than :data:`LIMIT`.
    """
    result: list[list[bytes] | BaseException] = []

    def run() -> None:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            for mount in mounts:
                _mount_read_only(mount, spot)
            root = os.open(spot, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                result.append([read_file(root, path) for path in paths])
            finally:
                os.close(root)
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            result.append(error)

    thread = threading.Thread(target=run, name="ctd-peek")
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def read_process_files(pid: int, paths: Sequence[str]) -> list[bytes]:
    """The contents of *paths* as the process *pid* sees them; empty as in :func:`read_files`.

    :raise OSError: there is no such process.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [read_file(root, path) for path in paths]
    finally:
        os.close(root)


def read_file(root: int, path: str) -> bytes:
    """The content of *path* below the directory *root*; empty if there is no such file."""
    try:
        fd = kernel.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK, resolve=_RESOLVE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENXIO):
            return b""
        raise
    try:
        if not os.path.isfile(f"/proc/self/fd/{fd}"):
            return b""
        content = b""
        while chunk := os.read(fd, LIMIT + 1 - len(content)):
            content += chunk
            if len(content) > LIMIT:
                raise ResourceExhausted(f"size of {path} in bytes", LIMIT)
        return content
    finally:
        os.close(fd)


def _mount_read_only(mount: Mount, spot: str) -> None:
    if mount.type != "overlay":
        kernel.mount(mount.source, spot, None, kernel.MS_BIND | kernel.MS_REC)
        return
    options = dict(o.partition("=")[::2] for o in mount.options)
    lower = options["lowerdir"]
    if upper := options.get("upperdir"):
        lower = f"{upper}:{lower}"
    if "\\" not in lower:
        # mount(2) takes one page of options: say the common part by the thread's own directory.
        common = os.path.commonpath([*lower.split(":"), spot])
        os.chdir(common)
        lower = ":".join(os.path.relpath(path, common) for path in lower.split(":"))
    kernel.mount("overlay", spot, "overlay", kernel.MS_RDONLY, f"lowerdir={lower}")
