"""Whatever dies, by kill -9 and at any moment: every container and every exit is accounted for."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import BIN, ConnectionLost, Daemon, DaemonError, eventually
from tests.integration.leaks import state_of

pytestmark = pytest.mark.usefixtures("pulled")

KILLS = 50
CLIENTS = 4

#: How long a daemon lives under load before it is killed, in seconds.
LIFE = (0.01, 0.9)

#: The exit status and reason of what was killed.
KILLED = (137, "signalled")

#: Of a container's and a process's life, what may be told, in order; all but the first optional.
ORDER = {
    "container": ["created", "started", "exited", "deleted"],
    "process": ["added", "started", "exited", "deleted"],
}


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    return state_of(pid) not in (None, "Z", "X")


def get(daemon: Daemon, id: str) -> dict[str, Any]:
    """A container."""
    container: dict[str, Any] = daemon.call("containers.get", id=id)
    return container


def exits(daemon: Daemon, subject: str) -> list[dict[str, Any]]:
    """What was told of the end of a container or process."""
    return [
        event["data"]
        for event in daemon.events()
        if event["subject"] == subject and event["topic"].endswith(".exited")
    ]


@contextmanager
def running(daemon: Daemon, image: str, id: str = "box", **params: Any) -> Iterator[dict[str, Any]]:
    """A container that runs, ``sleep`` unless told otherwise; deleted at the end."""
    daemon.call("containers.create", **{"args": ["sleep", "1000"], "image": image, **params}, id=id)
    yield daemon.call("containers.start", id=id)
    daemon.call("containers.delete", id=id, force=True)


class Load:
    """Clients that make, start, execute in, wait for, kill and delete containers, without a pause.

    A container's id says how it will end: ``N-7`` with 7, ``N-7-killed`` with
    that or with 137; so whoever finds it in the events or the listing can tell.
    """

    def __init__(self, daemon: Daemon, image: str, seed: str) -> None:
        self._daemon = daemon
        self._image = image
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._problems: list[str] = []
        self._threads: list[threading.Thread] = []
        self._number = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Let the clients work."""
        self._over.clear()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait for the clients, whose daemon is dead.  What surprised one of them is an error."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs"
        assert self._problems == []

    def _client(self) -> None:
        try:
            while not self._over.is_set():
                self._life()
        except (ConnectionLost, OSError):
            pass  # the daemon is dead
        except Exception as error:  # noqa: BLE001 (told by end)
            if type(error).__name__ != "DaemonUnreachable":
                self._problems.append(f"{type(error).__name__}: {error}")

    def _life(self) -> None:
        with self._lock:
            self._number += 1
            status, pause = self._random.randrange(100), self._random.random() * 0.1
            what = self._random.randrange(6)
            id = f"{self._number}-{status}{'-killed' if what == 1 else ''}"
        call = self._daemon.call
        script = f"usleep {int(pause * 1e6)}; exit {status}"
        call("containers.create", id=id, image=self._image, args=["sh", "-c", script])
        if what == 0:
            call("containers.delete", id=id)
            return
        call("containers.start", id=id)
        if what == 1:
            call("containers.delete", id=id, force=True)
            return
        if what == 2:
            self._execute(id)
        exit = call("containers.wait", id=id)
        if exit["exit_status"] != status:
            self._problems.append(f"{id} ended with {exit}")
        if what != 3:  # left for the check
            call("containers.delete", id=id)

    def _execute(self, id: str) -> None:
        try:
            which = {"container": id, "id": "one"}
            self._daemon.call("processes.exec", **which, args=["sh", "-c", "exit 5"])
            self._daemon.call("processes.wait", **which)
        except DaemonError as error:
            # The container may have ended before.
            if error.kind != "failed_precondition":
                raise


