"""``ctd run`` and ``exec`` against a daemon that keeps state."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

from tests.unit.cli.command import CommandTestCase, eventually
from tests.unit.cli.fake_daemon import Process, Refused


def echo(process: Process) -> int:
    """A program that copies its standard input to its standard output."""
    while data := process.read(65536):
        process.write("stdout", data)
    return 0


def until_signalled(process: Process) -> int:
    """A program that ends with the first signal it gets."""
    process.write("stdout", b"ready\n")
    return 100 + process.signals.get()


class ForegroundTests(CommandTestCase):
    """A container whose output is the command's."""

    def test_output_and_status(self) -> None:
        """Output goes to the stream it was written to and the exit status is the process's."""

        def program(process: Process) -> int:
            process.write("stdout", b"out\n")
            process.write("stderr", b"err\n")
            return 3

        self.daemon.program = program
        self.assertEqual(self.ctd("run", "busybox", "sh"), (3, "out\n", "err\n"))

    def test_wait_is_asked_before_start(self) -> None:
        """The exit is asked for before the start, so that none is too fast."""
        self.ctd("run", "--rm", "busybox")
        self.assertEqual(
            self.daemon.methods(),
            ["containers.create", "containers.wait", "containers.start", "containers.delete"],
        )

    def test_parameters(self) -> None:
        """Options and the command after the image become parameters; the rest is left out."""
        self.ctd("-n", "ci", "run", "--name", "a", "-e", "K=V", "busybox", "sh", "-c", "x", "--rm")
        params = self.daemon.params("containers.create")
        stdio = params.pop("stdio")
        self.assertEqual(
            params,
            {
                "namespace": "ci",
                "id": "a",
                "image": "busybox",
                "args": ["sh", "-c", "x", "--rm"],
                "env": ["K=V"],
                "netns": "new",
            },
        )
        self.assertEqual(stdio["stdin"], "null")
        self.assertTrue(stdio["stdout"].startswith(f"fifo://{self.fifos}/ctd-"))
        self.assertTrue(stdio["stderr"].endswith("/stderr?unread=drop"))

    def test_large_binary_output(self) -> None:
        """Fifty megabytes of any bytes come through, to a pipe, a file and one appended to."""
        block = os.urandom(1 << 20)

        def program(process: Process) -> int:
            for _ in range(50):
                process.write("stdout", block)
            return 0

        self.daemon.program = program
        expected = hashlib.sha256(block * 50).hexdigest()
        path = self.directory / "output"
        for mode in ("pipe", "wb", "ab"):
            with self.subTest(mode=mode):
                if mode == "pipe":
                    out, _ = self.popen("run", "busybox").communicate(timeout=60)
                else:
                    path.unlink(missing_ok=True)
                    with path.open(mode) as file:
                        self.popen("run", "busybox", stdout=file).communicate(timeout=60)
                    out = path.read_bytes()
                self.assertEqual(hashlib.sha256(out).hexdigest(), expected)

    def test_slow_reader(self) -> None:
        """A reader that is slow gets all of it."""
        self.daemon.program = lambda process: process.write("stdout", bytes(5 << 20)) or 0
        process = self.popen("run", "busybox")
        time.sleep(0.5)
        out, _ = process.communicate(timeout=30)
        self.assertEqual(len(out), 5 << 20)

    def test_stdin(self) -> None:
        """With -i standard input goes to the process, and so does its end."""
        self.daemon.program = echo
        data = os.urandom(3 << 20)
        process = self.popen("run", "-i", "busybox", "cat", stdin=subprocess.PIPE)
        out, _ = process.communicate(data, timeout=30)
        self.assertEqual((process.returncode, out == data), (0, True))

    def test_stdin_left_open(self) -> None:
        """A process that ends without reading its input ends the command."""
        self.daemon.program = lambda process: 5
        process = self.popen("run", "-i", "busybox", stdin=subprocess.PIPE)
        self.assertEqual(process.wait(20), 5)

    def test_output_held_by_a_child(self) -> None:
        """Output that comes after the exit is waited for until its end."""

        def program(process: Process) -> int:
            process.end(0)
            time.sleep(0.3)
            process.write("stdout", b"late")
            return 0

        self.daemon.program = program
        self.assertEqual(self.ctd("run", "busybox"), (0, "late", ""))

    def test_fifos_are_gone_while_it_runs(self) -> None:
        """Nothing of the command is on disk once both ends are open."""
        self.daemon.program = until_signalled
        process = self.popen("run", "busybox")
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"ready\n")
        self.assertEqual(list(self.fifos.iterdir()), [])
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 115)

    def test_broken_pipe(self) -> None:
        """When nobody reads the output the container is killed, and the status is SIGPIPE's."""

        def program(process: Process) -> int:
            with contextlib.suppress(BrokenPipeError):
                while True:
                    process.write("stdout", b"y\n" * 1000)
            process.ended.wait()  # the shim, which has the other end, goes on without readers
            return 0

        self.daemon.program = program
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as file:
            process = self.popen("run", "--rm", "--name", "y", "busybox", stdout=file)
        os.read(reader, 10)
        os.close(reader)
        status, _, err = self.ends(process)
        self.assertEqual((status, err), (141, ""))
        self.assertEqual(self.daemon.params("containers.kill")["signal"], signal.SIGKILL)
        self.assertEqual(self.daemon.containers, {})

    def test_full_disk(self) -> None:
        """Output that cannot be written is told of, and is no success."""
        self.daemon.program = lambda process: process.write("stdout", b"x") or 0
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            status, _, err = self.ends(self.popen("run", "busybox", stdout=full))
        self.assertEqual(status, 125)
        self.assertIn("No space left on device", err)


