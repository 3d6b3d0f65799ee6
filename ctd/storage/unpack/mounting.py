"""A snapshot's mounts made in this process's own mount namespace, to go with the process."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ctd import kernel

#: (type, source, options, target), as in :class:`ctd.model.Mount`.
Mounting = tuple[str, str, Sequence[str], str]

_PAGE = 4000


def mount_apart(mounts: Sequence[Mounting], spot: str) -> None:
    """Leave the host's mount namespace and make *mounts* at *spot*."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    for type, source, options, target in mounts:
        at = os.path.join(spot, target.lstrip("/"))
        flags, data = kernel.mount_options(options)
        if type == "overlay" and len(data) > _PAGE:
            _mount_many(options, at)
            continue
        kernel.mount(source, at, type, flags, data)
        if flags & kernel.MS_BIND and flags & kernel.MS_RDONLY:
            kernel.mount(None, at, None, flags | kernel.MS_REMOUNT, "")


def _mount_many(options: Sequence[str], target: str) -> None:
    """An overlay of more layers than a page of options can name."""
    given: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            for layer in re.findall(r"(?:[^:\\]|\\.)+", value):
                given.append("lowerdir+=" + re.sub(r"\\(.)", r"\1", layer))
        else:
            given.append(option)
    mount = kernel.detached("overlay", given)
    kernel.attach(mount, target)
    os.close(mount)