class Account:
    """Everything that has happened, told by events, against what there is."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._since = 0
        self._told: dict[str, list[str]] = defaultdict(list)
        self.lives = 0

    def check(self) -> None:
        """Read the new events and compare.  Exits found out after a start may be a moment late."""
        wrong: list[str] = []

        def agree() -> bool:
            wrong[:] = self._disagreements()
            return not wrong

        try:
            eventually(agree, 15)
        except AssertionError:
            raise AssertionError("\n".join(wrong)) from None

    def _disagreements(self) -> list[str]:
        self._read()
        containers = {c["id"]: c for c in self._daemon.items("containers.list")}
        wrong = []
        for id, container in containers.items():
            last = self._told[id][-1]
            match container["status"]:
                case "created":
                    right = last == "created" and alive(container["pid"])
                case "running":
                    right = last == "started" and alive(container["pid"])
                case _:
                    exit = (container["exit_status"], container["exit_reason"])
                    right = last == "exited" and exit in ends(id)
            if not right:
                wrong.append(f"{self._told[id]}: {container}")
        there = {id for id, told in self._told.items() if "/" not in id and told[-1] != "deleted"}
        wrong += [f"told of and not there: {id}" for id in there - set(containers)]
        wrong += [
            f"process of nothing: {subject}"
            for subject, told in self._told.items()
            if "/" in subject and told[-1] != "deleted" and subject.split("/")[0] not in there
        ]
        shims = {shim["container"]: shim["pid"] for shim in self._daemon.shims().values()}
        wrong += [f"a shim of nothing: {id}" for id in set(shims) - set(containers)]
        wrong += [
            f"no shim: {id}"
            for id, container in containers.items()
            if container["status"] != "stopped" and not alive(shims.get(id, 0))
        ]
        return wrong

    def _read(self) -> None:
        for event in self._daemon.events(since=self._since):
            assert event["seq"] > self._since, "seq is not strictly increasing"
            self._since = event["seq"]
            kind, _, word = event["topic"].partition(".")
            if kind not in ORDER:
                continue
            told = self._told[event["subject"]]
            told.append(word)
            order = iter(ORDER[kind])
            assert told[0] == ORDER[kind][0], (event, told)
            assert all(word in order for word in told), f"{event['subject']}: {told}"
            if word == "exited" and kind == "container":
                self.lives += 1
                data = event["data"]
                expected = [*ends(event["subject"]), KILLED]  # the clean-up kills too
                assert (data["exit_status"], data["exit_reason"]) in expected, event
            if word == "exited" and kind == "process":
                expected = [(5, "exited"), KILLED]
                assert (event["data"]["exit_status"], event["data"]["exit_reason"]) in expected


def ends(id: str) -> list[tuple[int, str]]:
    """How a container of the load may end: status and reason."""
    _, status, *killed = id.split("-")
    return [(int(status), "exited"), *(KILLED for _ in killed)]


@pytest.mark.timeout(400)
def test_daemon_killed_under_load(daemon: Daemon, image: str) -> None:
    """Killed fifty times at random moments under load, no container or exit is lost or doubled."""
    seed = os.environ.get("CTD_TEST_SEED") or str(time.time_ns())
    print(f"CTD_TEST_SEED={seed}")
    moments = random.Random(f"{seed} moments")
    load, account = Load(daemon, image, seed), Account(daemon)
    for number in range(KILLS):
        load.begin()
        time.sleep(moments.uniform(*LIFE))
        daemon.kill9()
        load.end()
        daemon.start()
        account.check()
        if number % 10 == 9:
            daemon.delete_containers()
            account.check()
    print(f"{account.lives} exits")
    assert account.lives > KILLS


def test_output_over_kills(daemon: Daemon, image: str) -> None:
    """Of what containers write to files and fifos no byte is missing."""
    script = "i=0; while [ ! -e /stop ]; do echo line $i; i=$((i+1)); usleep 500; done; exit 9"
    fifo, file = daemon.directory / "fifo", daemon.directory / "file"
    os.mkfifo(fifo)
    read: dict[str, bytes] = {}
    targets = {"to-fifo": f"fifo://{fifo}", "to-file": file.as_uri()}
    for id, target in targets.items():
        params = {"id": id, "image": image, "stdio": {"stdout": target}}
        daemon.call("containers.create", args=["sh", "-c", script], **params)
    reader = threading.Thread(target=lambda: read.update(fifo=fifo.read_bytes()))
    reader.start()
    for id in targets:
        daemon.call("containers.start", id=id)
    for _ in range(4):
        size = file.stat().st_size
        eventually(lambda: file.stat().st_size > size)  # noqa: B023
        daemon.kill9()
        size = file.stat().st_size
        eventually(lambda: file.stat().st_size > size)  # noqa: B023
        daemon.start()
    for id in targets:
        daemon.call("processes.exec", container=id, args=["touch", "/stop"])
        assert daemon.call("containers.wait", id=id)["exit_status"] == 9
        assert [exit["exit_status"] for exit in exits(daemon, id)] == [9]
    reader.join(10)
    for output in (read["fifo"], file.read_bytes()):
        count = output.count(b"\n")
        assert count > 100
        assert output == b"".join(b"line %d\n" % n for n in range(count))


def test_ended_meanwhile(daemon: Daemon, image: str) -> None:
    """What ends while no daemon runs is told by the next one, once, as it was."""
    args = ["sh", "-c", "usleep 300000; exit 11"]
    with running(daemon, image, args=args) as container:
        daemon.kill9()
        eventually(lambda: not alive(container["pid"]))
        for _ in range(2):
            daemon.start()
            exit = daemon.call("containers.wait", id="box")
            assert (exit["exit_status"], exit["exit_reason"]) == (11, "exited")
            daemon.kill9()
        daemon.start()
        assert [exit["exit_status"] for exit in exits(daemon, "box")] == [11]


def test_stopped(daemon: Daemon, image: str) -> None:
    """A daemon that is stopped leaves containers alone; the next one has them again."""
    script = "while [ ! -e /stop ]; do usleep 10000; done; exit 12"
    with running(daemon, image, args=["sh", "-c", script]) as container:
        assert daemon.stop() == 0
        assert alive(container["pid"])
        daemon.start()
        assert get(daemon, "box")["status"] == "running"
        daemon.call("processes.exec", container="box", args=["touch", "/stop"])
        assert daemon.call("containers.wait", id="box")["exit_status"] == 12
        assert [exit["exit_status"] for exit in exits(daemon, "box")] == [12]


def test_waiting_over_a_stop(daemon: Daemon, image: str) -> None:
    """Who waits when the daemon stops is told that, or loses the connection; not a wrong exit."""
    with running(daemon, image):
        connection = daemon.connect()
        number = connection.send("containers.wait", {"id": "box"})
        connection.reply(connection.send("daemon.info", {}))
        daemon.stop()
        with pytest.raises((DaemonError, ConnectionLost)) as caught:
            connection.reply(number)
        assert getattr(caught.value, "kind", "unavailable") in ("unavailable", "cancelled")
        connection.close()
        daemon.start()


# The shim.


def shim_of(daemon: Daemon, id: str) -> int:
    """The pid of a container's shim."""
    return next(int(s["pid"]) for s in daemon.shims().values() if s["container"] == id)


