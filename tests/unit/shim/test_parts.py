"""Parts of a shim that need no container."""

from __future__ import annotations

import json
import os
import unittest
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ctd import kernel
from ctd.protocols.shim import Failure
from ctd.shim import mounts, records
from ctd.shim.loop import READABLE, Loop
from ctd.shim.oom import _counter_file
from ctd.shim.relay import FifoInput, FifoOutput, FileOutput, open_fifo, open_file
from ctd.shim.runtime import failure, last_error
from ctd.shim.tasks import Turns, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctd.shim.tasks import Task


def turn(loop: Loop, until: Callable[[], Any], seconds: float = 10) -> None:
    """Run a loop until something is true."""

    def look() -> None:
        if until():
            loop.stop()
        else:
            loop.after(0.005, look)

    loop._running = True
    timer = loop.after(seconds, loop.stop)
    look()
    loop.run()
    timer.cancel()
    assert until()


class LoopTests(unittest.TestCase):
    """Descriptors and timers."""

    def test_timers(self) -> None:
        """Timers are called in order, and not when they were cancelled."""
        loop, called = Loop(), list[str]()
        loop.after(0.02, lambda: called.append("late"))
        loop.after(0.01, lambda: called.append("early"))
        loop.after(0.01, lambda: called.append("never")).cancel()
        turn(loop, lambda: len(called) == 2)
        self.assertEqual(called, ["early", "late"])

    def test_failure(self) -> None:
        """A watcher that fails is called no more, and the loop goes on."""
        loop, called = Loop(), list[int]()
        reader, writer = os.pipe()
        os.write(writer, b"x")

        def fail(events: int) -> None:
            called.append(events)
            raise RuntimeError("on purpose")

        loop.watch(reader, READABLE, fail)
        done = list[bool]()
        loop.after(0.05, lambda: done.append(True))
        turn(loop, lambda: done)
        self.assertEqual(called, [READABLE])
        os.close(reader)
        os.close(writer)


class TaskTests(unittest.TestCase):
    """Generators that wait."""

    def test_result(self) -> None:
        """A task gets what it waited for, and its result or error is handed on."""
        resume: list[Callable[[Any], None]] = []
        outcomes: list[tuple[Any, Any]] = []

        def work(bad: bool) -> Task[int]:
            value = yield resume.append
            if bad:
                raise ValueError(value)
            return int(value)

        for bad in (False, True):
            run(work(bad), lambda *outcome: outcomes.append(outcome))
        for one in resume:
            one(7)
        self.assertEqual(outcomes[0], (7, None))
        self.assertIsInstance(outcomes[1][1], ValueError)

    def test_turns(self) -> None:
        """Turns of one key come one after the other, those of others do not wait."""
        turns, had = Turns(), list[str]()
        turns.take("a")(lambda _: had.append("a1"))
        turns.take("a")(lambda _: had.append("a2"))
        turns.take("b")(lambda _: had.append("b"))
        self.assertEqual(had, ["a1", "b"])
        turns.give("a")
        self.assertEqual(had, ["a1", "b", "a2"])
        turns.give("a")
        turns.take("a")(lambda _: had.append("a3"))
        self.assertEqual(had[-1], "a3")


class RecordTests(unittest.TestCase):
    """Records on disk."""

    def test_written(self) -> None:
        """A record is whole, private, and replaces what was there."""
        with TemporaryDirectory() as directory:
            for status in (1, 2):
                records.write_exit(directory, {"process": "init", "exit_status": status})
            path = Path(directory, "exit-init.json")
            self.assertEqual(
                json.loads(path.read_text()), {"version": 1, "process": "init", "exit_status": 2}
            )
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
            self.assertEqual(os.listdir(directory), ["exit-init.json"])

    def test_failed(self) -> None:
        """What cannot be written leaves nothing."""
        with TemporaryDirectory() as directory:
            Path(directory, "exit-init.json").mkdir()
            with self.assertRaises(OSError):
                records.write_exit(directory, {"process": "init"})
            self.assertEqual(os.listdir(directory), ["exit-init.json"])


