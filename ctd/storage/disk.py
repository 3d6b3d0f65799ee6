"""Small steps on disk, for worker threads."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctd.errors import ResourceExhausted

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def full_disk_is_typed() -> Iterator[None]:
    """Make "no space left" and "over quota" a :class:`ResourceExhausted`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceExhausted("space on disk") from error
        raise


def sync_directory(path: Path) -> None:
    """Put *path*'s entries on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make *path* and those above it, for their owner alone, on disk; there already is fine."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(0o700, exist_ok=True)
    sync_directory(path.parent)


def boot_id() -> str:
    """What this boot of the machine is called; another after each boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
