"""The unpack worker: has everything imported, and forks a process for each layer.

Run as ``python -I -m ctd.storage.unpack.worker``.  It ends, and with it all that
it works on, when its standard input ends.  :mod:`ctd.storage.unpack.words` has
what is said.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
from typing import Any

from ctd import kernel
from ctd.storage.unpack import words
from ctd.storage.unpack.job import Job

_FILES = 1 << 18


class Worker:
    """Forks jobs, passes on what is said to them, and tells how they ended."""

    def __init__(self) -> None:
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._jobs: dict[int, tuple[int, int]] = {}  # number: pid, commands
        self._ends: dict[int, tuple[int, int]] = {}  # pidfd: number, pid

    def run(self) -> None:
        """Work until standard input ends."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._ends:
                    self._ended(fd)
                elif not self._heard():
                    return

    def _heard(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            number = message["job"]
            if "begin" in message:
                self._begin(number, message["begin"])
            elif number in self._jobs:
                pid, commands = self._jobs[number]
                if "cancel" in message:
                    os.kill(pid, signal.SIGKILL)  # not reaped yet: it is there
                else:
                    with contextlib.suppress(BrokenPipeError):  # it has just ended
                        os.write(commands, line + b"\n")
        return bool(data)

    def _begin(self, number: int, begin: dict[str, Any]) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: just now
            os.close(reader)
            os.close(writer)
            words.say(1, job=number, ended=1)
            return
        if not pid:
            status = 1
            try:
                os.close(writer)
                for _, commands in self._jobs.values():
                    os.close(commands)
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == me:
                    Job(number, begin, reader, 1).run()
                    status = 0
            finally:
                os._exit(status)
        os.close(reader)
        pidfd = os.pidfd_open(pid)
        self._jobs[number] = (pid, writer)
        self._ends[pidfd] = (number, pid)
        self._poll.register(pidfd, select.POLLIN)

    def _ended(self, pidfd: int) -> None:
        number, pid = self._ends.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _, commands = self._jobs.pop(number)
        os.close(commands)
        words.say(1, job=number, ended=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Be the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's; the daemon ends us
    # Settling holds a descriptor for each layer and level of a path.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FILES), hard))
    gc.collect()
    gc.freeze()
    Worker().run()


if __name__ == "__main__":
    main()
