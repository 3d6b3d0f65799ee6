"""Reaping: every child is waited for, and none is ever taken for another.

A shim has children that it spawned (the OCI runtime), that a runtime left to it
(processes of the container, known by a pid file) and that it never heard of
(grandchildren whose parent died).  While the runtime works, a child we never
heard of may be the very process whose pid we are about to read; so it stays a
zombie, which keeps its pid from being used again, until nothing is under way.
"""

from __future__ import annotations

import os
import signal

from ctd.shim.loop import READABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from ctd.shim.loop import Loop
    from ctd.shim.tasks import Wait


class Children:
    """Tells who waits for a child how it ended, as wait(2) has it."""

    def __init__(self, loop: Loop) -> None:
        self._ended: dict[int, Callable[[int], None]] = {}
        self._held: set[int] = set()
        self._under_way = 0
        self._reaping = False
        self._again = False
        self._loop = loop
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        loop.watch(self._wakeup, READABLE, self._woken)

    def is_child(self, pid: int) -> bool:
        """Whether *pid* is a child of ours, alive or not yet reaped."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call *ended* once with *pid*'s status; a child that has ended already too.

        The call comes from :meth:`reap`, never from in here.
        """
        self._ended[pid] = ended
        self._look_again()

    def ended(self, pid: int) -> Wait:
        """Wait for a child's end; gives its status."""

        def wait(resume: Callable[[Any], None]) -> None:
            self.watch(pid, resume)

        return wait

    def hold(self, pid: int) -> None:
        """Do not reap *pid* until it is released, so that its end is told afterwards."""
        self._held.add(pid)

    def release(self, pid: int) -> None:
        """Reap *pid* again."""
        self._held.discard(pid)
        self._look_again()

    def operation(self) -> Operation:
        """A context: inside, no child that nobody watches is reaped."""
        return Operation(self)

    def begin(self) -> None:
        """The OCI runtime begins to work; see :meth:`operation`."""
        self._under_way += 1

    def end(self) -> None:
        """The OCI runtime is done, and what it left is watched."""
        self._under_way -= 1
        self._look_again()

    def reap(self) -> None:
        """Reap all children that have ended and may be reaped; callbacks are made in here."""
        if self._reaping:
            self._again = True
            return
        self._reaping = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._reap_known()
                if not self._under_way:
                    self._reap_unknown()
        finally:
            self._reaping = False

    def _look_again(self) -> None:
        """SIGCHLD may have come before somebody began to watch."""
        self._again = True
        if not self._reaping:
            self._loop.after(0, self.reap)

    def _reap_known(self) -> None:
        for pid in list(self._ended):
            if pid not in self._held and pid in self._ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self._again = True
                    self._ended.pop(pid)(status)

    def _reap_unknown(self) -> None:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                ended = self._ended.pop(pid, None)
                if ended is not None:
                    self._again = True
                    ended(status)
                    return
        except ChildProcessError:
            pass

    def _woken(self, _: int) -> None:
        try:
            os.read(self._wakeup, 512)
        except BlockingIOError:
            pass
        self.reap()


class Operation:
    """The time in which the OCI runtime works; see :meth:`Children.operation`."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def __enter__(self) -> None:
        self._children.begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._children.end()
