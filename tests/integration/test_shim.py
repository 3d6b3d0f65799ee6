"""Shims with the real template, the real runc and a root file system of busybox."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctd.protocols.shim import Failure, encode
from tests.integration.shim_rig import (
    NULL,
    Connection,
    Rig,
    Shim,
    alive,
    args,
    fifo,
    runc,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="containers need root")


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A template of its own for each test."""
    one = Rig()
    try:
        yield one
    finally:
        one.close()


def create(
    rig: Rig, *command: str, stdio: dict[str, str] = NULL, **extra: Any
) -> tuple[Shim, Connection]:
    """A container that waits to be started, and a connection to its shim."""
    shim = rig.fork()
    shim.configure(*command, **extra)
    connection = shim.connect()
    connection.call("create", mounts=rig.mounts, stdio=NULL | stdio, terminal=False)
    return shim, connection


def started(
    rig: Rig, *command: str, stdio: dict[str, str] = NULL, **extra: Any
) -> tuple[Shim, Connection]:
    """A container that has been started, and a connection to its shim."""
    shim, connection = create(rig, *command, stdio=stdio, **extra)
    assert connection.call("start")["status"] == "running"
    return shim, connection


def finish(connection: Connection) -> None:
    """Delete a container that has ended, and let the shim go."""
    connection.call("delete", process="init")
    connection.call("shutdown")


def state_of(connection: Connection, process: str = "init") -> dict[str, Any]:
    """The state of one process."""
    (state,) = [s for s in connection.call("state")["processes"] if s["id"] == process]
    assert isinstance(state, dict)
    return state


def may_lower_scores() -> bool:
    """Whether we have CAP_SYS_RESOURCE (24)."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> 24 & 1)


def read_all(fd: int) -> bytes:
    """Read a descriptor to its end, and close it."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


class Reader(threading.Thread):
    """Reads a fifo or socket to its end; only a hash and a count are kept of much."""

    def __init__(self, what: Path | int) -> None:
        super().__init__(daemon=True)
        self.what = what
        self.count = 0
        self.hash = hashlib.sha256()
        self.start()

    def run(self) -> None:
        fd = os.open(self.what, os.O_RDONLY) if isinstance(self.what, Path) else self.what
        with os.fdopen(fd, "rb", buffering=0) as file:
            while data := file.read(1 << 20):
                self.count += len(data)
                self.hash.update(data)


