"""The commands that list, show and end things, and what they have in common."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import unittest

from ctd.cli.entry import COMMANDS
from tests.unit.cli.command import CommandTestCase, eventually
from tests.unit.cli.fake_daemon import Process, Refused


def event(seq: int, topic: str = "container.exited") -> dict[str, object]:
    """An event as the daemon sends it."""
    return {
        "seq": seq,
        "at": "2026-01-02T03:04:07.000000Z",
        "namespace": "default",
        "topic": topic,
        "subject": "web",
        "data": {"exit_status": 0, "reason": "two words"},
    }


class ImportTests(unittest.TestCase):
    """What keeps the command fast."""

    def test_nothing_heavy(self) -> None:
        """No command imports Twisted, attrs, asyncio or other slow things."""
        modules = sorted({f"ctd.cli.{module}" for module, _ in COMMANDS.values()})
        script = (
            f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\n"
            "heavy = {'twisted', 'attr', 'attrs', 'zope', 'msgspec', 'asyncio', 'dataclasses',"
            " 'typing', 'inspect', 'pathlib', 'tempfile', 'subprocess', 'logging'}\n"
            "print(sorted(heavy & set(sys.modules)))"
        )
        out = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"sys = __import__('sys'); sys.path[:0] = "
             f"{[p for p in sys.path if p]}\n{script}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.assertEqual(out.stdout, "[]\n")

    def test_one_module_a_command(self) -> None:
        """Only the module of the command that is run is imported."""
        script = "import sys, ctd.cli; print(sorted(m for m in sys.modules if m[:8] == 'ctd.cli.'))"
        out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        self.assertNotIn("ctd.cli.run", out.stdout)
        self.assertNotIn("ctd.cli.foreground", out.stdout)


class GlobalTests(CommandTestCase):
    """Global options, help and usage."""

    def test_options_before_and_after(self) -> None:
        """-H and -n may stand on either side of the command, and go before the environment."""
        nowhere = {"CTD_HOST": "/nowhere", "CTD_NAMESPACE": "wrong"}
        host = str(self.daemon.path)
        self.assertEqual(self.ctd("-H", host, "-n", "a", "info", **nowhere)[0], 0)
        self.assertEqual(self.ctd("info", "--host", f"unix://{host}", "-n", "a", **nowhere)[0], 0)
        self.assertEqual(self.ctd("info", CTD_NAMESPACE="a")[0], 0)
        self.assertEqual([params for _, params in self.daemon.log], [{"namespace": "a"}] * 3)

    def test_long_socket_path(self) -> None:
        """A socket whose path is too long for its address can be used."""
        deep = self.directory / ("d" * 120)
        deep.mkdir()
        self.daemon.path.rename(deep / "ctd.sock")
        self.assertEqual(self.ctd("-H", str(deep / "ctd.sock"), "info")[0], 0)

    def test_help(self) -> None:
        """--help documents every command, the exit statuses, and each command's options."""
        status, summary, _ = self.ctd("--help")
        self.assertEqual(status, 0)
        self.assertIn("exit status:", summary)
        for name in COMMANDS:
            self.assertIn(f"  {name} ", summary)
            with self.subTest(command=name):
                status, out, _ = self.ctd(name, "--help")
                self.assertEqual(status, 0)
                self.assertIn(f"usage: ctd {name}", out)

    def test_usage(self) -> None:
        """Wrong usage is 2, with what is wrong and where to read on."""
        for args in ((), ("nonsense",), ("ps", "--nonsense"), ("tag", "one")):
            with self.subTest(args=args):
                status, out, err = self.ctd(*args)
                self.assertEqual((status, out), (2, ""))
                self.assertIn("--help", err)

    def test_version(self) -> None:
        """--version prints one line."""
        self.assertRegex(self.ctd("--version")[1], r"^ctd \d+\.\d+\S*\n$")

    def test_no_daemon(self) -> None:
        """A socket that is not there, not listened on, or not a socket: status 1, what to do."""
        file = self.directory / "file"
        file.write_text("")
        for path in (self.directory / "nowhere.sock", file):
            status, _, err = self.ctd("-H", str(path), "ps")
            self.assertEqual(status, 1)
            self.assertIn(str(path), err)
            self.assertIn("-H", err)

    def test_daemon_hangs_up(self) -> None:
        """A daemon that goes in mid-call is told of, with status 1."""

        def hang_up(params: object) -> None:
            self.daemon.hang_up()

        self.daemon.before["daemon.info"] = hang_up
        status, _, err = self.ctd("info")
        self.assertEqual(status, 1)
        self.assertIn("hung up", err)

    def test_error_is_one_line(self) -> None:
        """An error's message is one line of standard error, whatever is in it."""

        def fail(params: object) -> None:
            raise Refused("data_loss", "Torn", "line one\nline two")

        self.daemon.before["daemon.info"] = fail
        self.assertEqual(self.ctd("info"), (1, "", "ctd: line one line two\n"))

    def test_reader_goes(self) -> None:
        """Output nobody reads ends the command without a word."""
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as file:
            status, _, err = self.ends(self.popen("images", stdout=file))
        self.assertEqual((status, err), (141, ""))

    def test_interrupt(self) -> None:
        """Ctrl-C ends a command that waits, without a word."""
        self.ctd("create", "--name", "a", "busybox")
        process = self.popen("wait", "a")
        eventually(lambda: "containers.wait" in self.daemon.methods())
        process.send_signal(signal.SIGINT)
        self.assertEqual(self.ends(process), (130, "", ""))

    def test_closed_streams(self) -> None:
        """Closed standard streams are not mistaken for the socket."""
        process = subprocess.run(
            ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-m", "ctd", "info"],
            env={**os.environ, "CTD_HOST": str(self.daemon.path)},
            stderr=subprocess.PIPE,
        )
        self.assertEqual((process.returncode, process.stderr), (0, b""))


