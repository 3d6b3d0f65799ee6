"""Containers and their processes, over the control socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Daemon, DaemonError, eventually
from tests.integration.image_builder import base_layer, command_layer, write_layout
from tests.integration.registry import Registry

pytestmark = pytest.mark.usefixtures("pulled")

TRAP = "trap 'echo got; exit 42' TERM; trap 'exit 43' USR1; echo up; while :; do usleep 10000; done"


@contextmanager
def running(daemon: Daemon, id: str = "box", **params: Any) -> Iterator[dict[str, Any]]:
    """A container that runs, ``sleep`` unless told otherwise; deleted at the end."""
    if "args" not in params and "bundle" not in params:
        params["args"] = ["sleep", "1000"]
    daemon.call("containers.create", id=id, **params)
    yield daemon.call("containers.start", id=id)
    daemon.call("containers.delete", id=id, force=True)


def executed(daemon: Daemon, *args: str, container: str = "box", **params: Any) -> tuple[int, str]:
    """Run a process to its end: its exit status, and its output."""
    file = daemon.directory / "exec.out"
    stdio = {"stdout": file.as_uri(), "stderr": file.as_uri()}
    process = daemon.call(
        "processes.exec", **{"container": container, "args": args, "stdio": stdio, **params}
    )
    which = {"container": container, "id": process["id"]}
    status = daemon.call("processes.wait", **which)["exit_status"]
    daemon.call("processes.delete", **which)
    output = file.read_text()
    file.unlink()
    return status, output


def refusal(daemon: Daemon, method: str, **params: Any) -> DaemonError:
    """The error a call ends with."""
    with pytest.raises(DaemonError) as caught:
        daemon.call(method, **params)
    return caught.value


def topics(daemon: Daemon, subject: str) -> list[str]:
    """What has happened to a container or a process, by the last words of the topics."""
    return [e["topic"].split(".")[1] for e in daemon.events() if e["subject"] == subject]


def nothing_of(daemon: Daemon) -> bool:
    """Whether there is no container, shim or run."""
    return not (
        list(daemon.items("containers.list", all_namespaces=True))
        or daemon.shims()
        or list(daemon.root.glob("runs/*"))
    )


# The end of a process.


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("exit 0", 0, "exited"),
        ("exit 1", 1, "exited"),
        ("exit 255", 255, "exited"),
        ("sh -c 'kill -9 $$'; exit $?", 137, "exited"),  # as the shell has it
    ],
)
def test_exit(daemon: Daemon, image: str, command: str, status: int, reason: str) -> None:
    """A container ends with its first process's exit status."""
    daemon.call("containers.create", id="box", image=image, args=["sh", "-c", command])
    daemon.call("containers.start", id="box")
    exit = daemon.call("containers.wait", id="box")
    assert (exit["exit_status"], exit["exit_reason"]) == (status, reason)
    container = daemon.call("containers.get", id="box")
    assert {name: container[name] for name in exit} == exit
    assert (container["status"], container["pid"]) == ("stopped", None)
    assert container["created_at"] < container["started_at"] < container["exited_at"]
    daemon.call("containers.delete", id="box")
    assert topics(daemon, "box") == ["created", "started", "exited", "deleted"]


@pytest.mark.parametrize("number", ["KILL", "SIGKILL", 9])
def test_kill(daemon: Daemon, image: str, number: str | int) -> None:
    """A container that is killed ends with 137, and the reason is the signal."""
    with running(daemon, image=image):
        daemon.call("containers.kill", id="box", signal=number)
        exit = daemon.call("containers.wait", id="box")
        assert (exit["exit_status"], exit["exit_reason"]) == (137, "signalled")
        assert refusal(daemon, "containers.kill", id="box").kind == "failed_precondition"


@pytest.mark.parametrize(("word", "status"), [("TERM", 42), ("SIGUSR1", 43)])
def test_signal(daemon: Daemon, image: str, word: str, status: int) -> None:
    """A signal comes to the first process, which may do with it what it likes."""
    file = daemon.directory / "out"
    stdio = {"stdout": file.as_uri()}
    with running(daemon, image=image, args=["sh", "-c", TRAP], stdio=stdio):
        eventually(lambda: file.read_text() == "up\n")
        daemon.call("containers.kill", id="box", signal=word)
        exit = daemon.call("containers.wait", id="box")
        assert (exit["exit_status"], exit["exit_reason"]) == (status, "exited")
        if word == "TERM":
            assert file.read_text() == "up\ngot\n"


