"""The worker processes: started, given one job each at a time, watched, replaced."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IReactorFDSet,
    IReactorProcess,
    IReactorTime,
    IReadWriteDescriptor,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ctd.concurrency import settled
from ctd.errors import Unavailable
from ctd.model import Mount
from ctd.storage.errors import WorkerDied
from ctd.storage.interfaces import UnpackProgress
from ctd.storage.unpack import wire, worker
from ctd.storage.unpack.faults import Budget
from ctd.storage.unpack.feed import Feed

#: How many jobs there may be for each that computes: the others wait for their downloads.
WAITING = 8

#: The pause before a worker that died young is replaced: doubled each time up to a limit.
PAUSE = 0.1
LONGEST_PAUSE = 5.0

_ARGUMENTS = ["-I", "-c", "from ctd.storage.unpack.worker import main; main()"]
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class IReactor(IReactorProcess, IReactorFDSet, IReactorTime):  # type: ignore[misc]
    """What the pool needs of a reactor."""


@attrs.frozen
class Job:
    """One unpacking.

    :ivar layer: the blob's digest, for errors.
    :ivar mounts: the snapshot to unpack into.
    :ivar below: see :data:`ctd.storage.unpack.places.NOTHING`.
    :ivar kind: of compression: ``none``, ``gzip`` or ``zstd``.
    :ivar algorithm: of the diff ID.
    :ivar layers: asked for when all is unpacked apart from the parent: the
        parent's directories, topmost first.
    """

    layer: str
    mounts: Sequence[Mount]
    below: str
    kind: str
    algorithm: str
    budget: Budget
    layers: Callable[[], Awaitable[Sequence[str]]]


@implementer(IReadWriteDescriptor)
class _Channel:
    """The daemon's end of a worker's socket; packets wait while it is full."""

    def __init__(
        self, reactor: Any, end: socket.socket, received: Callable[[dict[str, Any]], None]
    ) -> None:
        self._reactor = reactor
        self._socket = end
        self._received = received
        self._unsent: list[bytes] = []
        end.setblocking(False)
        reactor.addReader(self)

    def fileno(self) -> int:
        """See IFileDescriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """See ILoggingContext."""
        return "unpack-worker"

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message; *fds* only when nothing else can be on the way."""
        packet = wire.encode(message)
        if not self._unsent:
            try:
                socket.send_fds(self._socket, [packet], list(fds))
                return
            except BlockingIOError:
                self._reactor.addWriter(self)
            except OSError:
                return  # its process has ended, as will be heard
        if "size" in message and self._unsent and b'"size"' in self._unsent[-1]:
            self._unsent.pop()  # the later one says it all
        self._unsent.append(packet)

    def doRead(self) -> None:
        """See IReadDescriptor."""
        try:
            while self._socket.fileno() >= 0:
                message, _ = wire.receive(self._socket)
                if message is None:
                    self._reactor.removeReader(self)
                    return
                self._received(message)
        except BlockingIOError:
            pass
        except OSError:
            self._reactor.removeReader(self)

    def doWrite(self) -> None:
        """See IWriteDescriptor."""
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.pop(0)
        except BlockingIOError:
            return
        except OSError:
            self._unsent = []
        self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """See IFileDescriptor: the worker's end is closed, and its process's end is heard of."""
        self.close()

    def close(self) -> None:
        """Hang up; the worker ends then."""
        if self._socket.fileno() >= 0:
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()


class _Work(Interface):
    """What a busy worker tells."""

    def received(message: dict[str, Any]) -> None:
        """It says this."""

    def ended(reason: str | None) -> None:
        """The job's process is gone: by itself, or for a *reason*."""


