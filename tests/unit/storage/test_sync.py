"""Syncs shared by those who wait."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import Unavailable
from ctd.storage.sync import Syncer
from tests.unit.storage.stage import HeldWorkers


class SyncerTests(SynchronousTestCase):
    """A syncer with a disk that waits for the test."""

    def setUp(self) -> None:
        self.workers = HeldWorkers()
        self.syncer = Syncer(self.workers, Path("."))  # type: ignore[arg-type]
        self.addCleanup(self.syncer.close)

    def sync(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.syncer.sync())

    def test_one(self) -> None:
        """Who asks waits for one sync."""
        one = self.sync()
        self.assertNoResult(one)
        self.workers.work()
        self.successResultOf(one)
        self.assertEqual(self.workers.waiting, [])

    def test_shared(self) -> None:
        """Those who come while a sync runs share the next one, not the running one."""
        first = self.sync()
        others = [self.sync() for _ in range(5)]
        self.workers.work()
        self.successResultOf(first)
        for other in others:
            self.assertNoResult(other)
        self.workers.work()
        for other in others:
            self.successResultOf(other)
        self.assertEqual(self.workers.waiting, [])

    def test_cancelled(self) -> None:
        """Who stops waiting does not stop the others."""
        first, second, third = self.sync(), self.sync(), self.sync()
        first.cancel()
        second.cancel()
        self.workers.work_all()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, CancelledError)
        self.successResultOf(third)

    def test_failed(self) -> None:
        """After a failed write-back no later sync succeeds: what it hit is not known."""
        first = self.sync()
        with patch("ctd.storage.sync.syncfs", side_effect=OSError(5, "broken")):
            self.workers.work()
        self.failureResultOf(first, Unavailable)
        again = self.sync()
        self.workers.work()
        self.failureResultOf(again, Unavailable)