def test_signal_all(daemon: Daemon, image: str) -> None:
    """A signal for all comes to every process of a container."""
    with running(daemon, image=image, args=["sh", "-c", "sleep 1000 & sleep 1000 & wait; exit 5"]):
        process = daemon.call("processes.exec", container="box", args=["sleep", "1000"])
        daemon.call("containers.kill", id="box", signal="KILL", all=True)
        assert daemon.call("containers.wait", id="box")["exit_status"] == 137
        which = {"container": "box", "id": process["id"]}
        assert daemon.call("processes.wait", **which)["exit_status"] == 137


def test_unknown_signal(daemon: Daemon, image: str) -> None:
    """A signal that there is not is refused, with the nearest one that is."""
    with running(daemon, image=image):
        error = refusal(daemon, "containers.kill", id="box", signal="SIGTREM")
        assert (error.kind, error.data["field"]) == ("invalid_argument", "signal")


def test_waiting(daemon: Daemon, image: str) -> None:
    """Ten who wait before the start, and those who ask later, all learn of the one exit."""
    daemon.call("containers.create", id="box", image=image, args=["sh", "-c", "exit 7"])
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(daemon.call, "containers.wait", id="box") for _ in range(10)]
        daemon.call("containers.start", id="box")
        exits = [one.result() for one in waiting]
    exits.append(daemon.call("containers.wait", id="box"))
    exits.append(daemon.call("processes.wait", container="box", id="init"))
    assert exits == 12 * [exits[0]]
    assert exits[0]["exit_status"] == 7
    daemon.call("containers.delete", id="box")
    assert refusal(daemon, "containers.wait", id="box").kind == "not_found"


def test_waiting_for_nothing(daemon: Daemon, image: str) -> None:
    """Who waits for a container that is deleted before its start is told so."""
    daemon.call("containers.create", id="box", image=image)
    with closing(daemon.connect()) as connection:
        number = connection.send("containers.wait", {"id": "box"})
        connection.reply(connection.send("daemon.info", {}))
        daemon.call("containers.delete", id="box")
        with pytest.raises(DaemonError) as caught:
            connection.reply(number)
    assert caught.value.kind == "not_found"
    assert topics(daemon, "box") == ["created", "deleted"]


# Commands that cannot be run.


@pytest.mark.parametrize(
    ("command", "name", "kind"),
    [
        ("no-such-command", "CommandNotFound", "not_found"),
        ("/bin/no-such-command", "CommandNotFound", "not_found"),
        ("/bin/not-executable", "CommandNotExecutable", "failed_precondition"),
        ("/etc", "CommandNotExecutable", "failed_precondition"),
    ],
)
def test_unusable_command(daemon: Daemon, image: str, command: str, name: str, kind: str) -> None:
    """A command that is not there or cannot be executed is a typed error; nothing is left."""
    error = refusal(daemon, "containers.create", id="box", image=image, args=[command])
    assert (error.name, error.kind, error.data["command"]) == (name, kind, command)
    assert nothing_of(daemon)
    with running(daemon, image=image):
        error = refusal(daemon, "processes.exec", container="box", id="one", args=[command])
        assert (error.name, error.kind, error.data["command"]) == (name, kind, command)
        ids = [process["id"] for process in daemon.items("processes.list", container="box")]
        assert ids == ["init"]
    assert topics(daemon, "box/one") == []
    assert topics(daemon, "box") == ["created", "started", "exited", "deleted"]


def test_no_image(daemon: Daemon) -> None:
    """An image that is not here is not_found, and its name is in the error."""
    error = refusal(daemon, "containers.create", id="box", image="nothing:1")
    assert (error.kind, error.data["what"]) == ("not_found", "image")
    assert nothing_of(daemon)


