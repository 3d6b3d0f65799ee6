"""Reading the kernel's files, without buffers that would stay."""

from __future__ import annotations

import os


def read_proc(path: str) -> bytes:
    """All of a file of procfs or cgroupfs.  :raise OSError: it cannot be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 14):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)
