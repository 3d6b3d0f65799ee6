"""Signals that come to this process, kept to be passed on to another."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from ctd.cli.errors import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: Those that people and programs send to a process on purpose; not those the
#: kernel sends for what the process itself does, and not those that stop it.
FORWARDED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGIO, signal.SIGPWR),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

#: Those that end a command that has nobody yet to pass them on to.
_ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})

#: So many of SIGINT and SIGTERM within so many seconds mean: now.
_INSISTING = (3, 2.0)

_NEVER, _WHEN_INSISTED, _AT_ONCE = range(3)


class _Insistence:
    """Notices that SIGINT and SIGTERM come again and again."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def grows(self, number: int) -> bool:
        """Whether this signal is one too many."""
        if number not in (signal.SIGINT, signal.SIGTERM):
            return False
        count, seconds = _INSISTING
        now = time.monotonic()
        self._times = [at for at in self._times if now - at < seconds] + [now]
        return len(self._times) >= count


class Signals:
    """Catches :data:`FORWARDED` while it is entered; those ignored before stay ignored.

    They wait to be passed on.  Only who insists gets :class:`Interrupted` raised
    wherever we are: nothing that hangs can hold the command against its user.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._raising = _WHEN_INSISTED
        self._former: dict[int, Any] = {}
        self._coming, self._taken = _Insistence(), _Insistence()
        self._insisted = False
        self._pending: list[int] = []

    def __enter__(self) -> Signals:
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._caught)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)

    def fileno(self) -> int:
        """Readable when a signal has come, for poll(2)."""
        return self._reading

    def pending(self) -> list[int]:
        """The signals that have come, in order; who passes one on takes it out.

        From the third SIGINT or SIGTERM in short order on they are SIGKILL.
        """
        with contextlib.suppress(BlockingIOError):
            caught = [number for number in os.read(self._reading, 256) if number in self._former]
            for number in caught:
                self._insisted = self._insisted or self._taken.grows(number)
                self._pending.append(signal.SIGKILL if self._insisted else number)
        return self._pending

    def check(self) -> None:
        """:raise Interrupted: a signal has come that is to end the command."""
        for number in self.pending():
            if number in _ENDING or number == signal.SIGKILL:
                raise Interrupted(number)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal that is to end the command raises :class:`Interrupted` at once."""
        self.check()
        with self._mode(_AT_ONCE):
            yield

    @contextlib.contextmanager
    def passed_on(self) -> Iterator[None]:
        """Inside, no signal raises anything: somebody sees to those that are pending."""
        with self._mode(_NEVER):
            yield

    @contextlib.contextmanager
    def _mode(self, raising: int) -> Iterator[None]:
        former, self._raising = self._raising, raising
        try:
            yield
        finally:
            self._raising = former

    def pause(self, seconds: float) -> None:
        """Wait; signals that come stay pending.  :raise Interrupted: somebody insists."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        poll.poll(seconds * 1000)
        self.pending()
        if self._insisted:
            raise Interrupted(signal.SIGINT)

    def _caught(self, number: int, _: object) -> None:
        insisted = self._coming.grows(number)
        if (self._raising == _AT_ONCE and number in _ENDING) or (
            self._raising == _WHEN_INSISTED and insisted
        ):
            raise Interrupted(number)