class ContainerTests(CommandTestCase):
    """ps, inspect, kill, stop, wait, rm."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon.program = lambda process: 100 + process.signals.get()
        self.ctd("create", "--name", "made", "busybox", "sleep", "a very long time indeed")
        self.ctd("run", "-d", "--name", "runs", "busybox", "sleep", "1")

    def test_ps(self) -> None:
        """Those that run are listed, all of them with -a; -q has ids, --json a line each."""
        _, out, _ = self.ctd("ps")
        header, row = out.splitlines()
        self.assertRegex(header, r"^CONTAINER ID +IMAGE +COMMAND +CREATED +STATUS$")
        self.assertRegex(row, r'^runs +busybox +"sleep 1" +\d+ \w+ ago +Up \d+ \w+$')
        self.assertEqual(self.ctd("ps", "-aq")[1].split(), ["made", "runs"])
        lines = self.ctd("ps", "-a", "--json")[1].splitlines()
        self.assertEqual([json.loads(line)["id"] for line in lines], ["made", "runs"])

    def test_ps_statuses(self) -> None:
        """Commands are cut short, and statuses are worded as docker words them."""
        self.daemon.containers["runs"].record["status"] = "paused"
        _, out, _ = self.ctd("ps", "-a")
        self.assertIn('"sleep a very long ti…', out)
        self.assertIn("Created", out)
        self.assertIn("(Paused)", out)
        self.daemon.containers["runs"].end(137)
        self.assertRegex(self.ctd("ps", "-a", "--no-trunc")[1], r"Exited \(137, \w+\) \d+|\(137\)")
        self.assertIn("indeed", self.ctd("ps", "-a", "--no-trunc")[1])

    def test_inspect(self) -> None:
        """inspect prints an array; a name that is not there is an error."""
        status, out, _ = self.ctd("inspect", "made", "runs")
        self.assertEqual([one["id"] for one in json.loads(out)], ["made", "runs"])
        self.assertEqual(status, 0)
        self.assertEqual(self.ctd("inspect", "nobody")[0], 1)

    def test_kill(self) -> None:
        """kill sends SIGKILL, or the signal it is given, to all it is told to."""
        status, out, err = self.ctd("kill", "-s", "HUP", "nobody", "runs")
        self.assertEqual((status, out, err), (1, "runs\n", "ctd: container 'nobody' not found\n"))
        self.assertEqual(self.daemon.params("containers.kill")["signal"], "HUP")

    def test_stop(self) -> None:
        """stop sends the image's stop signal and waits; what does not run is left alone."""
        self.daemon.add_image("busybox", stop_signal="SIGQUIT")
        self.assertEqual(self.ctd("stop", "made", "runs"), (0, "made\nruns\n", ""))
        kills = [p["signal"] for m, p in self.daemon.log if m == "containers.kill"]
        self.assertEqual(kills, ["SIGQUIT"])
        self.assertTrue(self.daemon.containers["runs"].ended.is_set())

    def test_stop_kills(self) -> None:
        """What has not ended when the time is up is killed."""

        def deaf(process: Process) -> int:
            process.ended.wait()
            return 0

        self.daemon.program = deaf
        self.ctd("run", "-d", "--name", "deaf", "busybox")
        self.assertEqual(self.ctd("stop", "-t", "0.1", "deaf"), (0, "deaf\n", ""))
        kills = [p["signal"] for m, p in self.daemon.log if m == "containers.kill"]
        self.assertEqual(kills, ["TERM", "KILL"])

    def test_wait(self) -> None:
        """wait prints each status, and its own is the last one's."""
        process = self.popen("wait", "runs")
        self.ctd("kill", "-s", "HUP", "runs")
        self.assertEqual(self.ends(process), (101, "101\n", ""))
        self.assertEqual(self.ctd("wait", "nobody")[0], 125)

    def test_rm(self) -> None:
        """rm removes what does not run; with -f all, and what is gone is no error."""
        status, out, err = self.ctd("rm", "made", "runs")
        self.assertEqual((status, out, err), (1, "made\n", "ctd: it runs\n"))
        self.assertEqual(self.ctd("rm", "-f", "runs", "nobody"), (0, "runs\n", ""))
        self.assertEqual(self.daemon.containers, {})
        self.assertEqual(self.ctd("rm", "nobody")[0], 1)