def test_taken(daemon: Daemon, image: str) -> None:
    """An id is a container's alone in its namespace, and free again afterwards."""
    for _ in range(2):
        with running(daemon, image=image):
            error = refusal(daemon, "containers.create", id="box", image=image)
            assert error.kind == "already_exists"
            other = {"id": "box", "namespace": "other"}
            daemon.call("containers.create", **other, image=image_in(daemon, image, "other"))
            assert len(list(daemon.items("containers.list"))) == 1
            daemon.call("containers.delete", **other)


def image_in(daemon: Daemon, image: str, namespace: str) -> str:
    """The image, also in another namespace."""
    daemon.call("images.pull", ref=image, namespace=namespace)
    return image


def test_delete_running(daemon: Daemon, image: str) -> None:
    """A container that runs is deleted only by force."""
    with running(daemon, image=image) as container:
        error = refusal(daemon, "containers.delete", id="box")
        assert (error.kind, error.name) == ("failed_precondition", "FailedPrecondition")
        assert daemon.call("containers.get", id="box")["status"] == "running"
    assert not Path(f"/proc/{container['pid']}").exists()
    assert refusal(daemon, "containers.delete", id="box").kind == "not_found"
    [exited] = [e for e in daemon.events() if e["topic"] == "container.exited"]
    assert exited["data"]["exit_status"] == 137


def test_start_twice(daemon: Daemon, image: str) -> None:
    """A container is started once; deleting one that never was leaves nothing."""
    with running(daemon, image=image):
        assert refusal(daemon, "containers.start", id="box").kind == "failed_precondition"
        daemon.call("containers.kill", id="box", signal="KILL")
        daemon.call("containers.wait", id="box")
        assert refusal(daemon, "containers.start", id="box").kind == "failed_precondition"
    daemon.call("containers.create", id="box", image=image)
    daemon.call("containers.delete", id="box")
    assert nothing_of(daemon)


# Processes.


def test_exec(daemon: Daemon, image: str) -> None:
    """exec has the container's environment, user and directory unless it has its own."""
    settings = {"env": ["A=1", "B=2"], "cwd": "/home", "user": "app"}
    script = "echo $A $B $C $FROM; pwd; id -u; id -G"
    with running(daemon, image=image, **settings):
        assert executed(daemon, "sh", "-c", script) == (
            0,
            "1 2 image\n/home\n1000\n1000 2000 2001\n",
        )
        own = {"env": {"B": "two", "C": "three"}, "cwd": "/etc", "user": "worker"}
        status, output = executed(daemon, "sh", "-c", script + "; exit 9", **own)
        assert (status, output) == (9, "1 two three image\n/etc\n1001\n1000 2000\n")
        assert executed(daemon, "sh", "-c", "id -u; id -G", user="0:2001")[1] == "0\n2001\n"


def test_exec_life(daemon: Daemon, image: str) -> None:
    """A process is listed, signalled, waited for and forgotten; its exit is told of once."""
    with running(daemon, image=image):
        process = daemon.call("processes.exec", container="box", id="one", args=["sleep", "1000"])
        assert (process["id"], process["status"]) == ("one", "running")
        assert Path(f"/proc/{process['pid']}/comm").read_text() == "sleep\n"
        which = {"container": "box", "id": "one"}
        error = refusal(daemon, "processes.exec", **which, args=["true"])
        assert error.kind == "already_exists"
        assert refusal(daemon, "processes.delete", **which).kind == "failed_precondition"
        ids = [process["id"] for process in daemon.items("processes.list", container="box")]
        assert ids == ["init", "one"]
        daemon.call("processes.kill", **which, signal="TERM")
        exit = daemon.call("processes.wait", **which)
        assert (exit["exit_status"], exit["exit_reason"]) == (143, "signalled")
        assert daemon.call("processes.get", **which)["status"] == "stopped"
        assert refusal(daemon, "processes.kill", **which).kind == "failed_precondition"
        daemon.call("processes.delete", **which)
        assert refusal(daemon, "processes.get", **which).kind == "not_found"
        init = {"container": "box", "id": "init"}
        assert refusal(daemon, "processes.delete", **init).kind == "failed_precondition"
    assert topics(daemon, "box/one") == ["added", "started", "exited", "deleted"]


