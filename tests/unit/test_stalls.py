"""The stall meter on a clock that tests move."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ctd.stalls import INTERVAL, StallMeter


class StallMeterTests(SynchronousTestCase):
    """Lateness."""

    def test_measures(self) -> None:
        """Being late is a stall; being on time is none."""
        clock = Clock()
        real = [100.0]
        meter = StallMeter(clock, lambda: real[0])
        meter.startService()
        for pause in (INTERVAL, INTERVAL + 0.25, INTERVAL, INTERVAL + 0.02):
            real[0] += pause
            clock.advance(INTERVAL)
        meter.stopService()
        self.assertAlmostEqual(meter.stalls.longest, 0.25)
        self.assertEqual(meter.stalls.over_limit, 1)
        self.assertEqual(clock.getDelayedCalls(), [])
