"""One layer, in a process of its own: read while it arrives, decompressed, hashed, applied.

The process has a mount namespace of its own and changes its root to the layer
it makes, so that neither a mistake nor a mount gets out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator
from typing import Any

from ctd.storage.unpack import compression, faults, places, tar, words
from ctd.storage.unpack.apply import Applier
from ctd.storage.unpack.faults import Malformed, NeedsParent, TooLarge
from ctd.storage.unpack.mounting import enter
from ctd.storage.unpack.settle import settle

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_THE_LAYER = (*_FULL, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)

#: How often progress is told, in bytes read of the blob.
_PROGRESS = 4 << 20

#: Chunks that wait to be hashed, and to be used.
_AHEAD = 8


class Job:
    """The work of one process, from ``begin`` on.

    :param begin: ``mounts``, ``base`` (what ``parent``'s paths are relative to),
        ``below``, ``compression``, ``algorithm``, ``daemon`` (its pid), ``budget``.
    :param commands: where what the daemon says is read.
    """

    def __init__(self, number: int, begin: dict[str, Any], commands: int, out: int) -> None:
        self._number = number
        self._begin = begin
        self._commands = commands
        self._out = out
        self._rest = b""
        self._fd = -1
        self._size = 0
        self._complete = False
        self._read = 0
        self._told = 0
        self._entries = 0

    def run(self) -> None:
        """Do it, and say how it went."""
        try:
            self._run()
        except Malformed as error:
            self._say_failed(
                words.MALFORMED, entry=words.text(error.entry), reason=words.text(error.reason)
            )
        except TooLarge as error:
            self._say_failed(words.TOO_LARGE, budget=error.budget, limit=error.limit)
        except NeedsParent:
            self._say_failed(words.NEEDS_PARENT)
        except OSError as error:
            if error.errno in _FULL:
                self._say_failed(words.FULL_DISK)
            else:
                self._say_failed(words.BROKEN, reason=words.text(str(error)))
        except Exception as error:  # noqa: BLE001 (told to the daemon)
            self._say_failed(words.BROKEN, reason=words.text(repr(error)))

    def _say(self, **message: Any) -> None:
        words.say(self._out, job=self._number, **message)

    def _say_failed(self, error: str, **fields: Any) -> None:
        self._say(failed={"error": error, **fields})

    def _run(self) -> None:
        begin = self._begin
        self._proc = os.open("/proc", _OPEN)
        base = os.open(begin["base"], _OPEN)
        os.umask(0)
        root = enter(begin["mounts"])
        budget = faults.Budget(**begin["budget"])
        applier = Applier(root, begin["below"], budget)
        pipeline = Pipeline(self._chunks(), begin["algorithm"])
        stream = tar.Bytes(iter(pipeline), budget.bytes)
        reader = tar.Reader(stream, budget)
        for entry in reader:
            try:
                applier.apply(entry, reader.body())
            except Malformed as error:
                error.entry = error.entry or entry.name
                raise
            except OSError as error:
                if error.errno in _NOT_THE_LAYER:
                    raise
                raise Malformed(error.strerror or str(error), entry.name) from error
            self._entries += 1
        stream.drain()
        self._say(applied={"diff_id": pipeline.digest(), "entries": self._entries})
        parent = self._hear("parent")
        if begin["below"] == places.APART:
            layers = [os.open(path, _OPEN | os.O_NOFOLLOW, dir_fd=base) for path in parent]
            settle(applier.places, applier.whiteouts, layers)
        applier.finish()
        self._say(done=True)

    def _chunks(self) -> Iterator[bytes]:
        return compression.KINDS[self._begin["compression"]](self._take)

    def _take(self, size: int) -> bytes:
        """Up to *size* bytes of the blob, waiting for them; empty at its end."""
        while self._read >= self._size and not self._complete:
            self._say(want=self._read)
            told = self._hear("data")
            self._size, self._complete = told["size"], told["complete"]
            if self._fd < 0:
                name = f"{self._begin['daemon']}/fd/{told['fd']}"
                self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        piece = os.read(self._fd, min(size, self._size - self._read)) if self._fd >= 0 else b""
        self._read += len(piece)
        if not piece and self._read < self._size:
            raise OSError(errno.EIO, "the blob's file is shorter than it was")
        if self._read - self._told >= _PROGRESS:
            self._told = self._read
            self._say(progress=[self._read, self._entries])
        return piece

    def _hear(self, what: str) -> Any:
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                message = json.loads(line)
                if what in message:
                    return message[what]
                continue
            data = os.read(self._commands, 1 << 16)
            if not data:
                os._exit(1)  # the worker is gone
            self._rest += data


class Pipeline:
    """Decompressing and hashing, each in a thread beside the one that uses the chunks."""

    def __init__(self, chunks: Iterator[bytes], algorithm: str) -> None:
        self._source = chunks
        self._hash = hashlib.new(algorithm)
        self._ahead: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._unhashed: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._produce, self._digest)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks.  :raise: what the source raised."""
        while (chunk := self._ahead.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def digest(self) -> str:
        """The digest in hex of all the chunks, once they were taken."""
        for thread in self._threads:
            thread.join()
        return self._hash.hexdigest()

    def _produce(self) -> None:
        try:
            for chunk in self._source:
                self._unhashed.put(chunk)
                self._ahead.put(chunk)
            self._ahead.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where the chunks are used)
            self._ahead.put(error)
        self._unhashed.put(None)

    def _digest(self) -> None:
        while (chunk := self._unhashed.get()) is not None:
            self._hash.update(chunk)
