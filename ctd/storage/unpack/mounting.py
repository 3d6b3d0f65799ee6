"""A snapshot made the root directory, in a mount namespace that ends with the process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ctd import kernel

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PAGE = 4000


def enter(mounts: Sequence[Mapping[str, Any]]) -> int:
    """Leave the host's mounts, make a snapshot's, and have them as the root directory.

    :param mounts: the one mount of an active snapshot, a :class:`ctd.model.Mount` as JSON has it.
    :return: a descriptor of the root directory.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    (mount,) = mounts
    if mount["type"] == "overlay":
        root = _overlay(mount["options"])
    else:
        root = os.open(mount["source"], _OPEN)
    os.fchdir(root)
    os.chroot(".")
    return root


def _overlay(options: Sequence[str]) -> int:
    """An overlay, mounted on its own upper directory."""
    [upper] = [o.partition("=")[2] for o in options if o.startswith("upperdir=")]
    target = kernel.unescaped(upper)
    flags, data = kernel.mount_options(options)
    if len(os.fsencode(data)) < _PAGE:
        kernel.mount("overlay", target, "overlay", flags, data)
    else:  # mount(2) takes a page of options
        mount = kernel.detached("overlay", _apart(options))
        kernel.attach(mount, target)
        os.close(mount)
    return os.open(target, _OPEN)


def _apart(options: Sequence[str]) -> list[str]:
    """The same options with each lower directory by itself."""
    given: list[str] = []
    for option in options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            layers = kernel.split_layers(value)
            given += [f"lowerdir+={kernel.unescaped(layer)}" for layer in layers]
        else:
            given.append(option)
    return given