class ImageTests(CommandTestCase):
    """pull, images, tag, rmi."""

    def test_images(self) -> None:
        """All pages are listed, as a table, names, or JSON lines."""
        self.daemon.add_image("alpine")
        _, out, _ = self.ctd("images")
        self.assertRegex(out.splitlines()[1], r"^docker.io/library/alpine:latest +a{12} .* 7.83MB$")
        self.assertEqual(len(out.splitlines()), 3)
        self.assertEqual(len(self.ctd("images", "-q")[1].split()), 2)
        lines = self.ctd("images", "--json")[1].splitlines()
        self.assertEqual(json.loads(lines[0])["name"], "docker.io/library/alpine:latest")

    def test_tag_and_remove(self) -> None:
        """tag adds a name, rmi takes it away."""
        self.assertEqual(self.ctd("tag", "busybox", "mine")[0], 0)
        self.assertIn("mine", self.daemon.images)
        self.assertEqual(self.ctd("rmi", "mine", "other")[:2], (1, "mine\n"))
        self.assertNotIn("mine", self.daemon.images)

    def test_pull(self) -> None:
        """The name and digest go to standard output, a line a change to standard error."""
        _, out, err = self.ctd("pull", "alpine")
        self.assertEqual(out, f"docker.io/library/alpine:latest sha256:{64 * 'a'}\n")
        self.assertEqual(
            err.splitlines(),
            ["alpine: resolving", "alpine: downloading", f"{12 * 'b'}: unpacked 10B"],
        )

    def test_quiet_pull(self) -> None:
        """With -q there is the name alone."""
        out = self.ctd("pull", "-q", "alpine")
        self.assertEqual(out, (0, "docker.io/library/alpine:latest\n", ""))

    def test_pull_on_a_terminal(self) -> None:
        """On a terminal a block is drawn over itself."""
        main, terminal = pty.openpty()
        with os.fdopen(main, "rb", 0) as screen:
            process = subprocess.Popen(
                [sys.executable, "-m", "ctd", "pull", "alpine"],
                stderr=terminal,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "CTD_HOST": str(self.daemon.path)},
            )
            self.assertEqual(process.wait(20), 0)
            os.close(terminal)
            drawn = screen.read(65536)
        self.assertIn(b"\x1b[K", drawn)
        self.assertIn(b"unpacked", drawn)


