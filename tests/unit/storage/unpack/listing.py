"""What a directory tree looks like, as values that can be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any


def listing(root: str, times: bool = True) -> dict[str, Any]:
    """Every path with type, mode, owner, content, target, time, attributes and hard links."""
    found: dict[str, Any] = {}
    inodes: dict[tuple[int, int], str] = {}
    _walk(os.fsencode(root), b"", found, inodes, times)
    firsts = [what.get("same") for what in found.values()]
    for what in found.values():
        if firsts.count(what.get("same")) < 2:  # its links are hidden
            what.pop("same", None)
    return found


def _walk(
    root: bytes, at: bytes, found: dict[str, Any], inodes: dict[Any, str], times: bool
) -> None:
    path = os.path.join(root, at) if at else root
    it = os.lstat(path)
    name = os.fsdecode(at) or "."
    what: dict[str, Any] = {"mode": oct(it.st_mode), "owner": (it.st_uid, it.st_gid)}
    if times:
        what["mtime"] = it.st_mtime_ns
    xattrs = {
        n: os.getxattr(path, n, follow_symlinks=False)
        for n in sorted(os.listxattr(path, follow_symlinks=False))
    }
    if xattrs:
        what["xattrs"] = xattrs
    if stat.S_ISLNK(it.st_mode):
        what["link"] = os.readlink(path)
    elif stat.S_ISREG(it.st_mode):
        what["data"] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        what["size"] = it.st_size
    elif stat.S_ISCHR(it.st_mode) or stat.S_ISBLK(it.st_mode):
        what["device"] = it.st_rdev
    if not stat.S_ISDIR(it.st_mode) and it.st_nlink > 1:
        what["same"] = inodes.setdefault((it.st_dev, it.st_ino), name)
    found[name] = what
    if stat.S_ISDIR(it.st_mode):
        for below in sorted(os.listdir(path)):
            _walk(root, os.path.join(at, below) if at else below, found, inodes, times)
