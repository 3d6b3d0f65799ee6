"""The unpack worker, spawned and supervised; what its jobs say, handed to who asked."""

from __future__ import annotations

import os
import signal
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
from ctd.keeping import LONGEST_PAUSE, Kept

#: Layers at a time for each core: some of them wait for their bytes.
JOBS_A_CORE = 3

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

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._rest = b""
        self._last = 0
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
        self._slots = DeferredSemaphore(cores * JOBS_A_CORE)
        self._kept: Kept[_WorkerProcess] = Kept(
            reactor,
            reactor,
            "unpack worker",
            ["-I", "-m", _MODULE],
            {"LC_ALL": "C.UTF-8"},
            LONGEST_PAUSE,
            lambda: _WorkerProcess(self),
        )

    def start(self) -> None:
        """Spawn the worker."""
        self._kept.start()

    async def stop(self) -> None:
        """Let it end, and with it what it works on."""
        await self._kept.stop()

    def ended(self, process: _WorkerProcess, reason: Failure) -> None:
        """The worker is gone; called by it."""
        self._kept.ended(process, reason.getErrorMessage())

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
        process = await self._kept.running()
        job = process.begin(listener, **begin)
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