class TestLife:
    """create, start, exit, delete."""

    @pytest.mark.parametrize("status", [0, 1, 137])
    def test_exit_status(self, rig: Rig, status: int) -> None:
        """The exit status is told, kept in the state and recorded."""
        shim, connection = started(rig, "sh", "-c", f"exit {status}")
        exit = connection.notification("exited")
        assert (exit["exit_status"], exit["exit_reason"]) == (status, "exited")
        assert connection.notification("output_ended") == {"process": "init", "dropped": 0}
        state = state_of(connection)
        assert state["status"] == "stopped"
        assert state["output_ended"] is True
        record = json.loads((shim.records / "exit-init.json").read_text())
        assert record == {
            "version": 1,
            "process": "init",
            "pid": state["pid"],
            "exit_status": status,
            "exit_reason": "exited",
            "exited_at": exit["exited_at"],
            "started_at": state["started_at"],
        }
        finish(connection)

    def test_killed(self, rig: Rig) -> None:
        """A process that was killed has 128 and the signal as its status."""
        _, connection = started(rig, "sleep", "100")
        assert connection.call("kill", process="init", signal=9, all=False) == {}
        exit = connection.notification("exited")
        assert (exit["exit_status"], exit["exit_reason"]) == (137, "signalled")
        with pytest.raises(Failure) as caught:
            connection.call("kill", process="init", signal=9)
        assert caught.value.kind == "failed_precondition"

    def test_oom(self, rig: Rig) -> None:
        """A process that the kernel killed for its memory says so."""
        limits = {"memory": {"limit": 8 << 20, "swap": 8 << 20}}
        _, connection = started(rig, "tail", "/dev/zero", resources=limits)
        exit = connection.notification("exited")
        assert (exit["exit_status"], exit["exit_reason"]) == (137, "oom")

    def test_killed_before_the_start(self, rig: Rig) -> None:
        """A first process can end without having been started; it cannot be started then."""
        shim, connection = create(rig, "true")
        connection.call("kill", process="init", signal=9)
        assert connection.notification("exited")["exit_status"] == 137
        assert json.loads((shim.records / "exit-init.json").read_text())["started_at"] is None
        with pytest.raises(Failure) as caught:
            connection.call("start")
        assert caught.value.kind == "failed_precondition"
        finish(connection)

    def test_order(self, rig: Rig) -> None:
        """The reply to start comes before the exit, however soon that is."""
        for _ in range(5):
            _, connection = create(rig, "true")
            number = connection.send("start")
            connection.notification("exited")
            assert any(message.get("id") == number for message in connection.messages)

    def test_repeated(self, rig: Rig) -> None:
        """Every request can be repeated, and is answered as the first time."""
        shim, connection = create(rig, "sleep", "100")
        again = connection.call("create", mounts=rig.mounts, stdio=NULL, terminal=False)
        assert again == state_of(connection)
        assert connection.call("start") == connection.call("start")
        run = {"process": "p", "spec": args("sleep", "100"), "stdio": NULL}
        first, second = connection.send("exec", **run), connection.send("exec", **run)
        assert connection.reply(first) == connection.reply(second)
        for _ in range(2):
            assert connection.call("close_stdin", process="p") == {}
        connection.call("kill", process="init", signal=9)
        connection.notification("exited")
        connection.notification("exited", "p")
        for process in ("p", "p", "init", "init"):
            assert connection.call("delete", process=process) == {}
        assert connection.call("state") == {"processes": []}
        connection.call("shutdown")
        wait_until(lambda: not alive(shim.pid))

    def test_delete_what_runs(self, rig: Rig) -> None:
        """What runs cannot be deleted, nor its shim shut down."""
        _, connection = started(rig, "sleep", "100")
        for method, params in (("delete", {"process": "init"}), ("shutdown", {})):
            with pytest.raises(Failure) as caught:
                connection.call(method, **params)
            assert caught.value.kind == "failed_precondition"

    def test_nothing_left(self, rig: Rig) -> None:
        """After the end there is no process, mount, cgroup, socket or file but the records."""
        shim, connection = started(rig, "sh", "-c", "sleep 100 & sleep 100 & exit 0")
        pid = state_of(connection)["pid"]
        connection.notification("exited")
        finish(connection)
        wait_until(lambda: not alive(shim.pid))
        left = {str(p.relative_to(shim.directory)) for p in shim.directory.rglob("*")}
        left -= {"shim.json", "shim.log", "io", "bundle", "bundle/config.json", "bundle/rootfs"}
        assert left <= {"bundle/runtime.log"}
        assert os.listdir(shim.records) == ["exit-init.json"]
        assert not alive(pid)
        assert shim.run not in Path("/proc/self/mountinfo").read_text()
        assert not list(Path("/sys/fs/cgroup").glob(f"**/{shim.run}"))
        assert runc(rig.state, "list", "-q") == ""
        assert (shim.directory / "shim.log").read_text() == ""

    def test_no_zombies(self, rig: Rig) -> None:
        """Processes that lose their parents to the shim are waited for."""
        shim = rig.fork()
        shim.configure("sleep", "100")
        config = json.loads((shim.bundle / "config.json").read_text())
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
        (shim.bundle / "config.json").write_text(json.dumps(config))
        connection = shim.connect()
        connection.call("create", mounts=rig.mounts, stdio=NULL)
        connection.call("start")
        script = "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done"
        connection.call("exec", process="p", spec=args("sh", "-c", script), stdio=NULL)
        connection.notification("exited", "p")
        children = Path(f"/proc/{shim.pid}/task/{shim.pid}/children")
        init = state_of(connection)["pid"]
        wait_until(lambda: children.read_text().split() == [str(init)])