class SignalTests(CommandTestCase):
    """Signals that come to the command."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon.program = until_signalled

    def _running(self, *options: str) -> subprocess.Popen[bytes]:
        process = self.popen("run", *options, "busybox")
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def test_forwarded(self) -> None:
        """Signals go to the process, and its exit status comes back."""
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGUSR1,
        ):
            with self.subTest(signal=number):
                process = self._running()
                process.send_signal(number)
                self.assertEqual(self.ends(process), (100 + number, "", ""))

    def test_removed_after_a_signal(self) -> None:
        """With --rm the container is removed also when a signal ended it."""
        process = self._running("--rm")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(20), 102)
        self.assertEqual(self.daemon.containers, {})

    def test_insisting(self) -> None:
        """The third signal in short order kills what does not listen."""

        def deaf(process: Process) -> int:
            process.write("stdout", b"ready\n")
            process.ended.wait()
            return 0

        self.daemon.program = deaf
        process = self._running()
        sent: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            sent.append(number)
            eventually(lambda: self.daemon.methods().count("containers.kill") == len(sent))
        self.assertEqual(process.wait(20), 137)

    def test_during_a_pull(self) -> None:
        """A signal during the pull ends the command, hangs up, and leaves nothing."""
        pulling, never = threading.Event(), threading.Event()
        self.daemon.before["images.pull"] = lambda params: pulling.set() or never.wait()
        process = self.popen("run", "other")
        self.assertTrue(pulling.wait(10))
        process.send_signal(signal.SIGTERM)
        status, out, err = self.ends(process)
        self.assertEqual((status, out, err), (143, "", ""))
        self.assertEqual(list(self.fifos.iterdir()), [])

    def test_during_create(self) -> None:
        """A signal while the container is being made removes it once it is made."""
        creating, go = threading.Event(), threading.Event()
        self.daemon.before["containers.create"] = lambda params: creating.set() or go.wait()
        process = self.popen("run", "busybox")
        self.assertTrue(creating.wait(10))
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        go.set()
        self.assertEqual(self.ends(process)[0], 130)
        self.assertEqual(self.daemon.containers, {})
        self.assertNotIn("containers.start", self.daemon.methods())

    def test_daemon_that_hangs(self) -> None:
        """The third signal in short order ends a command whose daemon does not answer."""
        called, never = threading.Event(), threading.Event()
        self.daemon.before["containers.create"] = lambda params: called.set() or never.wait()
        for command in (("run",), ("run", "-d"), ("create",)):
            with self.subTest(command=command):
                called.clear()
                process = self.popen(*command, "busybox")
                self.assertTrue(called.wait(10))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                    self.assertIsNone(process.poll())
                    process.send_signal(number)
                    time.sleep(0.05)
                self.assertEqual(self.ends(process), (130, "", ""))
                self.assertEqual(list(self.fifos.iterdir()), [])

    def test_detached_during_create(self) -> None:
        """With -d too a signal while the container is being made removes it."""
        creating, go = threading.Event(), threading.Event()
        self.daemon.before["containers.create"] = lambda params: creating.set() or go.wait()
        process = self.popen("run", "-d", "busybox")
        self.assertTrue(creating.wait(10))
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        go.set()
        self.assertEqual(self.ends(process), (130, "", ""))
        self.assertEqual(self.daemon.containers, {})

    def test_ignored_stays_ignored(self) -> None:
        """A signal that was ignored when the command began is not forwarded (nohup)."""
        process = subprocess.Popen(
            [
                *("sh", "-c", 'trap "" HUP; exec "$@"', "sh"),
                *(sys.executable, "-m", "ctd", "run", "busybox"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "CTD_HOST": str(self.daemon.path)},
        )
        self._processes.append(process)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"ready\n")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 115)


class FailureTests(CommandTestCase):
    """Exit statuses that are not the process's, and what is left."""

    def test_command_statuses(self) -> None:
        """127 if there is no such command, 126 if it cannot be executed, else 125."""
        for name, status in (
            ("CommandNotFound", 127),
            ("CommandNotExecutable", 126),
            ("RuntimeFailure", 125),
        ):
            with self.subTest(error=name):
                self.daemon.create_error = Refused("not_found", name, "no such thing")
                self.assertEqual(self.ctd("run", "busybox"), (status, "", "ctd: no such thing\n"))
                self.assertEqual(list(self.fifos.iterdir()), [])

    def test_name_taken(self) -> None:
        """A container of that name is left alone, also with --rm."""
        self.ctd("create", "--name", "a", "busybox")
        status, _, err = self.ctd("run", "--rm", "--name", "a", "busybox")
        self.assertEqual((status, err), (125, "ctd: container 'a' already exists\n"))
        self.assertEqual(list(self.daemon.containers), ["a"])

    def test_no_daemon(self) -> None:
        """Without a daemon the status is 125 and the message says how to start one."""
        self.daemon.die()
        status, _, err = self.ctd("run", "busybox")
        self.assertEqual(status, 125)
        self.assertIn("no daemon listens on", err)
        self.assertIn("twistd -n ctd", err)

    def test_usage(self) -> None:
        """Wrong usage of run is 125, as docker has it."""
        self.assertEqual(self.ctd("run", "--nonsense", "busybox")[0], 125)

    def test_start_fails(self) -> None:
        """A container that was made and does not start is removed."""

        def refuse(params: object) -> None:
            raise Refused("failed_precondition", "RuntimeFailure", "runc start: no")

        self.daemon.before["containers.start"] = refuse
        for options in ((), ("-d",)):
            with self.subTest(options=options):
                self.assertEqual(self.ctd("run", *options, "busybox")[0], 125)
                self.assertEqual(self.daemon.containers, {})

    def test_missing_image_is_pulled(self) -> None:
        """An image that is not here is pulled, with progress on standard error only."""
        status, out, err = self.ctd("run", "alpine")
        self.assertEqual((status, out), (0, ""))
        self.assertIn("alpine: downloading", err)

    def test_image_that_cannot_be_pulled(self) -> None:
        """An image no registry has is an error of the daemon's, told once."""
        status, _, err = self.ctd("run", "-q", "missing")
        self.assertEqual((status, err), (125, "ctd: image 'missing' not found\n"))

    def test_lost(self) -> None:
        """A process lost with its shim gives the status the daemon has for it, and a word."""

        def program(process: Process) -> int:
            process.end(255)
            process.record["exit_reason"] = "lost"
            return 0

        self.daemon.program = program
        status, _, err = self.ctd("run", "busybox")
        self.assertEqual(status, 255)
        self.assertIn("lost", err)