def test_exec_ends_with_container(daemon: Daemon, image: str) -> None:
    """Processes end with their container, before it, and each exit is told of once."""
    with running(daemon, image=image):
        for number in range(3):
            args = ["sleep", "1000"]
            daemon.call("processes.exec", container="box", id=f"p{number}", args=args)
        daemon.call("containers.kill", id="box", signal="KILL")
        assert daemon.call("containers.wait", id="box")["exit_status"] == 137
        for number in range(3):
            exit = daemon.call("processes.wait", container="box", id=f"p{number}")
            assert exit["exit_status"] == 137
        error = refusal(daemon, "processes.exec", container="box", args=["true"])
        assert error.kind == "failed_precondition"
    for number in range(3):
        assert topics(daemon, f"box/p{number}") == ["added", "started", "exited", "deleted"]


def test_many_execs(daemon: Daemon, image: str) -> None:
    """Twenty processes run in a container at once."""
    with running(daemon, image=image), ThreadPoolExecutor(20) as pool:

        def run(number: int) -> int:
            args = ["sh", "-c", f"usleep 50000; exit {number}"]
            process = daemon.call("processes.exec", container="box", args=args)
            exit = daemon.call("processes.wait", container="box", id=process["id"])
            status: int = exit["exit_status"]
            return status

        assert list(pool.map(run, range(20))) == list(range(20))


def test_orphans(daemon: Daemon, image: str) -> None:
    """What a process leaves behind goes on in the container, and is its first process's to reap."""
    with running(daemon, image=image, args=["sh", "-c", "sleep 1000; true"]):
        assert executed(daemon, "sh", "-c", "sleep 0.5 >/dev/null 2>&1 & exit 3") == (3, "")
        assert "sleep 0.5" in executed(daemon, "ps")[1]
        eventually(lambda: "sleep 0.5" not in executed(daemon, "ps")[1])
        assert "[" not in executed(daemon, "ps")[1]


# Standard streams.


def test_null(daemon: Daemon, image: str) -> None:
    """Streams that are null read nothing and take everything."""
    script = "cat; echo out; echo err >&2; yes | head -c 1000000; ls -l /proc/self/fd > /out"
    with running(daemon, image=image, args=["sh", "-c", script + "; sleep 1000"]):
        eventually(lambda: executed(daemon, "cat", "/out")[0] == 0)
        assert executed(daemon, "cat", "/out")[1].count("/dev/null") >= 2