class TestClaims:
    """Runs belong to one shim."""

    def test_second_shim(self, rig: Rig) -> None:
        """A second shim for a run that has one is refused, and the first goes on."""
        shim = rig.fork()
        with pytest.raises(Failure, match="another shim"):
            rig.connection.call("fork", **rig.fork_params(shim))
        assert shim.connect().call("state") == {"processes": []}

    def test_destroyed_on_its_way(self, rig: Rig) -> None:
        """A shim without a container whose directory goes ends by itself."""
        shim = rig.fork()
        shutil.rmtree(shim.directory)
        wait_until(lambda: not alive(shim.pid))


class TestFailures:
    """What the runtime refuses."""

    @pytest.mark.parametrize(
        ("command", "kind"),
        [
            ("nope", "command_not_found"),
            ("/nope", "command_not_found"),
            ("/etc/plain", "command_not_executable"),
            ("/etc", "command_not_executable"),
        ],
    )
    def test_command(self, rig: Rig, command: str, kind: str) -> None:
        """A command that cannot be run is named, and nothing is left of the container."""
        shim = rig.fork()
        shim.configure(command)
        connection = shim.connect()
        with pytest.raises(Failure) as caught:
            connection.call("create", mounts=rig.mounts, stdio=NULL)
        assert (caught.value.kind, caught.value.fields["command"]) == (kind, command)
        assert connection.call("state") == {"processes": []}
        assert runc(rig.state, "list", "-q") == ""
        assert not list((shim.bundle / "rootfs").iterdir())
        connection.call("shutdown")

    @pytest.mark.parametrize(
        ("command", "kind"),
        [("nope", "command_not_found"), ("/etc/plain", "command_not_executable")],
    )
    def test_exec_command(self, rig: Rig, command: str, kind: str) -> None:
        """A command that exec cannot run is named, and nothing is left of the process."""
        shim, connection = started(rig, "sleep", "100")
        with pytest.raises(Failure) as caught:
            connection.call(
                "exec", process="p", spec=args(command), stdio=NULL | {"stdout": "attach"}
            )
        assert (caught.value.kind, caught.value.fields["command"]) == (kind, command)
        assert [p["id"] for p in connection.call("state")["processes"]] == ["init"]
        assert os.listdir(shim.directory / "io") == []

    def test_runtime(self, rig: Rig) -> None:
        """Other errors are the runtime's own words, and create can be tried again."""
        shim = rig.fork()
        shim.configure("true")
        config = json.loads((shim.bundle / "config.json").read_text())
        config["process"]["cwd"] = "/etc/plain"
        (shim.bundle / "config.json").write_text(json.dumps(config))
        connection = shim.connect()
        with pytest.raises(Failure) as caught:
            connection.call("create", mounts=rig.mounts, stdio=NULL)
        assert caught.value.kind == "runtime_failure"
        assert caught.value.fields == {"operation": "create"}
        assert "/etc/plain: not a directory" in caught.value.message
        shim.configure("true")
        connection.call("create", mounts=rig.mounts, stdio=NULL)

    def test_mount(self, rig: Rig) -> None:
        """A mount that fails is told, and the ones before it are undone."""
        shim = rig.fork()
        shim.configure("true")
        connection = shim.connect()
        bad = {"type": "bind", "source": "/nowhere", "options": ["rbind"], "target": "tmp"}
        with pytest.raises(Failure) as caught:
            connection.call("create", mounts=[*rig.mounts, bad], stdio=NULL)
        assert caught.value.kind == "runtime_failure"
        assert shim.run not in Path(f"/proc/{shim.pid}/mountinfo").read_text()

    @pytest.mark.parametrize(
        ("params", "kind"),
        [
            ({"stdio": {"stdout": "fifo:///nowhere"}}, "invalid_argument"),
            ({"stdio": {"stdout": "fifo:///etc/passwd"}}, "invalid_argument"),
            ({"stdio": {"stdout": "file:///etc"}}, "invalid_argument"),
            ({"stdio": {"stdout": "ftp:///x"}}, "invalid_argument"),
            ({"stdio": {"stderr": "file:///tmp/x?format=json"}}, "unimplemented"),
            ({"stdio": {}, "terminal": True}, "unimplemented"),
            ({"stdio": 3}, "invalid_argument"),
        ],
    )
    def test_parameters(self, rig: Rig, params: dict[str, Any], kind: str) -> None:
        """What cannot be used is refused by name."""
        shim = rig.fork()
        connection = shim.connect()
        with pytest.raises(Failure) as caught:
            connection.call("create", mounts=rig.mounts, **params)
        assert caught.value.kind == kind
        assert caught.value.fields["field"] in ("stdio", "stdout", "stderr", "terminal")
        assert len(os.listdir(f"/proc/{shim.pid}/fd")) == 9


