"""Running the OCI runtime: its commands, its logs, and what its errors mean."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import termios

from ctd.protocols.shim import (
    COMMAND_NOT_EXECUTABLE,
    COMMAND_NOT_FOUND,
    RUNTIME_FAILURE,
    Failure,
)
from ctd.shim.surroundings import IGNORED, ordinary_oom_score

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctd.shim.children import Children
    from ctd.shim.stdio import Streams
    from ctd.shim.tasks import Task

#: No more of a log or of standard error is looked at: the last words count.
_TAIL = 16384

#: Variables that speak to a service's first process, not to what it runs.
_NOT_PASSED_ON = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC")


# runc: exec: "sh": executable file not found in $PATH
#       exec: "/x": stat /x: no such file or directory
#       exec /x: exec format error
# crun: executable file `x` not found in $PATH: No such file or directory
#       open executable: Permission denied
_COMMAND = re.compile(
    r"""exec:?\ "?(?P<go>[^":]+)"?:\ (?:[a-z]+\ [^:]+:\ )?
        (?P<why>executable\ file\ not\ found|no\ such\ file\ or\ directory|permission\ denied
          |is\ a\ directory|exec\ format\ error)
      |executable(?:\ file\ [`'"](?P<c>[^`'"]*)[`'"]\ |:\ )(?P<cwhy>not\ found|permission\ denied)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_ABSENT = ("executable file not found", "no such file or directory", "not found")


def failure(operation: str, message: str) -> Failure:
    """What the OCI runtime's *message* says went wrong."""
    match = _COMMAND.search(message) if operation in ("create", "start", "exec") else None
    if match is None:
        return Failure(RUNTIME_FAILURE, message, operation=operation)
    why = (match["why"] or match["cwhy"]).lower()
    kind = COMMAND_NOT_FOUND if why in _ABSENT else COMMAND_NOT_EXECUTABLE
    return Failure(kind, message, command=match["go"] or match["c"] or "")


def last_error(log: bytes) -> str:
    """The message of the last error in a log of JSON lines, or an empty text."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
            if entry["level"] in ("error", "fatal", "panic"):
                return str(entry["msg"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return ""


class Runtime:
    """The OCI runtime, for one container.

    Every command is a task; on an error it raises
    :class:`~ctd.protocols.shim.Failure`.

    :param path: the runtime's executable.
    :param root: its ``--root``.
    :param container: the id it knows the container by: the run's.
    """

    def __init__(self, path: str, root: str, container: str, children: Children) -> None:
        self._path = path
        self._root = root
        self._container = container
        self._children = children

    def create(self, bundle: str, pid_file: str, log: str, streams: Streams) -> Task[int]:
        """Make the container; the pid of its first process."""
        arguments = ["create", "--bundle", bundle, "--pid-file", pid_file, self._container]
        return self._start_process(arguments, pid_file, log, streams)

    def exec(self, spec: str, pid_file: str, log: str, streams: Streams) -> Task[int]:
        """Start another process from the OCI process object in the file *spec*; its pid."""
        arguments = ["exec", "--process", spec, "--pid-file", pid_file, "--detach"]
        return self._start_process([*arguments, self._container], pid_file, log, streams)

    def start(self, log: str) -> Task[None]:
        """Let the first process go."""
        return self._command(["start", self._container], log)

    def kill_all(self, number: int, log: str) -> Task[None]:
        """Send a signal to every process in the container."""
        return self._command(["kill", "--all", self._container, str(number)], log)

    def delete(self, log: str) -> Task[None]:
        """Delete the container, killing what still runs in it.  Can be repeated."""
        return self._command(["delete", "--force", self._container], log)

    def _start_process(
        self, arguments: list[str], pid_file: str, log: str, streams: Streams
    ) -> Task[int]:
        status, words = yield from self._run(arguments, log, streams.child)
        if status:
            raise failure(arguments[0], words or streams.words() or _ended(status))
        try:
            with open(pid_file, encoding="ascii") as file:  # noqa: PTH123
                pid = int(file.read())
        except (OSError, ValueError) as error:
            raise Failure(
                RUNTIME_FAILURE, f"no usable pid file: {error}", operation=arguments[0]
            ) from None
        if not self._children.is_child(pid):
            raise Failure(
                RUNTIME_FAILURE, f"process {pid} is not our child", operation=arguments[0]
            )
        return pid

    def _command(self, arguments: list[str], log: str) -> Task[None]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # The runtime must not wait for a reader of its complaints.
            fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
            try:
                # Standard input and output of a shim are /dev/null.
                status, words = yield from self._run(arguments, log, (0, 1, writer))
            finally:
                os.close(writer)
            if status:
                raise failure(arguments[0], words or waiting_text(reader) or _ended(status))
        finally:
            os.close(reader)

    def _run(self, arguments: list[str], log: str, fds: Sequence[int]) -> Task[tuple[int, str]]:
        """Run it to its end; its wait(2) status and its last error."""
        start = _size(log)
        command = [self._path, "--root", self._root, "--log", log, "--log-format", "json"]
        # None overwrites another before its turn: each is above 2, or at its place already.
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        environ = {name: os.environ[name] for name in os.environ if name not in _NOT_PASSED_ON}
        try:
            with ordinary_oom_score():
                pid = os.posix_spawn(
                    self._path,
                    command + arguments,
                    environ,
                    file_actions=actions,
                    setsigmask=(),
                    setsigdef=IGNORED,
                )
        except OSError as error:
            message = f"cannot run {self._path}: {error.strerror}"
            raise Failure(RUNTIME_FAILURE, message, operation=arguments[0]) from None
        status = yield self._children.ended(pid)
        return status, last_error(_tail(log, start)) if status else ""


def waiting_text(pipe: int) -> str:
    """What is in a pipe to be read, at most its last 16 KiB, without waiting for more."""
    waiting = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    text = os.read(pipe, waiting) if waiting else b""
    return text[-_TAIL:].decode(errors="replace").strip()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _tail(path: str, start: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, _TAIL, max(start, size - _TAIL))
    finally:
        os.close(fd)


def _ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