class Worker(ProcessProtocol):
    """One worker process.

    :ivar work: what it is at, or None.
    :ivar old: whether it has done anything yet.
    """

    _log = Logger()

    def __init__(self, reactor: Any, ended: Callable[[Worker], None]) -> None:
        self.work: _Work | None = None
        self.old = False
        self._ended = ended
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._channel = _Channel(reactor, ours, self._received)
        try:
            reactor.spawnProcess(
                self,
                sys.executable,
                [sys.executable, *_ARGUMENTS],
                env=_ENVIRONMENT,
                path="/",
                childFDs={0: null, 1: null, 2: "r", worker.CHANNEL: theirs.fileno()},
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            os.close(null)
            theirs.close()

    def begin(self, work: _Work, job: dict[str, Any], fd: int) -> None:
        """Give an idle worker a job."""
        self.work = work
        self._channel.send({"job": job}, [fd])

    def send(self, message: dict[str, Any]) -> None:
        """Tell a busy worker something."""
        self._channel.send(message)

    def dismiss(self) -> None:
        """Let it end when it is idle."""
        self._channel.close()

    def kill(self) -> None:
        """End it at once, and its job."""
        if self.transport is not None and self.transport.pid is not None:
            self.transport.signalProcess("KILL")

    def _received(self, message: dict[str, Any]) -> None:
        self.old = True
        if self.work is None:
            return
        if "idle" in message:
            self._over(None)
        elif "died" in message:
            self._over(_how(message["died"]))
        else:
            self.work.received(message)

    def _over(self, reason: str | None) -> None:
        work, self.work = self.work, None
        if work is not None:
            work.ended(reason)

    def errReceived(self, data: bytes) -> None:
        """See ProcessProtocol."""
        for line in data.decode(errors="replace").splitlines():
            self._log.warn("unpack worker: {line}", line=line)

    def processEnded(self, reason: Failure) -> None:
        """See ProcessProtocol: it and its job's process are gone."""
        self._channel.doRead()
        self._channel.close()
        self._ended(self)
        self._over(f"the worker ended: {reason.getErrorMessage()}")


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"ended with status {code}"


@implementer(_Work)
class _Running:
    """A job with a worker.

    :ivar done: fires with the worker's result when the job's process is gone.
    :ivar waiting: whether it can do nothing until more bytes come.
    """

    _log = Logger()

    def __init__(
        self,
        pool: WorkerPool,
        worker: Worker,
        job: Job,
        feed: Feed,
        progress: Callable[[UnpackProgress], None],
    ) -> None:
        self.worker = worker
        self.waiting = False
        self.done: Deferred[dict[str, Any]] = Deferred()
        self._pool = pool
        self._job = job
        self._feed = feed
        self._progress = progress
        self._result: dict[str, Any] | None = None
        self._asking: Deferred[None] | None = None

    def begin(self, spot: Path) -> None:
        job = {
            "mounts": [(m.type, m.source, m.options, m.target) for m in self._job.mounts],
            "below": self._job.below,
            "kind": self._job.kind,
            "algorithm": self._job.algorithm,
            "budget": self._job.budget._asdict(),
            "spot": str(spot),
            "size": self._feed.size,
            "complete": self._feed.complete,
        }
        self.worker.begin(self, job, self._feed.fd)
        self._feed.changed = self._grown

    def _grown(self) -> None:
        self.waiting = False
        self.worker.send({"size": self._feed.size, "complete": self._feed.complete})

    def received(self, message: dict[str, Any]) -> None:
        if "read" in message:
            read, entries = message["read"], message["entries"]
            self.waiting = message["waiting"] and (self._feed.complete or read >= self._feed.size)
            self._progress(UnpackProgress(read, entries))
            if self.waiting:
                self._pool.advance()
        elif "ask" in message:
            self._asking = Deferred.fromCoroutine(self._ask())
        else:
            self._result = message

    async def _ask(self) -> None:
        try:
            layers = await self._job.layers()
        except CancelledError:
            return
        except Exception:  # noqa: BLE001 (told to whoever waits for the job)
            if self.done.called:
                return
            failure = Failure()
            self.worker.kill()
            self._failure = failure
            return
        self.waiting = False
        self.worker.send({"layers": list(layers)})

    _failure: Failure | None = None

    def ended(self, reason: str | None) -> None:
        self._feed.changed = lambda: None
        if self._asking is not None:
            self._asking.cancel()
        if self._failure is not None:
            self.done.errback(self._failure)
        elif self._result is not None:
            self.done.callback(self._result)
        else:
            self.done.errback(WorkerDied(self._job.layer, reason or "it gave no result"))


class WorkerPool:
    """Worker processes of one daemon.

    *size* jobs compute at a time.  A job that has caught up with its download,
    or waits for its parent, does not count, so that slow ones keep nobody
    waiting; such jobs have processes of their own beyond *size*.

    :param spot: an existing directory; workers mount on it where nobody sees it.
    """

    _log = Logger()

    def __init__(self, reactor: Any, size: int, spot: Path) -> None:
        self._reactor = reactor
        self._size = size
        self._spot = spot
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._running: set[_Running] = set()
        self._queue: list[Deferred[None]] = []
        self._pause = 0.0
        self._replacing: Any = None
        self._started = False
        self._gone: list[Deferred[None]] = []

    def start(self) -> None:
        """Start *size* workers, so that they are warm when they are wanted."""
        self._started = True
        self._warm()

    async def stop(self) -> None:
        """End all workers, and the jobs they are at, and wait until they are gone."""
        self._started = False
        if self._replacing is not None:
            self._replacing.cancel()
            self._replacing = None
        queue, self._queue = self._queue, []
        for waiter in queue:
            waiter.errback(Unavailable("unpacking", "the daemon is stopping"))
        for worker in list(self._workers):
            if worker.work is None:
                worker.dismiss()
            else:
                worker.kill()
        if self._workers:
            gone: Deferred[None] = Deferred()
            self._gone.append(gone)
            deadline = self._reactor.callLater(5.0, self._kill_all)
            await gone
            if deadline.active():
                deadline.cancel()

    async def run(
        self, job: Job, feed: Feed, progress: Callable[[UnpackProgress], None]
    ) -> dict[str, Any]:
        """Have *job* done, when there is room, and give what the worker says of it.

        Whatever ends the wait, the job's process is gone then.

        :param feed: the blob; some of it must be there.
        :raise WorkerDied: the worker was killed.
        :raise Unavailable: the pool is not running.
        """
        await self._room()
        running = _Running(self, self._take(), job, feed, progress)
        self._running.add(running)
        try:
            running.begin(self._spot)
            over: Deferred[dict[str, Any]] = Deferred(lambda _: None)
            running.done.addBoth(
                lambda result: None if over.called else over.callback(result)
            )
            try:
                result: Any = await over
            except CancelledError:
                running.worker.kill()
                await settled(running.done)
                raise
            return result  # type: ignore[no-any-return]
        finally:
            self._running.discard(running)
            self._give_back(running.worker)
            self.advance()

    def advance(self) -> None:
        """Begin what waits, as far as there is room now."""
        while self._queue and self._has_room():
            waiter = self._queue.pop(0)
            self._reserved += 1
            waiter.callback(None)

    _reserved = 0

    def _has_room(self) -> bool:
        computing = sum(not r.waiting for r in self._running) + self._reserved
        total = len(self._running) + self._reserved
        return computing < self._size and total < self._size * WAITING

    async def _room(self) -> None:
        if not self._started:
            raise Unavailable("unpacking", "its workers are not running")
        if self._queue or not self._has_room():
            waiter: Deferred[None] = Deferred(self._leave)
            self._queue.append(waiter)
            await waiter
            self._reserved -= 1

    def _leave(self, waiter: Deferred[None]) -> None:
        if waiter in self._queue:
            self._queue.remove(waiter)

    def _take(self) -> Worker:
        return self._idle.pop() if self._idle else self._spawn()

    def _give_back(self, worker: Worker) -> None:
        if worker not in self._workers:
            return
        if worker.work is not None:
            worker.kill()  # it never began
        elif self._started and len(self._idle) < self._size:
            self._idle.append(worker)
        else:
            worker.dismiss()

    def _spawn(self) -> Worker:
        worker = Worker(self._reactor, self._ended)
        self._workers.add(worker)
        return worker

    def _warm(self) -> None:
        self._replacing = None
        while len(self._workers) < self._size:
            self._idle.append(self._spawn())

    def _ended(self, worker: Worker) -> None:
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if self._started:
            if self._replacing is None and len(self._workers) < self._size:
                self._replacing = self._reactor.callLater(self._pause, self._warm)
                longer = min(max(self._pause * 2, PAUSE), LONGEST_PAUSE)
                self._pause = 0.0 if worker.old else longer
        elif not self._workers:
            gone, self._gone = self._gone, []
            for waiter in gone:
                waiter.callback(None)

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()