class TestExec:
    """More processes in a container."""

    def test_exec(self, rig: Rig) -> None:
        """Another process has streams, an exit and a record of its own."""
        shim, connection = started(rig, "sleep", "100")
        out = rig.directory / "out"
        stdio = NULL | {"stdout": fifo(out)}
        reader = Reader(out)
        spec = args("sh", "-c", "echo hello; exit 7")
        state = connection.call("exec", process="p", spec=spec, stdio=stdio, terminal=False)
        assert (state["id"], state["status"]) == ("p", "running")
        assert connection.notification("exited", "p")["exit_status"] == 7
        connection.notification("output_ended", "p")
        reader.join(10)
        assert json.loads((shim.records / "exit-p.json").read_text())["exit_status"] == 7
        assert os.listdir(shim.directory / "io") == []

    def test_many(self, rig: Rig) -> None:
        """Many processes at once each have their own exit, and none is missed."""
        _, connection = started(rig, "sleep", "100")
        for number in range(20):
            spec = args("sh", "-c", f"exit {number}")
            connection.send("exec", process=f"p{number}", spec=spec, stdio=NULL)
        for number in range(20):
            assert connection.notification("exited", f"p{number}")["exit_status"] == number

    def test_refused(self, rig: Rig) -> None:
        """Nothing is run in a container that does not run, or under an unusable id."""
        _, connection = create(rig, "sleep", "100")
        for process, kind in (("p", "failed_precondition"), ("../p", "invalid_argument")):
            with pytest.raises(Failure) as caught:
                connection.call("exec", process=process, spec=args("true"), stdio=NULL)
            assert caught.value.kind == kind