def test_shim_killed(daemon: Daemon, image: str) -> None:
    """When a shim is killed its container is ended, and its exits are told of as lost, once."""
    with running(daemon, image) as container, running(daemon, image, "other"):
        process = daemon.call("processes.exec", container="box", id="one", args=["sleep", "1000"])
        os.kill(shim_of(daemon, "box"), signal.SIGKILL)
        exit = daemon.call("containers.wait", id="box")
        assert (exit["exit_status"], exit["exit_reason"]) == (255, "lost")
        assert daemon.call("processes.wait", container="box", id="one")["exit_reason"] == "lost"
        eventually(lambda: not alive(container["pid"]) and not alive(process["pid"]))
        assert get(daemon, "box")["status"] == "stopped"
        assert get(daemon, "other")["status"] == "running"
        assert len(exits(daemon, "box")) == len(exits(daemon, "box/one")) == 1
        daemon.call("containers.delete", id="box")
        daemon.call("containers.create", id="box", image=image)


def test_shim_killed_before_the_start(daemon: Daemon, image: str) -> None:
    """A created container whose shim is killed can never be started, and can be deleted."""
    container = daemon.call("containers.create", id="box", image=image)
    os.kill(shim_of(daemon, "box"), signal.SIGKILL)
    eventually(lambda: get(daemon, "box")["status"] == "stopped")
    assert not alive(container["pid"])
    with pytest.raises(DaemonError) as caught:
        daemon.call("containers.start", id="box")
    assert caught.value.kind == "failed_precondition"
    daemon.call("containers.delete", id="box")


def test_shim_killed_meanwhile(daemon: Daemon, image: str) -> None:
    """A shim killed while no daemon runs is found out by the next one."""
    with running(daemon, image) as container:
        shim = shim_of(daemon, "box")
        daemon.kill9()
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: not alive(shim))
        daemon.start()
        exit = daemon.call("containers.wait", id="box")
        assert exit["exit_reason"] == "lost"
        eventually(lambda: not alive(container["pid"]))
        assert len(exits(daemon, "box")) == 1


