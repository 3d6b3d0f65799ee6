"""The standard streams of a process in the foreground: fifos in a private directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re

from ctd.cli.copying import Copier
from ctd.cli.errors import CommandFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The most a pipe holds without privileges (pipe(7)).
_PIPE_SIZE = 1 << 20


class Streams:
    """Three fifos, or two: ours at one end, the shim's at the other.

    The directory is gone as soon as both ends are open, so that nothing stays
    even if this process is killed.  The daemon is not in between: output goes
    on flowing while it is down.

    :param interactive: whether our standard input is passed on.
    """

    def __init__(self, interactive: bool, environ: Mapping[str, str] = os.environ) -> None:
        self._wakeup, self._ended = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._directory: str | None = _private_directory(environ)
        self._ours: dict[str, int] = {}
        self._copiers: list[Copier] = []
        try:
            for name in ("stdin", "stdout", "stderr") if interactive else ("stdout", "stderr"):
                path = f"{self._directory}/{name}"
                os.mkfifo(path, 0o600)
                # Opening a fifo for both never waits, and holds it open for the shim.
                mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
                self._ours[name] = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise CommandFailed(f"cannot make fifos: {error}") from None
        self.stdio = {
            name: f"fifo://{self._directory}/{name}" if name in self._ours else "null"
            for name in ("stdin", "stdout", "stderr")
        }
        self.stdio["stdout"] += "?unread=drop"
        self.stdio["stderr"] += "?unread=drop"

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when a stream has ended since :meth:`acknowledge`, for poll(2)."""
        return self._wakeup

    def acknowledge(self) -> None:
        """Take note of what :meth:`fileno` told."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 64)

    def are_of(self, record: Mapping[str, Any]) -> bool:
        """Whether *record* is of the process these fifos were made for."""
        stdio = record.get("stdio")
        return isinstance(stdio, dict) and stdio.get("stdout") == self.stdio["stdout"]

    def begin(self) -> None:
        """Copy from now on: the shim has its ends open."""
        if "stdin" in self._ours:
            # A writer only: the process's end of the pipe may break, and ours may end it.
            writer = os.open(f"{self._directory}/stdin", os.O_WRONLY | os.O_CLOEXEC)
            os.close(self._ours.pop("stdin"))
            Copier(os.dup(0), writer, lambda: os.close(writer)).start()
        self._remove_directory()
        for target, name in enumerate(("stdout", "stderr"), 1):
            fifo = self._ours.pop(name)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            self._copiers.append(Copier(fifo, target, self._one_ended))
        for copier in self._copiers:
            copier.start()

    @property
    def ended(self) -> bool:
        """Whether all output has been passed on."""
        return all(copier.done for copier in self._copiers)

    @property
    def broken(self) -> bool:
        """Whether nobody takes our output any more."""
        return any(copier.broken for copier in self._copiers)

    def errors(self) -> list[OSError]:
        """What our outputs failed with, other than that nobody reads them."""
        return [copier.error for copier in self._copiers if copier.error]

    def idle(self) -> float:
        """For how many seconds no output has come, on any of the streams still open."""
        return min((copier.idle() for copier in self._copiers if not copier.done), default=0.0)

    def close(self) -> None:
        """Remove what was made.  Copiers that still wait for bytes are left to the exit."""
        for fd in self._ours.values():
            os.close(fd)
        self._ours.clear()
        self._remove_directory()

    def _one_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._ended, b"x")

    def _remove_directory(self) -> None:
        if self._directory is None:
            return
        for name in ("stdin", "stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._directory}/{name}")
        os.rmdir(self._directory)
        self._directory = None


def _private_directory(environ: Mapping[str, str]) -> str:
    """A new directory that only we may enter, where files are short-lived."""
    name = f"ctd-{os.getpid()}-{os.urandom(6).hex()}"
    for parent in (environ.get("XDG_RUNTIME_DIR"), "/run", "/tmp"):
        if parent and re.fullmatch(r"/[\w./-]+", parent, re.ASCII):  # as it is in a URI
            with contextlib.suppress(OSError):
                os.mkdir(f"{parent}/{name}", 0o700)
                return f"{parent}/{name}"
    raise CommandFailed("no directory for fifos: /run and /tmp cannot be written to")
