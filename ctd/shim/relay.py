"""Moving a process's bytes between its pipes and where they are to go.

A relay owns its descriptors, all non-blocking, and waits for one of them at a
time: for its source while that is empty, for its target while that is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import struct
import termios

from ctd.protocols.shim import FieldError
from ctd.shim.loop import BROKEN, HUNG_UP, READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctd.shim.loop import Loop, Timer

#: The most that is moved at once, without and with a copy of it in our memory.
SPLICED = 1 << 20
COPIED = 1 << 16

#: How long to wait before looking again whether a fifo has a reader, in seconds.
_FIRST_LOOK, _LAST_LOOK = 0.005, 0.5

#: What splice(2) and write(2) fail with when somebody else must act first.
_LATER = (BlockingIOError, InterruptedError)


def waiting(pipe: int) -> int:
    """How many bytes are in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)


class OutputRelay:
    """Drains a pipe of a process until all who could write to it are gone.

    :ivar dropped: bytes that went nowhere.
    :ivar ended: everything has been passed on, or dropped.
    """

    def __init__(self, loop: Loop, source: int, done: Callable[[], None]) -> None:
        self._loop = loop
        self._source = source
        self._done = done
        self.dropped = 0
        self.ended = False
        os.set_blocking(source, False)

    def begin(self) -> None:
        """Relay from now on."""
        self._loop.watch(self._source, READABLE, self._on_source)

    def reopen(self) -> None:
        """Open the target anew by its name, if it is a file."""

    def close(self) -> None:
        """End at once; what was not passed on is dropped.  Can be repeated."""
        if not self.ended:
            self.dropped += waiting(self._source)
            self._end()

    def _on_source(self, events: int) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        self.ended = True
        self._loop.unwatch(self._source)
        os.close(self._source)
        self._release()
        self._done()

    def _release(self) -> None:
        """Let go of the target."""


class FifoOutput(OutputRelay):
    """Output to a fifo that a client made, with splice(2).

    Its writing end is open for as long as the relay lives, whether there is a
    reader or not: nobody waits in open(2), and what is in the fifo is not lost
    between two readers.  While there is none, output waits or is dropped; a
    process is not told of that, since clients come and go.  But when the fifo
    has no name any more, nobody can come: then a process whose output would
    wait gets a broken pipe, as in a pipeline.
    """

    def __init__(
        self, loop: Loop, source: int, done: Callable[[], None], target: int, drop: bool
    ) -> None:
        super().__init__(loop, source, done)
        self._target = target
        self._drop = drop
        self._nowhere: int | None = None
        self._look: Timer | None = None
        self._pause = _FIRST_LOOK

    def close(self) -> None:
        """End; what the fifo has room for is still passed on."""
        if not self.ended:
            with contextlib.suppress(OSError):
                os.splice(self._source, self._target, SPLICED)
        super().close()

    def _has_reader(self) -> bool:
        poll = select.poll()
        poll.register(self._target, 0)
        return not poll.poll(0)

    def _on_source(self, events: int) -> None:
        try:
            moved = os.splice(self._source, self._target, SPLICED)
        except BrokenPipeError:
            self._without_reader(events)
        except _LATER:
            self._loop.unwatch(self._source)
            self._loop.watch(self._target, WRITABLE, self._on_target)
        else:
            if not moved:
                self._end()

    def _on_target(self, _: int) -> None:
        self._loop.unwatch(self._target)
        self._loop.watch(self._source, READABLE, self._on_source)

    def _without_reader(self, events: int) -> None:
        if self._drop:
            self._discard()
        elif not waiting(self._source):
            if events & HUNG_UP:
                self._end()
        else:
            self._loop.unwatch(self._source)
            self._look_again()

    def _discard(self) -> None:
        if self._nowhere is None:
            self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            moved = os.splice(self._source, self._nowhere, SPLICED)
        except _LATER:
            return
        self.dropped += moved
        if not moved:
            self._end()

    def _look_again(self) -> None:
        if self._has_reader():
            self._pause = _FIRST_LOOK
            self._look = None
            self._loop.watch(self._source, READABLE, self._on_source)
        elif not os.fstat(self._target).st_nlink:
            self.close()
        else:
            self._look = self._loop.after(self._pause, self._look_again)
            self._pause = min(self._pause * 2, _LAST_LOOK)

    def _release(self) -> None:
        if self._look is not None:
            self._look.cancel()
        self._loop.unwatch(self._target)
        os.close(self._target)
        if self._nowhere is not None:
            os.close(self._nowhere)


