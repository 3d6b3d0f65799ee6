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

from ctd import kernel
from ctd.storage.unpack import compression, faults, places, tar, words
from ctd.storage.unpack.apply import Applier
from ctd.storage.unpack.faults import Malformed, NeedsParent, TooLarge
from ctd.storage.unpack.settle import settle

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: How often progress is told, in bytes read of the blob.
_PROGRESS = 4 << 20

#: Chunks that wait to be hashed.
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
        root = _enter(begin["mounts"])
        budget = faults.Budget(**begin["budget"])
        applier = Applier(root, begin["below"], budget)
        hasher = _Hasher(begin["algorithm"])
        stream = tar.Bytes(hasher.passing(self._chunks()), budget.bytes)
        reader = tar.Reader(stream, budget)
        for entry in reader:
            try:
                applier.apply(entry, reader.body())
            except Malformed as error:
                error.entry = error.entry or entry.name
                raise
            except OSError as error:
                if error.errno in _FULL:
                    raise
                raise Malformed(error.strerror or str(error), entry.name) from error
            self._entries += 1
        stream.drain()
        self._say(applied={"diff_id": hasher.result(), "entries": self._entries})
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


class _Hasher:
    """Hashes what passes, in a thread beside the one that uses it."""

    def __init__(self, algorithm: str) -> None:
        self._hash = hashlib.new(algorithm)
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def passing(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self._queue.put(chunk)
            yield chunk

    def result(self) -> str:
        """The digest in hex, of all that has passed."""
        self._queue.put(None)
        self._thread.join()
        return self._hash.hexdigest()

    def _work(self) -> None:
        while (chunk := self._queue.get()) is not None:
            self._hash.update(chunk)


def _enter(mounts: list[dict[str, Any]]) -> int:
    """Mount what is to be mounted, where nobody sees it, and make it the root directory."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    (mount,) = mounts
    if mount["type"] == "bind":
        root = os.open(mount["source"], _OPEN)
    else:
        root = _overlay(mount["options"])
    os.fchdir(root)
    os.chroot(".")
    return root


def _overlay(given: list[str]) -> int:
    """An overlay on its own upper directory.

    mount(2) takes one page of options, so the layers are said relative to the
    directory that they have in common.  Their paths are the snapshotter's own:
    only what is above that directory can hold what would need an escape.
    """
    options = dict(option.partition("=")[::2] for option in given)
    upper, work = _unescaped(options["upperdir"]), _unescaped(options["workdir"])
    lower = [_unescaped(path) for path in _split(options["lowerdir"])]
    common = os.path.commonpath([upper, work, *lower])
    os.chdir(common)
    paths = {
        "lowerdir": ":".join(os.path.relpath(path, common) for path in lower),
        "upperdir": os.path.relpath(upper, common),
        "workdir": os.path.relpath(work, common),
    }
    rest = [option for option in given if option.partition("=")[0] not in paths]
    data = ",".join([*rest, *(f"{name}={path}" for name, path in paths.items())])
    kernel.mount("overlay", upper, "overlay", 0, data)
    return os.open(upper, _OPEN)


def _split(lower: str) -> list[str]:
    """Paths separated by colons that no backslash escapes."""
    paths, current, escaped = [], "", False
    for character in lower:
        if character == ":" and not escaped:
            paths.append(current)
            current = ""
        else:
            current += character
        escaped = character == "\\" and not escaped
    return [*paths, current]


def _unescaped(path: str) -> str:
    plain, escaped = "", False
    for character in path:
        if character == "\\" and not escaped:
            escaped = True
            continue
        plain += character
        escaped = False
    return plain