class EventTests(CommandTestCase):
    """events."""

    def test_list(self) -> None:
        """All pages of what was, from --since on, a line each."""
        self.daemon.events = [event(seq) for seq in range(1, 6)]
        _, out, _ = self.ctd("events", "--since", "1")
        self.assertEqual([line.split()[0] for line in out.splitlines()], ["2", "3", "4", "5"])
        self.assertIn('container.exited web exit_status=0 reason="two words"', out.splitlines()[0])
        lines = self.ctd("events", "--json")[1].splitlines()
        self.assertEqual(json.loads(lines[4]), event(5))

    def test_follow_across_daemons(self) -> None:
        """-f goes on with the next daemon, with nothing missed and nothing twice."""
        self.daemon.events = [event(1), event(2)]
        process = self.popen("events", "-f", "-q", "--since", "0", "--topic", "container.*")
        assert process.stdout is not None
        self.assertEqual([process.stdout.readline() for _ in "ab"], [b"1\n", b"2\n"])
        self.daemon.die()
        self.daemon.events.append(event(3))
        self.daemon.listen()
        self.assertEqual(process.stdout.readline(), b"3\n")
        self.assertEqual(self.daemon.params("events.subscribe")["topics"], ["container.*"])


class DaemonTests(CommandTestCase):
    """info, gc, call."""

    def test_info(self) -> None:
        """info is for people, or JSON."""
        self.assertIn("version       1\n", self.ctd("info")[1])
        self.assertEqual(json.loads(self.ctd("info", "--json")[1])["version"], "1")

    def test_gc(self) -> None:
        """gc lists what was removed and sums up."""
        status, out, err = self.ctd("gc", "--dry-run")
        self.assertEqual((status, out), (0, "content sha256:aa\n"))
        self.assertEqual(err, "1 would be removed, 1.5kB; 2 kept\n")

    def test_call(self) -> None:
        """call takes any method with JSON from the command line or standard input."""
        self.ctd("create", "--name", "a", "busybox")
        _, out, _ = self.ctd("call", "containers.get", '{"id": "a"}')
        self.assertEqual(json.loads(out)["id"], "a")
        _, out, _ = self.ctd("call", "containers.get", "-", stdin=b'{"id": "a"}')
        self.assertEqual(json.loads(out)["id"], "a")
        self.assertEqual(self.ctd("call", "containers.get", '{"id": "b"}')[0], 1)

    def test_call_notifications(self) -> None:
        """Notifications come as JSON lines before the result."""
        _, out, _ = self.ctd("call", "images.pull", '{"ref": "alpine"}')
        lines = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([one.get("method") for one in lines], ["progress"] * 3 + [None])

    def test_call_is_no_json(self) -> None:
        """What is no JSON object is refused before anything is sent."""
        for text in ("{", "[]", "1"):
            self.assertEqual(self.ctd("call", "daemon.info", text)[0], 1)
        self.assertEqual(self.daemon.log, [])

    def test_concurrent_pages(self) -> None:
        """A reply larger than the socket's buffer is put together."""
        lock = threading.Event()
        self.daemon.before["daemon.info"] = lambda params: lock.set()
        for number in range(3):
            self.daemon.containers[f"c{number}"] = self.daemon.containers.get("x") or Process(
                {"id": f"c{number}", "status": "running", "created_at": "", "pad": "x" * 900_000,
                 "stdio": {"stdin": "null", "stdout": "null", "stderr": "null"}},
                lambda process: 0,
            )  # fmt: skip
        self.assertEqual(self.ctd("ps", "-q")[1].split(), ["c0", "c1", "c2"])