class RelayTests(unittest.TestCase):
    """Bytes over pipes."""

    def setUp(self) -> None:
        self.directory = TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.path = f"{self.directory.name}/fifo"
        os.mkfifo(self.path)
        self.loop = Loop()
        self.ended: list[bool] = []
        self.source, self.process = os.pipe()

    def output(self, drop: bool = False) -> FifoOutput:
        """A relay from :attr:`process` to the fifo, begun."""
        fifo = open_fifo(self.path, "stdout")
        relay = FifoOutput(self.loop, self.source, lambda: self.ended.append(True), fifo, drop)
        relay.begin()
        return relay

    def test_full_fifo(self) -> None:
        """A fifo that is full holds the process up, and nothing is lost."""
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        relay = self.output()
        os.set_blocking(self.process, False)
        sent, got = 0, 0
        while sent < 1_000_000:
            try:
                sent += os.write(self.process, b"x" * 9000)
            except BlockingIOError:
                done: list[bool] = []
                self.loop.after(0.02, lambda done=done: done.append(True))  # type: ignore[misc]
                turn(self.loop, lambda done=done: done)  # type: ignore[misc]
                try:
                    got += len(os.read(reader, 50000))
                except BlockingIOError:
                    pass
        os.close(self.process)

        def read() -> bool:
            nonlocal got
            try:
                got += len(os.read(reader, 1 << 20))
            except BlockingIOError:
                pass
            return relay.ended

        turn(self.loop, read)
        read()
        self.assertEqual((got, relay.dropped), (sent, 0))
        self.assertEqual(self.ended, [True])
        os.close(reader)

    def test_nothing_said(self) -> None:
        """Output that ends without a byte needs no reader to end."""
        relay = self.output()
        os.close(self.process)
        turn(self.loop, lambda: relay.ended)
        self.assertEqual(relay.dropped, 0)

    def test_dropped(self) -> None:
        """Bytes that nobody reads are counted, and a reader that comes gets those after."""
        relay = self.output(drop=True)
        os.write(self.process, b"12345")
        turn(self.loop, lambda: relay.dropped == 5)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.write(self.process, b"678")
        os.close(self.process)
        turn(self.loop, lambda: relay.ended)
        self.assertEqual(os.read(reader, 10), b"678")
        self.assertEqual(relay.dropped, 5)
        os.close(reader)

    def test_closed(self) -> None:
        """What is left in the pipe when a relay is closed counts as dropped."""
        relay = self.output()
        os.write(self.process, b"123")
        relay.close()
        relay.close()
        self.assertEqual((relay.dropped, self.ended), (3, [True]))
        with self.assertRaises(BrokenPipeError):
            os.write(self.process, b"x")
        os.close(self.process)

    def test_file(self) -> None:
        """A file is appended to."""
        path = f"{self.directory.name}/file"
        Path(path).write_text("1")
        done = lambda: self.ended.append(True)  # noqa: E731
        relay = FileOutput(self.loop, self.source, done, open_file(path), path)
        relay.begin()
        os.write(self.process, b"2")
        os.close(self.process)
        turn(self.loop, lambda: relay.ended)
        self.assertEqual(Path(path).read_text(), "12")

    def test_input(self) -> None:
        """Input waits for its first writer, and ends with its last."""
        relay = FifoInput(self.loop, open_fifo(self.path, "stdin"), self.process)
        relay.begin()
        waited: list[bool] = []
        self.loop.after(0.05, lambda: waited.append(True))
        turn(self.loop, lambda: waited)
        os.set_blocking(self.source, False)
        with self.assertRaises(BlockingIOError):
            os.read(self.source, 10)
        writer = os.open(self.path, os.O_WRONLY)
        os.write(writer, b"hello")
        os.close(writer)
        turn(self.loop, lambda: relay._ended)
        self.assertEqual(os.read(self.source, 10), b"hello")
        self.assertEqual(os.read(self.source, 10), b"")
        os.close(self.source)

    def test_input_nobody_takes(self) -> None:
        """When the process closes its input, who writes to the fifo gets a broken pipe."""
        relay = FifoInput(self.loop, open_fifo(self.path, "stdin"), self.process)
        relay.begin()
        writer = os.open(self.path, os.O_WRONLY)
        os.close(self.source)
        turn(self.loop, lambda: relay._ended)
        with self.assertRaises(BrokenPipeError):
            os.write(writer, b"x")
        os.close(writer)


