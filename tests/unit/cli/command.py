"""The real command, run against a fake daemon."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tests.unit.cli.fake_daemon import FakeDaemon


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for a condition and give its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("it did not come true")
        time.sleep(0.01)
    return value


class CommandTestCase(unittest.TestCase):
    """A fake daemon with one image, ``busybox``, and a private directory for fifos."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory(prefix="ctd-cli-")
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.fifos = self.directory / "run"
        self.fifos.mkdir()
        self.daemon = FakeDaemon(self.directory / "ctd.sock")
        self.addCleanup(self.daemon.die)
        self.daemon.add_image("busybox")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.addCleanup(self._end_processes)

    def popen(
        self,
        *args: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        **environment: str,
    ) -> subprocess.Popen[bytes]:
        """Start ``ctd ARGS``."""
        process = subprocess.Popen(
            [sys.executable, "-m", "ctd", *args],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "CTD_HOST": str(self.daemon.path),
                "XDG_RUNTIME_DIR": str(self.fifos),
                **environment,
            },
        )
        self._processes.append(process)
        return process

    def ctd(self, *args: str, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
        """Run ``ctd ARGS`` to its end: exit status, standard output and error."""
        process = self.popen(*args, stdin=subprocess.PIPE, **environment)
        out, err = process.communicate(stdin, timeout=30)
        return process.returncode, out.decode(), err.decode()

    def ends(self, process: subprocess.Popen[bytes], seconds: float = 20) -> tuple[int, str, str]:
        """The same for a command that was started."""
        out, err = process.communicate(timeout=seconds)
        return process.returncode, (out or b"").decode(), err.decode()

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
