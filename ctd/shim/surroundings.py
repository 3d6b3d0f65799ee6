"""What a shim makes of the process it was forked as."""

from __future__ import annotations

import contextlib
import os
import signal

from ctd import kernel
from ctd.protocols.shim import LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OOM_SCORE = "/proc/self/oom_score_adj"

#: A shim weighs little and holds much: the kernel should look elsewhere first.
_OOM_SCORE_OF_A_SHIM = b"-999"

#: What is sent to a whole service or a terminal's group must not end containers.
#: Whatever is spawned gets the default of these back.
IGNORED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGXFSZ),
)

_ordinary_score: bytes | None = None


def prepare() -> None:
    """What shims inherit from the template; done there once, it costs a shim no memory."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o022)
    _lower_oom_score()


def settle(directory: str, keep: int) -> None:
    """Make this process a shim's: its own session, a sub-reaper, nothing inherited.

    :param directory: becomes the working directory.
    :param keep: the only descriptor that stays, besides the standard ones.
    """
    os.setsid()
    os.chdir(directory)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for target, fd in enumerate((null, null, log)):
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != keep:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(fd)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_NAME, b"ctd-shim")


@contextlib.contextmanager
def ordinary_oom_score() -> Iterator[None]:
    """Inside, what is spawned does not inherit the shim's own score."""
    if _ordinary_score is None:
        yield
        return
    _write_oom_score(_ordinary_score)
    try:
        yield
    finally:
        _write_oom_score(_OOM_SCORE_OF_A_SHIM)


def _lower_oom_score() -> None:
    global _ordinary_score
    try:
        with open(_OOM_SCORE, "rb") as file:  # noqa: PTH123
            ordinary = file.read().strip()
        _write_oom_score(_OOM_SCORE_OF_A_SHIM)
    except OSError:
        return  # without privileges a score cannot be lowered
    _ordinary_score = ordinary


def _write_oom_score(score: bytes) -> None:
    fd = os.open(_OOM_SCORE, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, score)
    finally:
        os.close(fd)
