"""System calls by ctypes."""

from __future__ import annotations

import os
import threading
import unittest

from ctd import kernel


class OpenProcessTests(unittest.TestCase):
    """Processes by pid and start time."""

    def test_itself(self) -> None:
        """A process is opened by its pid and start time."""
        started = kernel.start_time(os.getpid())
        assert started is not None
        os.close(kernel.open_process(os.getpid(), started))

    def test_another(self) -> None:
        """A pid that has another start time is no such process, and no descriptor is left."""
        before = len(os.listdir("/proc/self/fd"))
        with self.assertRaises(ProcessLookupError):
            kernel.open_process(os.getpid(), 1)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_thread(self) -> None:
        """The id of a thread is no process, whatever the kernel calls that."""
        ids: list[int] = []
        told, end = threading.Event(), threading.Event()

        def run() -> None:
            ids.append(threading.get_native_id())
            told.set()
            end.wait()

        thread = threading.Thread(target=run)
        thread.start()
        told.wait()
        try:
            started = kernel.start_time(ids[0])
            assert started is not None
            with self.assertRaises(ProcessLookupError):
                kernel.open_process(ids[0], started)
        finally:
            end.set()
            thread.join()