class FileOutput(OutputRelay):
    """Output to a file, byte by byte as it comes.  What a full disk refuses is dropped."""

    def __init__(
        self, loop: Loop, source: int, done: Callable[[], None], file: int, path: str
    ) -> None:
        super().__init__(loop, source, done)
        self._file = file
        self._path = path

    def reopen(self) -> None:
        """Open the file anew.  :raise OSError: it cannot be; the former stays in use."""
        if not self.ended:
            fd = open_file(self._path)
            os.close(self._file)
            self._file = fd

    def close(self) -> None:
        """End; what is in the pipe by now is still written."""
        if not self.ended:
            for _ in range(0, waiting(self._source), COPIED):
                self._on_source(0)
        super().close()

    def _on_source(self, _: int) -> None:
        try:
            data = os.read(self._source, COPIED)
        except _LATER:
            return
        if not data:
            self._end()
            return
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:] if written else data)
        except OSError:
            self.dropped += len(data) - written

    def _release(self) -> None:
        os.close(self._file)


class FifoInput:
    """A client's fifo to a process's standard input, with splice(2).

    A fifo that nobody has opened for writing yet is no end of file: the kernel
    tells of that only once there was a writer (fifo(7), poll(2) POLLHUP).
    """

    def __init__(self, loop: Loop, source: int, target: int) -> None:
        self._loop = loop
        self._source = source
        self._target = target
        self._ending = False
        self._ended = False
        os.set_blocking(target, False)

    def begin(self) -> None:
        """Relay from now on."""
        self._loop.watch(self._source, READABLE, self._on_source)
        self._loop.watch(self._target, 0, self._on_target)

    def end(self) -> None:
        """Let the process read an end of file after what is in the fifo now."""
        self._ending = True
        if not self._ended:
            self._loop.unwatch(self._source)
            self._loop.watch(self._source, READABLE, self._on_source)
            self._move()

    def close(self) -> None:
        """End at once.  Can be repeated."""
        if not self._ended:
            self._ended = True
            for fd in (self._source, self._target):
                self._loop.unwatch(fd)
                os.close(fd)

    def _on_source(self, _: int) -> None:
        self._move()

    def _on_target(self, events: int) -> None:
        if events & BROKEN:  # the process has closed its end
            self.close()
        else:
            self._loop.change(self._target, 0)
            self._loop.watch(self._source, READABLE, self._on_source)
            self._move()

    def _move(self) -> None:
        try:
            moved = os.splice(self._source, self._target, SPLICED)
        except BrokenPipeError:
            self.close()
        except _LATER:
            if waiting(self._source):
                self._loop.unwatch(self._source)
                self._loop.change(self._target, WRITABLE)
            elif self._ending:
                self.close()
        else:
            if not moved:
                self.close()
            elif self._ending:
                self._loop.after(0, self._go_on)

    def _go_on(self) -> None:
        if not self._ended:
            self._move()


def open_fifo(path: str, field: str) -> int:
    """A client's fifo, opened for its direction; never waits for the other side.

    :raise FieldError: there is none of that name.
    """
    try:
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise FieldError(field, f"{path}: {error.strerror}") from None
    try:
        if not stat.S_ISFIFO(os.fstat(held).st_mode):
            raise FieldError(field, f"{path} is not a fifo")
        name = f"/proc/self/fd/{held}"
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        if field == "stdin":
            return os.open(name, flags | os.O_RDONLY)
        # A writing end is only given while there is a reading end: ours, for a moment.
        both = os.open(name, flags | os.O_RDWR)
        try:
            return os.open(name, flags | os.O_WRONLY)
        finally:
            os.close(both)
    finally:
        os.close(held)


def open_file(path: str) -> int:
    """Open a file to append to, making it if need be.  :raise OSError: it is no plain file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a plain file", path)
    return fd


def close_all(fds: list[int]) -> None:
    """Close descriptors, each once: the list is empty then."""
    while fds:
        with contextlib.suppress(OSError):
            os.close(fds.pop())