class DaemonDeathTests(CommandTestCase):
    """The daemon goes while the command runs, and another one comes."""

    def test_while_it_runs(self) -> None:
        """Output flows on without a daemon, and the exit is heard of from the next one."""
        stage = threading.Event()

        def program(process: Process) -> int:
            process.write("stdout", b"one\n")
            stage.wait()
            process.write("stdout", b"two\n")
            return 7

        self.daemon.program = program
        process = self.popen("run", "--rm", "busybox")
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"one\n")
        self.daemon.die()
        stage.set()
        self.assertEqual(process.stdout.readline(), b"two\n")
        time.sleep(0.3)
        self.daemon.listen()
        self.assertEqual(self.ends(process), (7, "", ""))
        self.assertEqual(self.daemon.containers, {})

    def test_graceful_stop(self) -> None:
        """A daemon that answers that it is stopping is like one that hangs up."""
        refusals = [Refused("unavailable", "DatabaseClosed", "stopping")]

        def stopping(params: object) -> None:
            if refusals:
                raise refusals.pop()

        self.daemon.before["containers.wait"] = stopping
        self.daemon.program = lambda process: time.sleep(0.2) or 4
        self.assertEqual(self.ctd("run", "busybox"), (4, "", ""))

    def test_signal_without_a_daemon(self) -> None:
        """A signal that comes while there is no daemon is forwarded by the next one."""
        self.daemon.program = until_signalled
        process = self.popen("run", "busybox")
        assert process.stdout is not None
        process.stdout.readline()
        self.daemon.die()
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        self.daemon.listen()
        self.assertEqual(process.wait(20), 110)

    def test_signal_not_acknowledged(self) -> None:
        """A signal the daemon took and did not answer is sent again."""
        self.daemon.program = until_signalled

        def hang_up(params: object) -> None:
            del self.daemon.before["containers.kill"]
            self.daemon.hang_up()
            raise Refused("aborted", "Gone", "not heard")

        self.daemon.before["containers.kill"] = hang_up
        process = self.popen("run", "busybox")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 115)

    def test_at_every_call(self) -> None:
        """A connection cut before or after any call changes nothing: one container, one run."""
        self.daemon.program = lambda process: process.write("stdout", b"once\n") or 6
        for method in ("containers.create", "containers.wait", "containers.start"):
            for when in ("before", "after"):
                with self.subTest(method=method, when=when):
                    self._cut(method, when)
                    self.daemon.log.clear()
                    self.assertEqual(self.ctd("run", "--rm", "busybox"), (6, "once\n", ""))
                    self.assertEqual(self.daemon.containers, {})

    def test_exec_at_every_call(self) -> None:
        """The same for exec: the process is started once."""
        self.ctd("create", "--name", "a", "busybox")
        self.daemon.program = lambda process: process.write("stdout", b"once\n") or 6
        for method in ("processes.exec", "processes.wait"):
            for when in ("before", "after"):
                with self.subTest(method=method, when=when):
                    self._cut(method, when)
                    self.assertEqual(self.ctd("exec", "a", "x"), (6, "once\n", ""))
                    self.assertEqual(self.daemon.execs, {})

    def test_create_of_a_taken_name(self) -> None:
        """After a cut a container of that name that somebody else made is not taken for ours."""
        self.ctd("create", "--name", "a", "busybox")
        self._cut("containers.create", "before")
        status, _, err = self.ctd("run", "--rm", "--name", "a", "busybox")
        self.assertEqual((status, err), (125, "ctd: container 'a' already exists\n"))
        self.assertEqual(list(self.daemon.containers), ["a"])

    def test_gone_for_good(self) -> None:
        """Who insists leaves a run whose daemon does not come back, and is told what stays."""
        self.daemon.program = until_signalled
        process = self.popen("run", "--rm", "--name", "a", "busybox")
        assert process.stdout is not None
        process.stdout.readline()
        self.daemon.die()
        time.sleep(0.2)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        status, _, err = self.ends(process)
        self.assertEqual(status, 130)
        self.assertIn("container a is not removed", err)

    def test_wait_command(self) -> None:
        """ctd wait goes on with the next daemon."""
        self.daemon.program = until_signalled
        self.ctd("run", "-d", "--name", "a", "busybox")
        self.ctd("run", "-d", "--name", "b", "busybox")
        process = self.popen("wait", "a", "b")
        eventually(lambda: self.daemon.methods().count("containers.wait") == 2)
        self.daemon.die()
        self.daemon.containers["a"].signals.put(1)
        self.daemon.listen()
        eventually(lambda: self.daemon.methods().count("containers.wait") == 4)
        self.daemon.containers["b"].signals.put(2)
        self.assertEqual(self.ends(process), (102, "101\n102\n", ""))

    def test_delete_is_cut(self) -> None:
        """--rm removes the container also if the connection is cut in that moment."""
        for when in ("before", "after"):
            with self.subTest(when=when):
                self._cut("containers.delete", when)
                self.assertEqual(self.ctd("run", "--rm", "busybox"), (0, "", ""))
                self.assertEqual(self.daemon.containers, {})

    def _cut(self, method: str, when: str) -> None:
        hooks = self.daemon.before if when == "before" else self.daemon.after

        def cut(params: object) -> None:
            del hooks[method]
            self.daemon.hang_up()
            raise Refused("aborted", "Gone", "not heard")

        hooks[method] = cut


