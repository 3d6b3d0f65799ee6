"""A lock a key."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ctd.storage.locks import Locks


class LocksTests(SynchronousTestCase):
    """Locks."""

    def setUp(self) -> None:
        self.locks: Locks[str] = Locks()
        self.inside: list[str] = []

    def enter(self, key: str, who: str) -> tuple[Deferred[None], Deferred[None]]:
        leaving: Deferred[None] = Deferred()

        async def work() -> None:
            async with self.locks(key):
                self.inside.append(who)
                await leaving

        return Deferred.fromCoroutine(work()), leaving

    def test_turns(self) -> None:
        """Those who want the same key come one after another; others do not wait."""
        first, leave_first = self.enter("a", "first")
        second, leave_second = self.enter("a", "second")
        _, leave_other = self.enter("b", "other")
        self.assertEqual(self.inside, ["first", "other"])
        leave_first.callback(None)
        self.assertEqual(self.inside, ["first", "other", "second"])
        leave_second.callback(None)
        leave_other.callback(None)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.locks.held, {})

    def test_cancelled(self) -> None:
        """Who stops waiting loses his turn, and nobody else's."""
        _, leave_first = self.enter("a", "first")
        second, _ = self.enter("a", "second")
        third, leave_third = self.enter("a", "third")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        leave_first.callback(None)
        self.assertEqual(self.inside, ["first", "third"])
        leave_third.callback(None)
        self.successResultOf(third)
        self.assertEqual(self.locks.held, {})

    def test_failed(self) -> None:
        """Who fails leaves."""
        failing, leaving = self.enter("a", "first")
        leaving.errback(ValueError())
        self.failureResultOf(failing, ValueError)
        self.assertEqual(self.locks.held, {})
