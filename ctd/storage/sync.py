"""One syncfs(2) for all who wait for the same file system."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ctd.errors import Unavailable
from ctd.kernel import syncfs
from ctd.threads import IWorkers


class Syncer:
    """Puts everything written to the file system of *root* on disk.

    One call runs at a time.  Who comes while it runs needs the next one, since
    the running one may have passed over what he wrote, and shares it with all
    the others who came meanwhile.

    The kernel tells a failed write-back once, to whoever syncs next, and does
    not say what it hit; so after one failure every later call fails too, until
    the daemon is started again and throws away what was not committed.
    """

    def __init__(self, workers: IWorkers, root: Path) -> None:
        self._workers = workers
        self._root = root
        self._fd = -1
        self._running = False
        self._waiting: list[Deferred[None]] = []
        self._failed: str | None = None

    async def sync(self) -> None:
        """Wait until what was written before this call is on disk.

        :raise Unavailable: the disk did not take something, now or earlier.
        """
        waiter: Deferred[None] = Deferred(self._waiting_no_more)
        self._waiting.append(waiter)
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._run())
        await waiter

    def close(self) -> None:
        """Give the descriptor back; when nothing runs any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _waiting_no_more(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    async def _run(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            failure: Failure | None = None
            try:
                await self._workers.run(self._sync)
            except Exception:  # noqa: BLE001 (handed to those who wait)
                failure = Failure()
            for waiter in waiting:
                if not waiter.called:
                    waiter.callback(None) if failure is None else waiter.errback(failure)
        self._running = False

    def _sync(self) -> None:
        if self._failed is None:
            try:
                if self._fd < 0:
                    self._fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                syncfs(self._fd)
            except OSError as error:
                self._failed = str(error)
        if self._failed is not None:
            raise Unavailable(f"the file system of {self._root}", self._failed)
