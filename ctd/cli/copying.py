"""Bytes from one descriptor to another in a thread, with splice(2) where that can be."""

from __future__ import annotations

import os
import select
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 1 << 20


class Copier:
    """Copies *source* to *target* until it ends, then closes *source* and calls *ended*.

    :param source: a descriptor of its own; a pipe may be non-blocking.
    :ivar broken: nobody reads *target* any more.
    :ivar error: what copying failed with otherwise.
    """

    def __init__(self, source: int, target: int, ended: Callable[[], None]) -> None:
        self._source = source
        self._target = target
        self._ended = ended
        self._spliced = True
        self._waits_since: float | None = None
        self.done = False
        self.broken = False
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._copy, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def idle(self) -> float:
        """For how many seconds *source* has had nothing to give; 0 while it has."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    def _copy(self) -> None:
        readable = select.poll()
        readable.register(self._source, select.POLLIN)
        try:
            while True:
                self._waits_since = time.monotonic()
                readable.poll()
                self._waits_since = None
                if not self._move():
                    break
        except BrokenPipeError:
            self.broken = True
        except OSError as error:
            self.error = error
        finally:
            os.close(self._source)
            self.done = True
            self._ended()

    def _move(self) -> int:
        try:
            if self._spliced:
                return os.splice(self._source, self._target, _CHUNK)
            return self._read_and_write()
        except BlockingIOError:
            self._wait_for_target()
            return 1
        except OSError as error:
            if not self._spliced or isinstance(error, BrokenPipeError):
                raise
            self._spliced = False  # a terminal, or a file opened for appending
            return 1

    def _read_and_write(self) -> int:
        data = memoryview(os.read(self._source, 1 << 16))
        moved = len(data)
        while data:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:
                self._wait_for_target()
        return moved

    def _wait_for_target(self) -> None:
        """Wait for a *target* that somebody else has made non-blocking."""
        writable = select.poll()
        writable.register(self._target, select.POLLOUT)
        writable.poll(1000)