class RuntimeTests(unittest.TestCase):
    """What the OCI runtime says."""

    def test_log(self) -> None:
        """The last error of a log counts; what is no JSON is skipped."""
        log = b'{"level":"error","msg":"first"}\n{"level":"warning","msg":"w"}\ncut {"le\n'
        self.assertEqual(last_error(log), "first")
        self.assertEqual(last_error(b""), "")

    def test_kinds(self) -> None:
        """Words about the command are told from words about anything else."""
        prefix = "runc create failed: unable to start container process: "
        for words, kind, command in (
            (
                prefix + 'exec: "sh": executable file not found in $PATH: unknown',
                "command_not_found",
                "sh",
            ),
            (
                prefix + 'exec: "/x": stat /x: no such file or directory',
                "command_not_found",
                "/x",
            ),
            (prefix + 'exec: "/x": permission denied', "command_not_executable", "/x"),
            (prefix + 'exec: "/etc": is a directory', "command_not_executable", "/etc"),
            (prefix + "exec /x: exec format error", "command_not_executable", "/x"),
            (
                "executable file `x` not found in $PATH: No such file or directory",
                "command_not_found",
                "x",
            ),
            ("open executable: Permission denied", "command_not_executable", ""),
        ):
            with self.subTest(words=words):
                found = failure("create", words)
                self.assertEqual((found.kind, found.fields), (kind, {"command": command}))
        for words in (
            prefix + 'chdir to cwd ("/x") set in config.json failed: no such file or directory',
            "error mounting /x: permission denied",
        ):
            found = failure("create", words)
            self.assertEqual(
                (found.kind, found.fields), ("runtime_failure", {"operation": "create"})
            )
        self.assertIsInstance(found, Failure)


class MountTests(unittest.TestCase):
    """Options of overlays."""

    def test_split(self) -> None:
        """Escaped separators do not separate."""
        self.assertEqual(
            mounts.split_options(r"lowerdir=/a\:b:/c\,d,index=off"),
            [r"lowerdir=/a\:b:/c\,d", "index=off"],
        )
        self.assertEqual(kernel.split_layers(r"/a\:b:/c\,d"), [r"/a\:b", r"/c\,d"])
        self.assertEqual(kernel.unescaped(r"/a\:b\\c\,d"), r"/a:b\c,d")

    def test_shortened(self) -> None:
        """Layers are made relative to what they have in common, unless that is escaped."""
        self.assertEqual(mounts.shortened(["/s/1/fs", "/s/2/fs"]), ("/s", ["1/fs", "2/fs"]))
        self.assertEqual(mounts.shortened(["/s\\:/1", "/s\\:/2"])[0], "/")
        self.assertEqual(mounts.shortened(["/s/1", "/s/1/fs"])[0], "/")


class OomTests(unittest.TestCase):
    """Where OOM kills are counted."""

    def test_files(self) -> None:
        """Version 1's memory controller comes before version 2."""
        self.assertEqual(
            _counter_file("4:memory:/a\n0::/b\n"), "/sys/fs/cgroup/memory/a/memory.oom_control"
        )
        self.assertEqual(_counter_file("0::/b\n"), "/sys/fs/cgroup/b/memory.events")
        self.assertEqual(_counter_file(""), "")