class DetachedTests(CommandTestCase):
    """Containers nobody watches."""

    def test_run(self) -> None:
        """-d prints the id; output is nobody's, as the protocol has it unless told otherwise."""
        status, out, _ = self.ctd("run", "-d", "--name", "web", "busybox")
        self.assertEqual((status, out), (0, "web\n"))
        self.assertNotIn("stdio", self.daemon.params("containers.create"))

    def test_made_up_name(self) -> None:
        """Without --name the id is 12 hex digits."""
        _, out, _ = self.ctd("run", "-d", "busybox")
        self.assertRegex(out, r"^[0-9a-f]{12}\n$")

    def test_contradictions(self) -> None:
        """-d goes neither with --rm nor with -i."""
        for option in ("--rm", "-i"):
            self.assertEqual(self.ctd("run", "-d", option, "busybox")[0], 125)
        self.assertEqual(self.daemon.log, [])

    def test_create_and_start(self) -> None:
        """create makes, start starts, and each prints the id."""
        self.assertEqual(self.ctd("create", "--name", "a", "busybox"), (0, "a\n", ""))
        self.assertEqual(self.daemon.containers["a"].record["status"], "created")
        self.assertEqual(self.ctd("start", "a"), (0, "a\n", ""))
        self.assertTrue(self.daemon.containers["a"].ended.wait(10))


