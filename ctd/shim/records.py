"""Records on disk: whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os

from ctd.protocols.shim import VERSION, exit_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def write(directory: str, name: str, record: Mapping[str, Any], durable: bool) -> None:
    """Write a record under its name, at once.

    :param durable: it is on disk when this returns, and survives a power loss.

    :raise OSError: it is not written, and what was there before is unchanged.
    """
    temporary = f"{directory}/.{name}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            data = json.dumps(record).encode() + b"\n"
            while data:
                data = data[os.write(fd, data) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, f"{directory}/{name}")
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_directory(directory)


def write_exit(directory: str, exit: Mapping[str, Any]) -> None:
    """Put a process's exit record on disk.  :param exit: all of it but the version."""
    write(directory, exit_file(exit["process"]), {"version": VERSION, **exit}, durable=True)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
