"""The worker process: warm, it forks a child a job, which is gone with all it had afterwards.

A child has its own mount namespace, its root is the snapshot, and it dies with
the worker.  Three threads share a layer: one decompresses, one hashes, and the
main one untars; what they do releases the interpreter's lock most of the time.

Imports little, so that it starts fast; its daemon is
:mod:`ctd.storage.unpack.pool`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from queue import Queue
from typing import Any

from ctd import kernel
from ctd.storage.unpack import wire
from ctd.storage.unpack.apply import Applier
from ctd.storage.unpack.compression import KINDS
from ctd.storage.unpack.faults import Budget, Malformed, NeedsParent, TooLarge
from ctd.storage.unpack.mounting import mount_apart
from ctd.storage.unpack.places import APART
from ctd.storage.unpack.settle import settle
from ctd.storage.unpack.tar import Bytes, Entry, Reader

#: The descriptor of the socket to the daemon.
CHANNEL = 3

_PROGRESS_SECONDS = 0.1
_INPUT = 128 << 10
_AHEAD = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_THE_LAYER = (errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBADF)


class Blob:
    """The growing file a layer is in, read as far as the daemon says it goes.

    :ivar at: bytes read so far.
    """

    def __init__(self, channel: socket.socket, fd: int, size: int, complete: bool) -> None:
        self._channel = channel
        self._fd = fd
        self._size = size
        self._complete = complete
        self._buffer = memoryview(bytearray(_INPUT * 2))
        self.at = 0
        self.entries = 0

    def read(self, size: int) -> memoryview | bytes:
        """Up to *size* bytes, good until the next call; waits for some; empty at the end."""
        self._listen(socket.MSG_DONTWAIT)
        while self.at >= self._size and not self._complete:
            self.tell(waiting=True)
            self._listen(0)
        size = min(size, self._size - self.at)
        if not size:
            return b""
        got = os.preadv(self._fd, [self._buffer[:size]], self.at)
        if not got:
            raise Malformed("the blob's file is shorter than it was said to be")
        self.at += got
        return self._buffer[:got]

    def tell(self, waiting: bool = False) -> None:
        """Tell the daemon how far this is."""
        message = {"read": self.at, "entries": self.entries, "waiting": waiting}
        self._channel.send(wire.encode(message))

    def _listen(self, flags: int) -> None:
        try:
            while True:
                message, _ = wire.receive(self._channel, flags)
                if message is None:
                    os._exit(1)  # nobody waits for this any more
                if "size" in message:
                    self._size, self._complete = message["size"], message["complete"]
                flags = socket.MSG_DONTWAIT
        except BlockingIOError:
            pass


class Pipeline:
    """Decompressing and hashing in threads of their own."""

    def __init__(self, blob: Blob, kind: str, algorithm: str) -> None:
        self._blob = blob
        self._kind = kind
        self.hash = hashlib.new(algorithm)
        self._chunks: Queue[bytes | BaseException | None] = Queue(_AHEAD)
        self._hashing: Queue[bytes | None] = Queue(_AHEAD)
        self._threads = [
            threading.Thread(target=self._decompress, daemon=True),
            threading.Thread(target=self._digest, daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[bytes]:
        """The chunks of the tar.  :raise Malformed: the blob is not sound."""
        while (chunk := self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def digest(self) -> str:
        """The digest of the tar, once all of it was taken."""
        for thread in self._threads:
            thread.join()
        return self.hash.hexdigest()

    def _decompress(self) -> None:
        try:
            for chunk in KINDS[self._kind](self._blob.read):
                self._hashing.put(chunk)
                self._chunks.put(chunk)
            self._chunks.put(None)
        except BaseException as error:  # noqa: BLE001 (raised again where it is taken)
            self._chunks.put(error)
        self._hashing.put(None)

    def _digest(self) -> None:
        while (chunk := self._hashing.get()) is not None:
            self.hash.update(chunk)


class Job:
    """One layer, in a child process of its own."""

    def __init__(self, channel: socket.socket, job: dict[str, Any], fd: int) -> None:
        self._channel = channel
        self._job = job
        self._blob = Blob(channel, fd, job["size"], job["complete"])
        self._entry = b""

    def run(self) -> dict[str, Any]:
        """Do it, and say what became of it."""
        try:
            return {"digest": self._unpack()}
        except NeedsParent:
            return {"fault": "parent"}
        except TooLarge as error:
            return {"fault": "large", "budget": error.budget, "limit": error.limit}
        except Malformed as error:
            return self._malformed(error.entry or self._entry, error.reason)
        except OSError as error:
            if error.errno in _FULL:
                return {"fault": "full"}
            if error.errno in _NOT_THE_LAYER or not self._entry:
                return {"fault": "broken", "reason": str(error)}
            return self._malformed(self._entry, error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 (all that can be said of it is said)
            traceback.print_exc()
            return {"fault": "broken", "reason": f"{type(error).__name__}: {error}"}

    def _malformed(self, entry: bytes, reason: str) -> dict[str, Any]:
        shown = entry[:1000].decode(errors="backslashreplace")
        return {"fault": "malformed", "entry": shown, "reason": reason}

    def _unpack(self) -> str:
        job = self._job
        budget = Budget(**job["budget"])
        outside = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        mount_apart(job["mounts"], job["spot"])
        os.chroot(job["spot"])
        os.chdir("/")
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        applier = Applier(root, job["below"], budget)
        pipeline = Pipeline(self._blob, job["kind"], job["algorithm"])
        pipeline.start()
        stream = Bytes(iter(pipeline), budget.bytes)
        self._entries(Reader(stream, budget), applier)
        self._entry = b""
        stream.drain()
        digest = pipeline.digest()
        self._blob.tell(waiting=True)
        if job["below"] == APART:
            layers = self._layers()
            os.fchdir(outside)
            os.chroot(".")
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            settle(applier.places, applier.whiteouts, [os.open(p, flags) for p in layers])
        applier.finish()
        return digest

    def _entries(self, reader: Reader, applier: Applier) -> None:
        due = time.monotonic() + _PROGRESS_SECONDS
        count = 0
        entry: Entry
        for entry in reader:
            self._entry = entry.name
            applier.apply(entry, reader.body())
            self._entry = b""
            count += 1
            if not count & 31 or entry.size > 1 << 20:
                self._blob.entries = count
                if (now := time.monotonic()) > due:
                    self._blob.tell()
                    due = now + _PROGRESS_SECONDS
        self._blob.entries = count

    def _layers(self) -> list[str]:
        self._channel.send(wire.encode({"ask": "layers"}))
        while True:
            message, _ = wire.receive(self._channel)
            if message is None:
                os._exit(1)
            if "layers" in message:
                layers: list[str] = message["layers"]
                return layers


def _child(channel: socket.socket, job: dict[str, Any], fd: int, worker: int) -> None:
    status = 1
    try:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == worker:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.umask(0)
            channel.send(wire.encode(Job(channel, job, fd).run()))
            status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve(channel: socket.socket) -> None:
    """Do jobs, one after another, until the daemon ends."""
    worker = os.getpid()
    while True:
        message, fds = wire.receive(channel)
        if message is None:
            return
        if "job" not in message:
            continue  # for a job that has ended meanwhile
        [fd] = fds
        pid = os.fork()
        if pid == 0:
            _child(channel, message["job"], fd, worker)
        os.close(fd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"idle": True} if code == 0 else {"died": code}
        channel.send(wire.encode(answer))


def main() -> None:
    """Serve the daemon at the other end of :data:`CHANNEL`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon says when it is over
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    channel = socket.socket(fileno=CHANNEL)
    channel.setblocking(True)
    os.set_inheritable(CHANNEL, False)
    try:
        serve(channel)
    except (BrokenPipeError, ConnectionResetError):
        pass


if __name__ == "__main__":
    main()