def test_record_outlives_shim(daemon: Daemon, image: str) -> None:
    """An exit that the shim has recorded is told as it was, though shim and daemon have died."""
    with running(daemon, image, args=["sh", "-c", "usleep 300000; exit 13"]):
        shim = shim_of(daemon, "box")
        daemon.kill9()
        [run] = (daemon.root / "runs").iterdir()
        eventually((run / "exit-init.json").exists)
        os.kill(shim, signal.SIGKILL)
        eventually(lambda: not alive(shim))
        daemon.start()
        exit = daemon.call("containers.wait", id="box")
        assert (exit["exit_status"], exit["exit_reason"]) == (13, "exited")
        assert [exit["exit_status"] for exit in exits(daemon, "box")] == [13]


def test_shim_stopped(daemon: Daemon, image: str) -> None:
    """A shim that does not answer holds up neither the daemon's start nor other containers."""
    with running(daemon, image), running(daemon, image, "other"):
        shim = shim_of(daemon, "box")
        os.kill(shim, signal.SIGSTOP)
        try:
            daemon.kill9()
            daemon.start()
            assert get(daemon, "other")["status"] == "running"
            daemon.call("processes.exec", container="other", args=["true"])
        finally:
            os.kill(shim, signal.SIGCONT)
        eventually(executes(daemon, "box"), 40)


def executes(daemon: Daemon, id: str) -> Callable[[], bool]:
    """Whether a process can be run in a container now."""

    def run() -> bool:
        try:
            daemon.call("processes.exec", container=id, args=["true"])
        except DaemonError as error:
            if error.kind != "unavailable":
                raise
            return False
        return True

    return run


# The template.


def test_template_killed(daemon: Daemon, image: str) -> None:
    """When the template is killed containers run on, and the next one is made all the same."""
    with running(daemon, image) as container:
        for _ in range(3):
            template = daemon.template()
            os.kill(template, signal.SIGKILL)
            assert daemon.run(["sh", "-c", "exit 4"], image=image).status == 4
            assert daemon.template() != template
        assert alive(container["pid"])
        assert get(daemon, "box")["status"] == "running"
        daemon.call("processes.exec", container="box", args=["true"])


def test_template_silent(daemon: Daemon, image: str) -> None:
    """A template that does not answer is replaced, and the container is made all the same."""
    daemon.call("images.pull", ref=image)
    template = daemon.template()
    os.kill(template, signal.SIGSTOP)
    assert daemon.run(["sh", "-c", "exit 4"], image=image).status == 4
    assert daemon.template() != template


# What was found by trying to break it.


def test_same_state_directory(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """A second daemon on the same state directory ends, and touches none of its containers."""
    with running(daemon, image) as container:
        places = ("--root", tmp_path / "root", "--state", daemon.state)
        second = subprocess.run(
            [BIN / "twistd", "-n", "--pidfile=", "ctd", *places, "--socket", tmp_path / "s"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert second.returncode == 1
        assert "another ctd works on" in second.stdout + second.stderr
        assert alive(container["pid"])
        assert get(daemon, "box")["status"] == "running"


def test_old_exit_record(daemon: Daemon, image: str) -> None:
    """A process that is lost does not end as an earlier one of its id did."""
    with running(daemon, image):
        which = {"container": "box", "id": "p"}
        daemon.call("processes.exec", **which, args=["sh", "-c", "exit 7"])
        assert daemon.call("processes.wait", **which)["exit_status"] == 7
        daemon.call("processes.delete", **which)
        assert not list((daemon.root / "runs").glob("*/exit-p.json"))
        daemon.call("processes.exec", **which, args=["sleep", "1000"])
        ((_, shim),) = daemon.shims().items()
        os.kill(shim["pid"], signal.SIGKILL)
        exit = daemon.call("processes.wait", **which)
        assert (exit["exit_status"], exit["exit_reason"]) == (255, "lost")


# The OCI runtime.


def test_runtime_killed(daemon: Daemon, image: str) -> None:
    """When the OCI runtime is killed while it creates, that is a typed error; nothing is left."""
    killed = threading.Event()

    def kill_runtimes() -> None:
        while not killed.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if f"{daemon.state}/runtime".encode() in command and b"create" in command:
                        os.kill(int(pid), signal.SIGKILL)
                        killed.set()
                except OSError:
                    continue

    killer = threading.Thread(target=kill_runtimes)
    killer.start()
    try:
        with pytest.raises(DaemonError) as caught:
            daemon.call("containers.create", id="box", image=image)
    finally:
        killed.set()
        killer.join()
    assert (caught.value.kind, caught.value.name) == ("failed_precondition", "RuntimeFailure")
    assert list(daemon.items("containers.list")) == []
    with running(daemon, image):
        pass