def test_files(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """Output goes to files, appended to what they have, all of it there at the exit."""
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("before\n")
    script = "echo err >&2; seq 100000"
    stdio = {"stdout": out.as_uri(), "stderr": err.as_uri()}
    with running(daemon, image=image, args=["sh", "-c", script], stdio=stdio):
        daemon.call("containers.wait", id="box")
        assert out.read_text() == "before\n" + "".join(f"{n}\n" for n in range(1, 100_001))
        assert err.read_text() == "err\n"


def test_fifos(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """A client's fifos are the process's streams, byte by byte, also before it reads them."""
    fifos = {name: tmp_path / name for name in ("stdin", "stdout", "stderr")}
    for fifo in fifos.values():
        os.mkfifo(fifo)
    data = os.urandom(3 << 20)
    stdio = {name: f"fifo://{fifo}" for name, fifo in fifos.items()}
    args = ["sh", "-c", "echo ready >&2; cat; exit 6"]
    with running(daemon, image=image, args=args, stdio=stdio):
        with fifos["stderr"].open("rb") as err:
            assert err.readline() == b"ready\n"
        writer = threading.Thread(target=fifos["stdin"].write_bytes, args=(data,))
        writer.start()
        with fifos["stdout"].open("rb") as out:
            assert out.read() == data
        writer.join()
        assert daemon.call("containers.wait", id="box")["exit_status"] == 6


def test_missing_fifo(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """A fifo that is not there is an error that names the stream, and nothing is left."""
    stdio = {"stdout": f"fifo://{tmp_path}/nothing"}
    error = refusal(daemon, "containers.create", id="box", image=image, stdio=stdio)
    assert error.kind == "invalid_argument"
    assert "stdout" in error.data["field"]
    assert nothing_of(daemon)
    with running(daemon, image=image):
        args = ["true"]
        error = refusal(daemon, "processes.exec", container="box", args=args, stdio=stdio)
        assert error.kind == "invalid_argument"


def test_close_stdin(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """A process reads the end of its input when the client asks for that."""
    fifo, out = tmp_path / "stdin", tmp_path / "out"
    os.mkfifo(fifo)
    stdio = {"stdin": f"fifo://{fifo}", "stdout": out.as_uri()}
    with running(daemon, image=image, args=["cat"], stdio=stdio), fifo.open("wb") as writer:
        writer.write(b"what was written\n")
        writer.flush()
        eventually(lambda: out.read_text() == "what was written\n")
        assert daemon.call("containers.get", id="box")["status"] == "running"
        for _ in range(2):
            daemon.call("processes.close_stdin", container="box")
        assert daemon.call("containers.wait", id="box")["exit_status"] == 0


def attach(path: str, **options: Any) -> subprocess.Popen[bytes]:
    """socat on an attach socket."""
    command = ["socat", "-t", "30", "-", f"UNIX-CONNECT:{path}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def test_attach(daemon: Daemon, image: str) -> None:
    """Anyone may attach with socat: several at once, and who comes later sees what was before."""
    stdio = dict.fromkeys(("stdin", "stdout", "stderr"), "attach")
    args = ["sh", "-c", "echo up; while read line; do echo got $line; done; echo end >&2"]
    with running(daemon, image=image, args=args, stdio=stdio):
        path = daemon.call("processes.get", container="box", id="init")["attach"]
        first = attach(path)
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"up\n"
        first.stdin.write(b"one\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"got one\n"
        second = attach(path)
        assert second.stdout is not None
        assert [second.stdout.readline() for _ in range(2)] == [b"up\n", b"got one\n"]
        first.kill()
        first.wait()
        assert second.stdin is not None
        second.stdin.write(b"two\n")
        second.stdin.flush()
        assert second.stdout.readline() == b"got two\n"
        daemon.call("processes.close_stdin", container="box")
        assert second.stdout.read() == b"end\n"
        second.stdin.close()
        assert second.wait(10) == 0
        assert daemon.call("containers.wait", id="box")["exit_status"] == 0
        for one in (first.stdin, first.stdout, second.stdout):
            one.close()


def test_attach_exec(daemon: Daemon, image: str) -> None:
    """A process has an attach socket of its own, and its end is the end of the connection."""
    with running(daemon, image=image):
        stdio = {"stdin": "attach", "stdout": "attach"}
        process = daemon.call(
            "processes.exec", container="box", args=["head", "-n", "1"], stdio=stdio
        )
        out, _ = attach(process["attach"]).communicate(b"a line\nanother\n", 20)
        assert out == b"a line\n"
        which = {"container": "box", "id": process["id"]}
        assert daemon.call("processes.wait", **which)["exit_status"] == 0


# Many.


def test_twenty(daemon: Daemon, image: str) -> None:
    """Twenty containers run at once, each with an exit status of its own."""
    ids = [f"box{number}" for number in range(20)]

    def run(number: int) -> int:
        id = ids[number]
        args = ["sh", "-c", f"while [ ! -e /go ]; do usleep 20000; done; exit {number}"]
        daemon.call("containers.create", id=id, image=image, args=args)
        daemon.call("containers.start", id=id)
        status: int = daemon.call("containers.wait", id=id)["exit_status"]
        return status

    with ThreadPoolExecutor(20) as pool:
        running = [pool.submit(run, number) for number in range(20)]
        eventually(
            lambda: sum(c["status"] == "running" for c in daemon.items("containers.list")) == 20,
            60,
        )
        assert len(daemon.shims()) == 20
        for id in ids:
            daemon.call("processes.exec", container=id, args=["touch", "/go"])
        assert [one.result() for one in running] == list(range(20))
        list(pool.map(lambda id: daemon.call("containers.delete", id=id), ids))
    for id in ids:
        assert topics(daemon, id) == ["created", "started", "exited", "deleted"]
    assert nothing_of(daemon)


# Networks.


def test_create_then_start(daemon: Daemon, image: str) -> None:
    """Between create and start a network namespace can be populated, before the user's code."""
    file = daemon.directory / "out"
    container = daemon.call(
        "containers.create",
        id="box",
        image=image,
        args=["ip", "-o", "addr"],
        stdio={"stdout": file.as_uri()},
    )
    assert (container["status"], container["started_at"]) == ("created", None)
    assert container["netns"] == f"/proc/{container['pid']}/ns/net"
    enter = ["nsenter", f"--net={container['netns']}", "ip"]
    subprocess.run([*enter, "addr", "add", "10.9.8.7/24", "dev", "lo"], check=True)
    subprocess.run([*enter, "link", "set", "lo", "up"], check=True)
    assert file.read_text() == ""
    daemon.call("containers.start", id="box")
    assert daemon.call("containers.wait", id="box")["exit_status"] == 0
    assert "10.9.8.7/24" in file.read_text()
    daemon.call("containers.delete", id="box")


def test_host_network(daemon: Daemon, image: str) -> None:
    """A container may have the host's network, and then its list of name servers too."""
    with running(daemon, image=image, netns="host") as container:
        assert container["netns"] is None
        here = os.readlink("/proc/self/ns/net")
        assert executed(daemon, "readlink", "/proc/self/ns/net") == (0, here + "\n")
    with running(daemon, image=image) as container:
        assert executed(daemon, "readlink", "/proc/self/ns/net")[1] != here + "\n"


@pytest.fixture
def netns() -> Iterator[Path]:
    """A network namespace with a name, in which an address is set."""
    name = f"ctd-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        command = ["ip", "-n", name, "addr", "add", "10.7.7.7/32", "dev", "lo"]
        subprocess.run(command, check=True)
        yield Path("/run/netns", name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_joined_network(daemon: Daemon, image: str, netns: Path) -> None:
    """A container may join a network namespace that something else has populated."""
    with running(daemon, image=image, netns=str(netns)) as container:
        assert container["netns"] == str(netns)
        assert "10.7.7.7/32" in executed(daemon, "ip", "-o", "addr")[1]
    missing = {"image": image, "netns": "/run/netns/ctd-nothing"}
    error = refusal(daemon, "containers.create", id="box", **missing)
    assert error.kind in ("invalid_argument", "failed_precondition", "not_found")
    assert nothing_of(daemon)


# Other roots than an image's.


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root file system in a directory."""
    directory = tmp_path / "rootfs"
    directory.mkdir()
    for layer in (base_layer(), command_layer()):
        subprocess.run(["tar", "-xf", "-"], input=layer.tar(), cwd=directory, check=True)
    return directory


def test_rootfs(daemon: Daemon, rootfs: Path) -> None:
    """A directory may be the root; it is used as it is, with its users, and stays."""
    script = "id -un; id -u; greet; touch /home/app/made; cat /proc/mounts | grep ' / ' | wc -l"
    done = daemon.run(["sh", "-c", script], rootfs=str(rootfs), user="app", env=["PATH=/bin"])
    assert done.out == "app\n1000\nhello, world\n1\n", done
    made = rootfs / "home/app/made"
    assert (made.exists(), made.stat().st_uid) == (True, 1000)
    assert (rootfs / "bin/busybox").exists()
    error = refusal(daemon, "containers.create", rootfs=str(rootfs))
    assert (error.kind, error.data["field"]) == ("invalid_argument", "args")
    error = refusal(daemon, "containers.create", rootfs=f"{rootfs}/nothing", args=["sh"])
    assert error.kind in ("invalid_argument", "not_found")
    assert nothing_of(daemon)


def test_bundle(daemon: Daemon, rootfs: Path) -> None:
    """An OCI bundle runs as its own configuration says."""
    bundle = rootfs.parent
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_bytes())
    config["process"].update(args=["sh", "-c", "hostname; exit 12"], terminal=False)
    config["hostname"] = "from-the-bundle"
    path.write_text(json.dumps(config))
    before = path.read_bytes()
    done = daemon.run(bundle=str(bundle))
    assert (done.status, done.out) == (12, "from-the-bundle\n"), done
    assert path.read_bytes() == before
    error = refusal(daemon, "containers.create", bundle=str(rootfs))
    assert (error.kind, error.data["field"]) == ("invalid_argument", "bundle")
    assert nothing_of(daemon)


def test_one_root(daemon: Daemon, image: str, rootfs: Path) -> None:
    """Exactly one of image, rootfs and bundle is given."""
    assert refusal(daemon, "containers.create", args=["true"]).kind == "invalid_argument"
    both = {"image": image, "rootfs": str(rootfs)}
    assert refusal(daemon, "containers.create", **both).kind == "invalid_argument"


# Users.


@pytest.mark.parametrize(
    ("user", "output"),
    [
        (None, "0 0 0"),
        ("app", "1000 1000 1000 2000 2001"),
        ("worker", "1001 1000 1000 2000"),
        ("1001", "1001 1000 1000 2000"),
        ("1234", "1234 0 0"),
        ("1234:4321", "1234 4321 4321"),
        ("app:more", "1000 2001 2001"),
        ("worker:0", "1001 0 0"),
    ],
)
def test_users(daemon: Daemon, image: str, user: str | None, output: str) -> None:
    """Users and groups are those of the image's own files; numbers need no entry there."""
    done = daemon.run(["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"], image=image, user=user)
    assert done.out == f"{output}\n", done


@pytest.mark.parametrize("user", ["nobody-knows", "app:nobody-knows", "app:", "4294967295"])
def test_unknown_user(daemon: Daemon, image: str, user: str) -> None:
    """A user or group that the image has not is refused, and nothing is left."""
    error = refusal(daemon, "containers.create", id="box", image=image, user=user)
    assert (error.kind, error.data["field"]) == ("invalid_argument", "user")
    assert nothing_of(daemon)


def test_new_user(daemon: Daemon, image: str) -> None:
    """exec looks users up in the container as it is now, not as its image was."""
    with running(daemon, image=image):
        line = "late:x:3000:3001::/:/bin/sh"
        assert executed(daemon, "sh", "-c", f"echo {line} >> /etc/passwd")[0] == 0
        assert executed(daemon, "id", "-u", user="late") == (0, "3000\n")


def test_image_defaults(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    """User, environment, directory, entrypoint and command are the image's unless given."""
    layout = write_layout(
        tmp_path / "layout",
        User="app:extra",
        Env=["PATH=/bin", "K=image"],
        WorkingDir="/home/app",
        Entrypoint=["sh", "-c", 'echo $K $(pwd) $(id -u) $(id -g) $HOME "$@"', "entry"],
        Cmd=["by", "default"],
    )
    image = registry.push(layout, "test/defaults:1")
    daemon.call("images.pull", ref=image)
    assert daemon.run(image=image).out == "image /home/app 1000 2000 /home/app by default\n"
    done = daemon.run(["given"], image=image, env={"K": "mine"}, cwd="/", user="root")
    assert done.out == "mine / 0 0 /root given\n"
    done = daemon.run(["x"], image=image, entrypoint=["echo"])
    assert done.out == "x\n"
    layout = write_layout(tmp_path / "without", Cmd=None)
    image = registry.push(layout, "test/without:1")
    daemon.call("images.pull", ref=image)
    error = refusal(daemon, "containers.create", id="box", image=image)
    assert (error.kind, error.data["field"]) == ("invalid_argument", "args")
    assert nothing_of(daemon)


# What keeps a container in.


def test_capabilities(daemon: Daemon, image: str) -> None:
    """A container has containerd's fourteen capabilities, none inherited, and gains none."""
    script = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status"
    default = {
        **dict.fromkeys(("CapPrm", "CapEff", "CapBnd"), "00000000a80425fb"),
        **dict.fromkeys(("CapInh", "CapAmb"), "0000000000000000"),
        "NoNewPrivs": "1",
    }

    def facts(output: str) -> dict[str, str]:
        return dict(line.split(":\t") for line in output.splitlines())

    assert facts(daemon.run(["sh", "-c", script], image=image).out) == default
    with running(daemon, image=image, user="app"):
        _, output = executed(daemon, "sh", "-c", script)
        none = dict.fromkeys(("CapPrm", "CapEff"), "0000000000000000")
        assert facts(output) == {**default, **none}
        _, output = executed(daemon, "sh", "-c", script, user="root")
        assert facts(output) == default
    changed = daemon.run(["sh", "-c", script], image=image, capabilities=["NET_ADMIN", "-CAP_KILL"])
    assert facts(changed.out)["CapEff"] == "00000000a80435db"


def test_hidden(daemon: Daemon, image: str) -> None:
    """What /proc and /sys tell of the host or let change is masked or read-only."""
    script = """
        for path in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/interrupts; do
            [ ! -e $path ] || [ -z "$(head -c 1 $path)" ] || echo seen: $path
        done
        for path in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
            [ -z "$(ls $path 2>/dev/null)" ] || echo seen: $path
        done
        for path in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/x /sys/x \
                /proc/sys/vm/drop_caches; do
            echo 1 2>/dev/null > $path && echo written: $path
        done
        for path in /sys/fs/cgroup/*/; do mkdir $path/x 2>/dev/null && echo made: $path/x; done
        for kind in proc sysfs tmpfs; do mount -t $kind none /mnt 2>/dev/null && echo mounted; done
        mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk 2>/dev/null && echo read
        mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem 2>/dev/null && echo read
        mknod /tmp/zero c 1 5 && head -c 1 /tmp/zero | wc -c
        chroot / true && echo chroot
        unshare -m true 2>/dev/null && echo unshared
        hostname other 2>/dev/null && echo renamed
        ls /dev | tr '\\n' ' '
    """
    done = daemon.run(["sh", "-c", script], image=image)
    lines = done.out.splitlines()
    assert lines[:2] == ["1", "chroot"], done
    devices = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
               "stdin", "stdout", "tty", "urandom", "zero", "console"}  # fmt: skip
    assert set(lines[2].split()) <= devices
    assert len(lines) == 3, done


def test_apart(daemon: Daemon, image: str) -> None:
    """A container has namespaces of its own, and its first process is number 1."""
    names = ("ipc", "mnt", "net", "pid", "uts")
    script = "echo $$; hostname; readlink " + " ".join(f"/proc/self/ns/{name}" for name in names)
    with running(daemon, image=image):
        done = daemon.run(["sh", "-c", script], image=image, id="Not_a.hostname")
    number, host, *namespaces = done.out.splitlines()
    assert (number, host) == ("1", "Not-a.hostname")
    assert not set(namespaces) & {os.readlink(f"/proc/self/ns/{name}") for name in names}


def test_privileged(daemon: Daemon, image: str) -> None:
    """A privileged container has every capability of the daemon, and may gain more."""
    script = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; mount -t tmpfs none /tmp && echo ok"
    done = daemon.run(["sh", "-c", script], image=image, privileged=True)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    [mine] = [line for line in status.splitlines() if line.startswith("CapEff")]
    assert done.out.splitlines() == [mine, "NoNewPrivs:\t0", "ok"], done


def test_limits(daemon: Daemon, image: str) -> None:
    """Processes and memory are limited; a container that wants more memory is ended for that."""
    resources = {"memory": 32 << 20, "cpus": 0.5, "pids": 20}
    script = "cd /sys/fs/cgroup; cat pids/pids.max || cat pids.max"
    done = daemon.run(["sh", "-c", script], image=image, resources=resources)
    assert done.out == "20\n", done
    with running(daemon, image=image, args=["tail", "/dev/zero"], resources=resources):
        exit = daemon.call("containers.wait", id="box")
        assert (exit["exit_status"], exit["exit_reason"]) == (137, "oom")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restart(daemon: Daemon, image: str, number: signal.Signals) -> None:
    """A daemon's end does no harm to containers, created or running; the next one has them."""
    daemon.call("containers.create", id="later", image=image, args=["sh", "-c", "exit 3"])
    with running(daemon, image=image) as container:
        if number == signal.SIGKILL:
            daemon.kill9()
            daemon.start()
        else:
            daemon.restart()
        found = daemon.call("containers.get", id="box")
        assert (found["status"], found["pid"]) == ("running", container["pid"])
        assert executed(daemon, "echo", "here") == (0, "here\n")
    daemon.call("containers.start", id="later")
    assert daemon.call("containers.wait", id="later")["exit_status"] == 3
    daemon.call("containers.delete", id="later")