class ExecTests(CommandTestCase):
    """Another process in a container."""

    def setUp(self) -> None:
        super().setUp()
        self.ctd("create", "--name", "a", "busybox")

    def test_foreground(self) -> None:
        """Input, output and the exit status are the process's, and no record is left."""
        self.daemon.program = echo
        status, out, err = self.ctd("exec", "-i", "-w", "/tmp", "a", "cat", "-", stdin=b"in")
        self.assertEqual((status, out, err), (0, "in", ""))
        params = self.daemon.params("processes.exec")
        self.assertEqual((params["args"], params["cwd"]), (["cat", "-"], "/tmp"))
        self.assertEqual(self.daemon.execs, {})

    def test_signals(self) -> None:
        """Signals go to the process, not to the container."""
        self.daemon.program = until_signalled
        process = self.popen("exec", "a", "x")
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(20), 115)

    def test_detached(self) -> None:
        """-d does not wait."""
        self.daemon.program = lambda process: process.ended.wait() or 0
        self.assertEqual(self.ctd("exec", "-d", "a", "x"), (0, "", ""))

    def test_failures(self) -> None:
        """The statuses of failures are those of run."""
        self.daemon.create_error = Refused("not_found", "CommandNotFound", "no x")
        self.assertEqual(self.ctd("exec", "a", "x"), (127, "", "ctd: no x\n"))
        self.assertEqual(self.ctd("exec", "nobody", "x")[0], 125)
        self.assertEqual(self.ctd("exec", "a")[0], 125)
