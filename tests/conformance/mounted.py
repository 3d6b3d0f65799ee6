"""Looking into mounts, in a child with a mount namespace of its own."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ctd import kernel
from ctd.model import Mount


def inside(mounts: Sequence[Mount], look: Callable[[str], Any]) -> Any:
    """What *look* gives in a child where *mounts* are at the directory it is called with.

    The mounts are gone with the child.  What it raises is raised here as text.
    """
    root = tempfile.mkdtemp()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            answer = pickle.dumps(_look(mounts, root, look))
            status = 0
        except BaseException:  # noqa: BLE001 (told to the parent)
            answer = traceback.format_exc().encode()
        finally:
            while answer:
                answer = answer[os.write(writing, answer) :]
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 (a descriptor)
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    os.rmdir(root)
    if status:
        raise AssertionError(answer.decode())
    return pickle.loads(answer)


def _look(mounts: Sequence[Mount], root: str, look: Callable[[str], Any]) -> Any:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    for mount in mounts:
        if mount.type == "overlay":
            _mount_overlay(mount.options, os.path.join(root, mount.target.lstrip("/")))
            continue
        flags, data = kernel.mount_options(mount.options)
        target = os.path.join(root, mount.target.lstrip("/"))
        kernel.mount(mount.source, target, mount.type, flags, data)
        if flags & kernel.MS_BIND and flags & kernel.MS_RDONLY:
            kernel.mount(None, target, None, flags | kernel.MS_REMOUNT, "")
    return look(root)


def _mount_overlay(options: Sequence[str], target: str) -> None:
    """As fsconfig(2) wants it, which has no bound on the number of layers."""
    given: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            layers = re.findall(r"((?:[^:\\]|\\.)+)", value)
            given += ["lowerdir+=" + re.sub(r"\\(.)", r"\1", layer) for layer in layers]
        else:
            given.append(option)
    mount = kernel.detached("overlay", given)
    kernel.attach(mount, target)
    os.close(mount)
