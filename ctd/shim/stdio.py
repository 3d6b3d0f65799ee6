"""The three standard streams of a process: what it gets, and what the shim keeps."""

from __future__ import annotations

import contextlib
import fcntl
import os

from ctd.protocols.shim import UNIMPLEMENTED, Failure, FieldError, Stream, attach_file
from ctd.shim.attach import AttachOutput, AttachSocket
from ctd.shim.relay import (
    FifoInput,
    FifoOutput,
    FileOutput,
    OutputRelay,
    close_all,
    open_fifo,
    open_file,
    waiting,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctd.shim.loop import Loop


#: Room for output while the shim is not running; memory is only taken by what is in it.
_PIPE_SIZE = 1 << 18


class Streams:
    """Opened when made, relayed after :meth:`begin`, let go with :meth:`close`.

    :param changed: called when :attr:`ended` may have become true.
    :ivar child: descriptors for the process's standard input, output and error.
    :ivar attach: the path of the attach socket, relative to the run's directory, or None.

    :raise FieldError: a fifo or file is not there, or cannot be used.
    :raise Failure: what is asked for does not exist yet.
    """

    def __init__(
        self, loop: Loop, process: str, stdio: Mapping[str, Stream], changed: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._changed = changed
        self._outputs: list[OutputRelay] = []
        self._input: FifoInput | None = None
        self._hub: AttachSocket | None = None
        self._error: int | None = None
        self.attach: str | None = None
        self.child: list[int] = []
        try:
            self._open(process, stdio)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """The process has its ends: close them here, and relay."""
        close_all(self.child)
        if self._input is not None:
            self._input.begin()
        for output in self._outputs:
            output.begin()

    def words(self) -> str:
        """What has come on standard error before :meth:`begin`: the runtime's own words."""
        if self._error is None or not waiting(self._error):
            return ""
        return os.read(self._error, 1 << 14).decode(errors="replace").strip()

    def close_input(self) -> None:
        """Let the process read an end of file.  Can be repeated."""
        if self._input is not None:
            self._input.end()
        elif self._hub is not None:
            self._hub.end_input()

    def reopen(self) -> None:
        """Open files anew.  :raise OSError: one cannot be; it is written to as before."""
        for output in self._outputs:
            output.reopen()

    @property
    def ended(self) -> bool:
        """Whether all output has been passed on."""
        return all(output.ended for output in self._outputs)

    @property
    def dropped(self) -> int:
        """How many bytes of output went nowhere."""
        hub = self._hub.dropped if self._hub is not None else 0
        return hub + sum(output.dropped for output in self._outputs)

    def close(self) -> None:
        """Let everything go.  Can be repeated."""
        close_all(self.child)
        if self._input is not None:
            self._input.close()
        for output in self._outputs:
            output.close()
        if self._hub is not None:
            self._hub.close()

    def _open(self, process: str, stdio: Mapping[str, Stream]) -> None:
        attached = [name for name in ("stdout", "stderr") if stdio[name].kind == "attach"]
        if attached or stdio["stdin"].kind == "attach":
            path = attach_file(process)
            self._hub = AttachSocket(self._loop, path, len(attached))
            self.attach = path
        self._open_input(stdio["stdin"])
        for name in ("stdout", "stderr"):
            self._open_output(name, stdio[name])

    def _open_input(self, stream: Stream) -> None:
        if stream.kind == "null":
            self.child.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            return
        fifo = open_fifo(stream.path, "stdin") if stream.kind == "fifo" else -1
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.child.append(reader)
        if self._hub is not None and stream.kind == "attach":
            self._hub.connect_input(writer)
        else:
            self._input = FifoInput(self._loop, fifo, writer)

    def _open_output(self, name: str, stream: Stream) -> None:
        if stream.kind == "null":
            self.child.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
            return
        target = _open_target(name, stream)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # there is a limit to what a user may have
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self.child.append(writer)
        if name == "stderr":
            self._error = reader
        if stream.kind == "fifo":
            drop = stream.unread == "drop"
            output: OutputRelay = FifoOutput(self._loop, reader, self._changed, target, drop)
        elif stream.kind == "file":
            output = FileOutput(self._loop, reader, self._changed, target, stream.path)
        else:
            assert self._hub is not None
            output = AttachOutput(self._loop, reader, self._changed, self._hub)
        self._outputs.append(output)


def _open_target(name: str, stream: Stream) -> int:
    if stream.kind == "fifo":
        return open_fifo(stream.path, name)
    if stream.kind == "attach":
        return -1
    if stream.format != "raw" or stream.max_size:
        message = f"{name}: only raw files that are not rotated"
        raise Failure(UNIMPLEMENTED, message, field=name)
    try:
        return open_file(stream.path)
    except OSError as error:
        raise FieldError(name, f"{stream.path}: {error.strerror}") from None
