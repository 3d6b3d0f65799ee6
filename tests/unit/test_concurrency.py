"""Structured waiting, and work that many share."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from ctd.concurrency import shielded, together
from ctd.singleflight import SingleFlight


class TogetherTests(SynchronousTestCase):
    """Coroutines side by side."""

    def setUp(self) -> None:
        self.log: list[str] = []

    async def work(
        self, name: str, gate: Deferred[None], cleaned: Deferred[None] | None = None
    ) -> None:
        try:
            await gate
        except BaseException:
            self.log.append(f"{name} stopping")
            if cleaned is not None:
                await cleaned
            self.log.append(f"{name} stopped")
            raise
        self.log.append(f"{name} done")

    def test_all(self) -> None:
        """It is done when all are."""
        a: Deferred[None] = Deferred()
        b: Deferred[None] = Deferred()
        all_of = Deferred.fromCoroutine(together([self.work("a", a), self.work("b", b)]))
        a.callback(None)
        self.assertNoResult(all_of)
        b.callback(None)
        self.assertIsNone(self.successResultOf(all_of))

    def test_none(self) -> None:
        """No work is done at once."""
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(together([]))))

    def test_failure(self) -> None:
        """One failure ends the others, and is raised when they have cleaned up."""
        a: Deferred[None] = Deferred()
        cleaned: Deferred[None] = Deferred()
        all_of = Deferred.fromCoroutine(
            together([self.work("a", a), self.work("b", Deferred(), cleaned)])
        )
        a.errback(ValueError("a"))
        self.assertNoResult(all_of)
        self.assertEqual(self.log, ["a stopping", "a stopped", "b stopping"])
        cleaned.callback(None)
        self.failureResultOf(all_of, ValueError)
        self.assertEqual(self.log[-1], "b stopped")

    def test_cancelled(self) -> None:
        """A cancelled waiter ends all, once, and goes when they have; again is no difference."""
        cleaned: Deferred[None] = Deferred()
        all_of = Deferred.fromCoroutine(
            together([self.work("a", Deferred()), self.work("b", Deferred(), cleaned)])
        )
        all_of.cancel()
        all_of.cancel()
        self.assertNoResult(all_of)
        cleaned.callback(None)
        self.failureResultOf(all_of, CancelledError)
        self.assertEqual(self.log, ["a stopping", "a stopped", "b stopping", "b stopped"])


class ShieldedTests(SynchronousTestCase):
    """Work that a cancelled waiter does not stop."""

    def test_runs_on(self) -> None:
        """The work goes on to its end, and only then the waiter is cancelled."""
        gate: Deferred[None] = Deferred()
        log: list[str] = []

        async def work() -> str:
            await gate
            log.append("done")
            return "result"

        waiter = Deferred.fromCoroutine(shielded(work()))
        waiter.cancel()
        self.assertNoResult(waiter)
        gate.callback(None)
        self.failureResultOf(waiter, CancelledError)
        self.assertEqual(log, ["done"])

    def test_result(self) -> None:
        """Left alone it gives what the work gives, or raises what it raises."""

        async def good() -> int:
            return 3

        async def bad() -> int:
            raise ValueError

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(shielded(good()))), 3)
        self.failureResultOf(Deferred.fromCoroutine(shielded(bad())), ValueError)


class SingleFlightTests(SynchronousTestCase):
    """Shared work."""

    def setUp(self) -> None:
        self.flights: SingleFlight[str, int] = SingleFlight()
        self.started = 0
        self.gate: Deferred[int] = Deferred()
        self.cleaned: Deferred[None] = Deferred()

    async def work(self) -> int:
        self.started += 1
        try:
            return await self.gate
        except CancelledError:
            await self.cleaned
            raise

    def join(self) -> Deferred[int]:
        return Deferred.fromCoroutine(self.flights.join("k", self.work))

    def test_once(self) -> None:
        """Ten ask, one works, ten get it; the eleventh, later, starts anew."""
        waiting = [self.join() for _ in range(10)]
        self.gate.callback(7)
        self.assertEqual([self.successResultOf(w) for w in waiting], [7] * 10)
        self.assertEqual(self.started, 1)
        self.gate = Deferred()
        self.assertNoResult(self.join())
        self.assertEqual(self.started, 2)

    def test_failure(self) -> None:
        """All who wait get the error."""
        waiting = [self.join() for _ in range(3)]
        self.gate.errback(ValueError())
        for waiter in waiting:
            self.failureResultOf(waiter, ValueError)
        self.assertNotIn("k", self.flights)

    def test_first_leaves(self) -> None:
        """The work goes on when the one who started it leaves and others wait."""
        first, second = self.join(), self.join()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.gate.callback(7)
        self.assertEqual(self.successResultOf(second), 7)

    def test_leaves_while_it_ends(self) -> None:
        """Who leaves while the former work is still ending starts nothing."""
        first = self.join()
        first.cancel()
        late = self.join()
        late.cancel()
        self.failureResultOf(late, CancelledError)
        self.cleaned.callback(None)
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.started, 1)
        self.assertNotIn("k", self.flights)

    def test_last_leaves(self) -> None:
        """The last to leave ends the work, goes when it has ended; who comes then starts anew."""
        first = self.join()
        first.cancel()
        self.assertNoResult(first)
        late = self.join()
        self.assertEqual(self.started, 1)
        self.gate = Deferred()
        self.cleaned.callback(None)
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.started, 2)
        self.gate.callback(9)
        self.assertEqual(self.successResultOf(late), 9)
