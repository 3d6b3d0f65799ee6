"""The unpack worker, spawned and supervised; what its jobs say, handed to who asked."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ctd.concurrency import settled
from ctd.errors import Unavailable

#: Layers at a time for each core: some of them wait for their bytes.
JOBS_A_CORE = 3

#: The pause before a worker that died is replaced, in seconds: doubled up to a limit.
PAUSE = 0.1
LONGEST_PAUSE = 5.0

_MODULE = "ctd.storage.unpack.worker"


class IReactor(IReactorProcess, IReactorTime):
    """What a pool needs of a reactor."""


class JobListener(Protocol):
    """Told what one job says, in the reactor's thread."""

    def said(self, message: dict[str, Any]) -> None:
        """A message: :mod:`ctd.storage.unpack.words`; ``ended`` is the last."""


class Job:
    """A job at the worker.

    :ivar over: fires when its process is gone, however.
    """

    def __init__(self, worker: _WorkerProcess, number: int, listener: JobListener) -> None:
        self._worker = worker
        self._number = number
        self.listener = listener
        self.over: Deferred[None] = Deferred(lambda _: None)

    def say(self, **message: Any) -> None:
        """Send it something; nothing happens if it is over."""
        if not self.over.called:
            self._worker.say({"job": self._number, **message})

    def heard(self, message: dict[str, Any]) -> None:
        """It said something."""
        if "ended" in message:
            self._worker.jobs.pop(self._number, None)
            self.listener.said(message)
            self.over.callback(None)
        else:
            self.listener.said(message)


class _WorkerProcess(ProcessProtocol):
    _log = Logger()

    def __init__(self, pool: WorkerPool, started_at: float) -> None:
        self._pool = pool
        self._rest = b""
        self._last = 0
        self.started_at = started_at
        self.jobs: dict[int, Job] = {}

    def begin(self, listener: JobListener, **begin: Any) -> Job:
        self._last += 1
        job = self.jobs[self._last] = Job(self, self._last, listener)
        job.say(begin={"daemon": os.getpid(), **begin})
        return job

    def say(self, message: dict[str, Any]) -> None:
        assert self.transport is not None
        self.transport.write(msgspec.json.encode(message) + b"\n")

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = msgspec.json.decode(line)
            job = self.jobs.get(message["job"])
            if job is not None:
                job.heard(message)

    def errReceived(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            self._log.warn("unpack worker: {line}", line=line)

    def processEnded(self, reason: Failure) -> None:
        # Its jobs' processes hold the same pipes: they are gone too.
        self._pool.ended(self, reason)
        for job in list(self.jobs.values()):
            job.heard({"ended": -signal.SIGKILL})


class WorkerPool:
    """Forks a process for each layer, a bounded number at a time.

    :param cores: how many layers may be computed on at the same time.
    """

    _log = Logger()

    def __init__(self, reactor: IReactor, cores: int) -> None:
        self._reactor = reactor
        self._slots = DeferredSemaphore(cores * JOBS_A_CORE)
        self._process: _WorkerProcess | None = None
        self._waiting: list[Deferred[None]] = []
        self._restart: Any = None
        self._pause = 0.0
        self._stopping = False
        self._gone: Deferred[None] = Deferred()

    def start(self) -> None:
        """Spawn the worker."""
        self._restart = None
        process = _WorkerProcess(self, self._reactor.seconds())
        self._reactor.spawnProcess(
            process,
            sys.executable,
            [sys.executable, "-I", "-m", _MODULE],
            env={"LC_ALL": "C.UTF-8"},
            path="/",
        )
        self._process = process
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def stop(self) -> None:
        """Let it end, and with it what it works on."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.errback(Unavailable("unpacking", "the daemon is stopping"))
        if self._process is not None:
            transport = self._process.transport
            assert transport is not None
            transport.closeStdin()
            kill = self._reactor.callLater(5.0, transport.signalProcess, "KILL")
            await self._gone
            if kill.active():
                kill.cancel()

    def ended(self, process: _WorkerProcess, reason: Failure) -> None:
        """The worker is gone; called by it."""
        self._process = None
        if self._stopping:
            self._gone.callback(None)
            return
        self._log.error("the unpack worker died: {reason}", reason=reason.getErrorMessage())
        if self._reactor.seconds() - process.started_at > LONGEST_PAUSE:
            self._pause = 0.0
        self._start_later()

    def _start_later(self) -> None:
        self._restart = self._reactor.callLater(self._pause, self._start_again)
        self._pause = min(max(self._pause * 2, PAUSE), LONGEST_PAUSE)

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as error:  # no memory, or too many processes: just now
            self._log.error("the unpack worker cannot be started: {error}", error=error)
            self._start_later()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """A place among those that compute; it can be given up before the end."""
        await self._slots.acquire()
        slot = Slot(self._slots)
        try:
            yield slot
        finally:
            slot.release()

    @asynccontextmanager
    async def job(self, listener: JobListener, **begin: Any) -> AsyncIterator[Job]:
        """A job that has begun; leaving kills it if it is not over, and waits until it is gone."""
        while self._process is None:
            if self._stopping:
                raise Unavailable("unpacking", "the daemon is stopping")
            waiter: Deferred[None] = Deferred(self._waiting.remove)
            self._waiting.append(waiter)
            await waiter
        job = self._process.begin(listener, **begin)
        try:
            yield job
        finally:
            job.say(cancel=True)
            await settled(job.over)


class Slot:
    """A place among those that compute."""

    def __init__(self, slots: DeferredSemaphore) -> None:
        self._slots = slots
        self._held = True

    def release(self) -> None:
        """Give it to the next.  Can be repeated."""
        if self._held:
            self._held = False
            self._slots.release()