class TestStreams:
    """fifo, file and attach."""

    def test_fifos(self, rig: Rig) -> None:
        """Input arrives and ends, and both outputs are kept apart."""
        uris = {name: fifo(rig.directory / name) for name in NULL}
        fds = {
            name: os.open(rig.directory / name, os.O_RDONLY | os.O_NONBLOCK)
            for name in ("stdout", "stderr")
        }
        _, connection = started(rig, "sh", "-c", "cat; echo end >&2", stdio=uris)
        time.sleep(0.1)
        Path(rig.directory / "stdin").write_bytes(b"some input\n")
        connection.notification("output_ended")
        assert read_all(fds["stdout"]) == b"some input\n"
        assert read_all(fds["stderr"]) == b"end\n"

    def test_close_stdin(self, rig: Rig) -> None:
        """close_stdin ends the input after what was written, and the client stays."""
        path = rig.directory / "stdin"
        out = rig.directory / "out"
        uri = fifo(path)
        client = os.open(path, os.O_RDWR)
        stdio = {"stdin": uri, "stdout": f"file://{out}"}
        _, connection = started(rig, "cat", stdio=stdio)
        os.write(client, b"x" * 60000)
        connection.call("close_stdin", process="init")
        connection.notification("output_ended")
        os.close(client)
        assert out.read_bytes() == b"x" * 60000

    def test_much(self, rig: Rig) -> None:
        """A hundred megabytes come through a fifo bit by bit."""
        out = rig.directory / "out"
        uri = fifo(out)
        reader = Reader(out)
        _, connection = started(rig, "sh", "-c", "yes | head -c 100000000", stdio={"stdout": uri})
        assert connection.notification("exited")["exit_status"] == 0
        assert connection.notification("output_ended")["dropped"] == 0
        reader.join(10)
        assert reader.count == 100_000_000
        assert reader.hash.digest() == hashlib.sha256(b"y\n" * 50_000_000).digest()

    def test_no_reader_yet(self, rig: Rig) -> None:
        """Output waits for the first reader of a fifo, and all of it comes then."""
        out = rig.directory / "out"
        _, connection = started(
            rig, "sh", "-c", "yes | head -c 600000", stdio={"stdout": fifo(out)}
        )
        time.sleep(0.3)
        assert state_of(connection)["status"] == "running"
        assert out.read_bytes() == b"y\n" * 300000
        connection.notification("output_ended")

    def test_reader_comes_back(self, rig: Rig) -> None:
        """A process is not told that its reader went; the next reader gets the rest."""
        out = rig.directory / "out"
        uri = fifo(out)
        first = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        _, connection = started(
            rig, "sh", "-c", "yes | head -c 800000; exit 5", stdio={"stdout": uri}
        )
        os.set_blocking(first, True)
        count = len(os.read(first, 100))
        os.close(first)
        time.sleep(0.3)
        assert state_of(connection)["status"] == "running"
        assert count + len(out.read_bytes()) == 800000
        assert connection.notification("exited")["exit_status"] == 5

    def test_nobody_can_come(self, rig: Rig) -> None:
        """Output to a fifo without a name whose reader is gone is a broken pipe."""
        out = rig.directory / "out"
        uri = fifo(out)
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        _, connection = started(rig, "yes", stdio={"stdout": uri})
        out.unlink()
        os.close(reader)
        assert connection.notification("exited")["exit_status"] in (1, 141)
        assert connection.notification("output_ended")["dropped"] > 0

    def test_drop(self, rig: Rig) -> None:
        """With unread=drop a process runs on without a reader, and bytes are counted."""
        out = rig.directory / "out"
        stdio = {"stdout": fifo(out, "?unread=drop")}
        _, connection = started(rig, "sh", "-c", "yes | head -c 5000000", stdio=stdio)
        assert connection.notification("exited")["exit_status"] == 0
        assert connection.notification("output_ended")["dropped"] == 5000000

    def test_file(self, rig: Rig) -> None:
        """Output is appended to a file; reopen makes it anew after a rename."""
        out = rig.directory / "out"
        out.write_text("before\n")
        stdin = rig.directory / "stdin"
        stdio = {"stdin": fifo(stdin), "stdout": f"file://{out}", "stderr": f"file://{out}"}
        _, connection = started(rig, "sh", "-c", "echo 1; echo 2 >&2; read x; echo $x", stdio=stdio)
        wait_until(lambda: len(out.read_text()) == 11)
        out.rename(rig.directory / "old")
        connection.call("reopen", process="init")
        stdin.write_text("3\n")
        connection.notification("output_ended")
        assert sorted((rig.directory / "old").read_text().split()) == ["1", "2", "before"]
        assert out.read_text() == "3\n"

    def test_attach_and_leave(self, rig: Rig) -> None:
        """What a client sent before it left comes through, though there was no room for it yet."""
        out = rig.directory / "out"
        script = "while [ ! -e /go ]; do sleep 0.05; done; head -c 200000 | wc -c"
        stdio = {"stdin": "attach", "stdout": f"file://{out}"}
        _, connection = started(rig, "sh", "-c", script, stdio=stdio)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(state_of(connection)["attach"])
            client.sendall(bytes(200000))
        time.sleep(0.2)  # the shim has noticed by now
        (rig.rootfs / "go").touch()
        wait_until(out.read_text)
        (rig.rootfs / "go").unlink()
        assert out.read_text() == "200000\n"

    def test_deleted_at_once(self, rig: Rig) -> None:
        """What was written before the exit is in the file, even if it is deleted at once."""
        for number in range(5):
            out = rig.directory / f"out{number}"
            script = "yes | head -c 60000; (sleep 100 &) ; exit 0"
            _, connection = started(rig, "sh", "-c", script, stdio={"stdout": f"file://{out}"})
            connection.notification("exited")
            connection.call("delete", process="init")
            assert out.stat().st_size == 60000

    def test_full_disk(self, rig: Rig) -> None:
        """A process runs on when the disk is full, and what is dropped is counted."""
        disk = rig.directory / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], check=True)
        try:
            stdio = {"stdout": f"file://{disk}/out"}
            _, connection = started(rig, "sh", "-c", "yes | head -c 5000000", stdio=stdio)
            assert connection.notification("exited")["exit_status"] == 0
            dropped = connection.notification("output_ended")["dropped"]
            assert dropped + (disk / "out").stat().st_size == 5000000
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_attach(self, rig: Rig) -> None:
        """socat gets what was said before and what is said now, and is heard."""
        stdio = dict.fromkeys(NULL, "attach")
        script = "echo before; while read x; do echo got $x; done; echo end"
        _, connection = started(rig, "sh", "-c", script, stdio=stdio)
        path = state_of(connection)["attach"]
        commands = ["socat", "-t", "30", "-", f"UNIX-CONNECT:{path}"]
        clients = [
            subprocess.Popen(commands, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for client, word in zip(clients, (b"one", b"two"), strict=True):
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stdout.readline() == b"before\n"
            client.stdin.write(word + b"\n")
            client.stdin.close()
        for client in clients:
            assert client.stdout is not None
            assert sorted([client.stdout.readline(), client.stdout.readline()]) == [
                b"got one\n",
                b"got two\n",
            ]
        assert state_of(connection)["status"] == "running"
        connection.call("close_stdin", process="init")
        connection.notification("output_ended")
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.read() == b"end\n"
            assert client.wait(10) == 0
            client.stdout.close()
        late = socket.socket(socket.AF_UNIX)
        late.connect(path)
        assert read_all(late.detach()).startswith(b"before\n")
        connection.call("delete", process="init")
        assert not Path(path).exists()

    def test_slow_client(self, rig: Rig) -> None:
        """An attached client that does not read holds nobody up."""
        script = "sleep 0.3; yes | head -c 3000000; echo; echo end"
        _, connection = started(rig, "sh", "-c", script, stdio={"stdout": "attach"})
        path = state_of(connection)["attach"]
        slow, quick = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        slow.connect(path)
        quick.connect(path)
        reader = Reader(quick.detach())
        assert connection.notification("exited")["exit_status"] == 0
        assert connection.notification("output_ended")["dropped"] > 2000000
        reader.join(10)
        assert reader.count > 300000
        slow.close()

    def test_held_open(self, rig: Rig) -> None:
        """A child that goes on holds the output open after the exit, and is heard."""
        out = rig.directory / "out"
        _, connection = started(rig, "sleep", "100")
        script = "(sleep 0.5; echo late) & echo early"
        spec = args("sh", "-c", script)
        connection.call("exec", process="p", spec=spec, stdio=NULL | {"stdout": f"file://{out}"})
        connection.notification("exited", "p")
        assert state_of(connection, "p")["output_ended"] is False
        assert not [m for m in connection.messages if m.get("method") == "output_ended"]
        connection.notification("output_ended", "p")
        assert out.read_text() == "early\nlate\n"


class TestConnections:
    """Daemons come and go."""

    def test_two(self, rig: Rig) -> None:
        """Each connection is told; one that has not said hello is neither told nor served."""
        shim, connection = create(rig, "true")
        other, silent = shim.connect(), shim.connect_silently()
        connection.call("start")
        assert connection.notification("exited") == other.notification("exited")
        with pytest.raises(Failure) as caught:
            silent.call("state")
        assert caught.value.kind == "failed_precondition"
        assert silent.messages == []

    def test_lost(self, rig: Rig) -> None:
        """What happens while nobody is connected is in the state afterwards."""
        shim, connection = started(rig, "sh", "-c", "sleep 0.3; exit 9")
        shim.hang_up()
        wait_until((shim.records / "exit-init.json").exists)
        connection = shim.connect()
        wait_until(lambda: state_of(connection)["status"] == "stopped")
        assert state_of(connection)["exit_status"] == 9

    def test_lost_in_a_request(self, rig: Rig) -> None:
        """A request whose connection is lost is carried out, and can be repeated."""
        shim = rig.fork()
        shim.configure("sleep", "100")
        shim.connect().send("create", mounts=rig.mounts, stdio=NULL)
        shim.hang_up()
        connection = shim.connect()
        state = connection.call("create", mounts=rig.mounts, stdio=NULL)
        assert state["status"] == "created"

    def test_versions(self, rig: Rig) -> None:
        """A daemon that speaks none of the shim's versions is told so."""
        connection = rig.fork().connect_silently()
        with pytest.raises(Failure) as caught:
            connection.call("hello", versions=[7])
        assert (caught.value.kind, caught.value.fields) == (
            "invalid_argument",
            {"field": "versions"},
        )

    def test_unknown(self, rig: Rig) -> None:
        """Unknown methods are refused, and unknown fields are not looked at."""
        connection = rig.fork().connect()
        assert connection.call("state", novelty=1) == {"processes": []}
        with pytest.raises(Failure) as caught:
            connection.call("freeze")
        assert caught.value.kind == "unimplemented"

    def test_garbage(self, rig: Rig) -> None:
        """Lines that are no messages are answered; one without an end ends the connection."""
        shim = rig.fork()
        connection = shim.connect_silently()
        connection._send(b"nonsense\n")
        assert connection.take(lambda m: m.get("id") is None)["error"]["field"] == "line"
        with pytest.raises((EOFError, ConnectionError)):  # noqa: PT012
            for _ in range(100):
                connection._send(b"x" * (1 << 16))
            connection.take(lambda _: False)
        assert shim.connect().call("state") == {"processes": []}

    def test_unread(self, rig: Rig) -> None:
        """A connection that never reads is dropped, and the others do not notice."""
        shim = rig.fork()
        deaf = shim.connect()
        ask = encode({"id": "x" * 60000, "method": "state", "params": {}})
        with pytest.raises((TimeoutError, ConnectionError)):  # noqa: PT012
            for _ in range(1000):
                deaf._send(ask)
        assert shim.connect().call("state") == {"processes": []}

    def test_idle(self, rig: Rig) -> None:
        """A shim that nobody needs ends itself; one with a container does not."""
        unused = rig.fork(idle=0.3)
        used = rig.fork(idle=0.3)
        used.configure("sleep", "100")
        used.connect().call("create", mounts=rig.mounts, stdio=NULL)
        used.hang_up()
        wait_until(lambda: not alive(unused.pid))
        assert alive(used.pid)
        connection = used.connect()
        connection.call("kill", process="init", signal=9)
        connection.notification("exited")
        connection.call("delete", process="init")
        used.hang_up()
        wait_until(lambda: not alive(used.pid))


class TestSurroundings:
    """What a shim is, as a process."""

    def test_template_death(self, rig: Rig) -> None:
        """Shims do not notice that their template was killed, and another forks more."""
        _, connection = started(rig, "sh", "-c", "sleep 0.3; exit 4")
        rig.template.kill()
        rig.template.wait()
        assert connection.notification("exited")["exit_status"] == 4
        rig.start_template()
        rig.fork().connect()

    def test_template_end(self, rig: Rig) -> None:
        """The template ends when its input ends."""
        assert rig.template.stdin is not None
        rig.template.stdin.close()
        assert rig.template.wait(10) == 0

    def test_template_errors(self, rig: Rig) -> None:
        """Requests that cannot be carried out are answered, and the template goes on."""
        good = rig.fork_params(Shim(rig, "0" * 12))
        for bad, kind in (
            ({"run": "x"}, "invalid_argument"),
            ({"directory": "relative"}, "invalid_argument"),
            ({"directory": "/proc/nowhere"}, "internal"),
        ):
            with pytest.raises(Failure) as caught:
                rig.connection.call("fork", **good | bad)
            assert caught.value.kind == kind
        with pytest.raises(Failure) as caught:
            rig.connection.call("spoon")
        assert caught.value.kind == "unimplemented"
        rig.fork()

    def test_process(self, rig: Rig) -> None:
        """A shim leads a session, has nothing inherited, and signals do not end it."""
        inherited = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(inherited, True)
        rig.template.kill()
        rig.template.wait()
        rig.start_template()
        shim = rig.fork()
        os.close(inherited)
        assert os.getsid(shim.pid) == shim.pid
        assert os.readlink(f"/proc/{shim.pid}/cwd") == str(shim.directory)
        assert Path(f"/proc/{shim.pid}/comm").read_text() == "ctd-shim\n"
        score = int(Path(f"/proc/{shim.pid}/oom_score_adj").read_text())
        assert score == (-999 if may_lower_scores() else 0)
        links = [os.readlink(p) for p in Path(f"/proc/{shim.pid}/fd").iterdir()]
        kinds = sorted(link.partition(":")[0] for link in links)
        own = [str(shim.directory), str(shim.directory / "shim.log")]
        assert kinds == ["/dev/null", "/dev/null", *own, "anon_inode", "pipe", "pipe", "socket"]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            os.kill(shim.pid, number)
        assert shim.connect().call("state") == {"processes": []}

    def test_container(self, rig: Rig) -> None:
        """A container inherits neither descriptors nor ignored signals nor the shim's score."""
        _, connection = started(rig, "sleep", "100")
        pid = state_of(connection)["pid"]
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        # glibc's posix_spawn ignores signal 32, which no program can use but by itself.
        assert int(status["SigIgn"], 16) & ~(1 << 31) == 0

    def test_own_namespace(self, rig: Rig) -> None:
        """The root file system is mounted for the shim alone, and later mounts still come in."""
        shim, _ = started(rig, "sleep", "100")
        theirs = Path(f"/proc/{shim.pid}/mountinfo")
        assert shim.run in theirs.read_text()
        assert shim.run not in Path("/proc/self/mountinfo").read_text()

    def test_identity(self, rig: Rig) -> None:
        """shim.json names the shim by pid and start time, as fork and hello do."""
        shim = rig.fork()
        record = json.loads((shim.directory / "shim.json").read_text())
        hello = shim.connect_silently().call("hello", versions=[1])
        assert record["pid"] == hello["pid"] == shim.pid
        assert record["start_time"] == hello["start_time"]
        assert record["run"] == hello["run"] == shim.run
        assert record["version"] == 1

    def test_recorded_first(self, rig: Rig) -> None:
        """An exit that cannot be recorded is not told until it is on disk."""
        shim, connection = started(rig, "sleep", "100")
        shim.records.rename(rig.directory / "away")
        connection.call("kill", process="init", signal=9)
        time.sleep(0.3)
        assert state_of(connection)["status"] == "running"
        (rig.directory / "away").rename(shim.records)
        connection.notification("exited")
        assert (shim.records / "exit-init.json").exists()

    def test_shim_killed(self, rig: Rig) -> None:
        """However a shim ends, no mount is left."""
        shim, connection = started(rig, "sleep", "100")
        pid = state_of(connection)["pid"]
        os.kill(shim.pid, 9)
        wait_until(lambda: not alive(shim.pid))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        assert shim.run not in Path("/proc/self/mountinfo").read_text()


def test_overlay_of_many_layers(rig: Rig) -> None:
    """A root file system of more layers than mount(2) takes as text is mounted."""
    layers = []
    for number in range(200):
        layer = rig.directory / "snapshots with a, long: name" / str(number) / "fs"
        layer.mkdir(parents=True)
        (layer / f"file{number}").touch()
        layers.append(str(layer))
    layers.append(str(rig.rootfs))
    upper, work = rig.directory / "upper", rig.directory / "work"
    upper.mkdir()
    work.mkdir()
    lower = ":".join(p.replace(":", "\\:").replace(",", "\\,") for p in layers)
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
    shim = rig.fork()
    out = rig.directory / "out"
    shim.configure("sh", "-c", "ls / | cat; echo x >/new")
    connection = shim.connect()
    mount = {"type": "overlay", "source": "overlay", "options": options, "target": ""}
    connection.call("create", mounts=[mount], stdio=NULL | {"stdout": f"file://{out}"})
    connection.call("start")
    connection.notification("output_ended")
    assert {f"file{number}" for number in range(200)} <= set(out.read_text().split())
    assert (upper / "new").read_text() == "x\n"
