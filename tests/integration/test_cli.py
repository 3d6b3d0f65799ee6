"""The ``ctd`` command with the real daemon, registry, runtime and kernel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.integration.harness import Daemon, eventually
from tests.integration.registry import Registry

pytestmark = pytest.mark.usefixtures("pulled")


def line_of(process: subprocess.Popen[bytes]) -> str:
    """The next line of a command's output."""
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip("\n")


def test_pull_and_images(daemon: Daemon, image: str) -> None:
    """pull prints the full name and digest, images lists it, rmi takes it away."""
    done = daemon.ctd("pull", image)
    assert done.status == 0, done
    assert re.fullmatch(rf"{image} sha256:[0-9a-f]{{64}}\n", done.out), done
    assert image in done.err
    listed = [json.loads(line) for line in daemon.ctd("images", "--json").out.splitlines()]
    assert [one["name"] for one in listed] == [image]
    assert daemon.ctd("tag", image, "mine:2").status == 0
    assert daemon.ctd("images", "-q").out.splitlines() == sorted(
        [image, "docker.io/library/mine:2"]
    )
    assert daemon.ctd("rmi", image, "mine:2").status == 0
    assert daemon.ctd("images", "-q").out == ""


def test_run_pulls(daemon: Daemon, image: str) -> None:
    """run fetches an image that is not here; its output stays clean of that."""
    daemon.ctd("rmi", image)
    done = daemon.ctd("run", "--rm", image, "greet", "ctd")
    assert (done.status, done.out) == (0, "hello, ctd\n"), done
    assert "unpacked" in done.err


def test_run_missing_image(daemon: Daemon, registry: Registry) -> None:
    """An image the registry does not have is 125, and nothing is left."""
    done = daemon.ctd("run", "--rm", f"{registry.address}/test/nothing:1", "true")
    assert done.status == 125, done
    assert "not found" in done.err


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -9 $$; exit 3"], 3),  # the first process does not hear itself
        (["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
        (["/bin/no-such-command"], 127),
        (["no-such-command"], 127),
        (["/bin/not-executable"], 126),
    ],
)
def test_exit_status(daemon: Daemon, image: str, command: list[str], status: int) -> None:
    """The exit status is the process's; 126 and 127 where there is nothing to run."""
    done = daemon.ctd("run", "--rm", image, *command)
    assert done.status == status, done
    assert done.out == ""
    assert list(daemon.items("containers.list")) == []


def test_killed(daemon: Daemon, image: str) -> None:
    """A container killed from elsewhere gives 137 to whoever watches it."""
    process = daemon.popen("run", "--name", "victim", image, "sh", "-c", "echo up; sleep 1000")
    assert line_of(process) == "up"
    assert daemon.ctd("kill", "victim").out == "victim\n"
    assert process.wait(20) == 137
    assert daemon.ctd("wait", "victim").status == 137
    assert "Exited (137)" in daemon.ctd("ps", "-a").out


def test_streams(daemon: Daemon, image: str) -> None:
    """Standard output and error are kept apart, and standard input arrives with -i."""
    done = daemon.ctd("run", "--rm", image, "sh", "-c", "echo out; echo err >&2; cat")
    assert (done.out, done.err) == ("out\n", "err\n")
    data = os.urandom(3 << 20)
    done = daemon.ctd("run", "--rm", "-i", image, "cat", stdin=data)
    assert done.raw == data


def test_large_output(daemon: Daemon, image: str) -> None:
    """Fifty megabytes come through bit by bit, to a reader that is slow at first."""
    script = "seq 1 1000000 | head -c 5000000 > /tmp/x; for i in $(seq 10); do cat /tmp/x; done"
    process = daemon.popen("run", "--rm", image, "sh", "-c", script)
    time.sleep(1.0)
    out, _ = process.communicate(timeout=60)
    block = b"".join(b"%d\n" % n for n in range(1, 1_000_001))[:5_000_000]
    assert hashlib.sha256(out).digest() == hashlib.sha256(block * 10).digest()


def test_broken_pipe(daemon: Daemon, image: str) -> None:
    """A container whose output nobody reads any more ends with the pipeline."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        process = daemon.popen("run", "--rm", image, "yes", stdout=file)
    assert os.read(reader, 4) == b"y\ny\n"
    os.close(reader)
    assert process.wait(20) == 141
    assert list(daemon.items("containers.list")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals(daemon: Daemon, image: str, number: signal.Signals) -> None:
    """Signals that come to the command go to the process."""
    trap = f"trap 'exit {60 + number}' {number.name[3:]}; echo up; while :; do sleep 0.1; done"
    process = daemon.popen("run", "--rm", image, "sh", "-c", trap)
    assert line_of(process) == "up"
    process.send_signal(number)
    assert process.wait(20) == 60 + number
    assert list(daemon.items("containers.list")) == []


def test_options(daemon: Daemon, image: str, tmp_path: Path) -> None:
    """Environment, user, directory, mounts, host name and read-only root are as asked for."""
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the host\n")
    script = (
        "echo $K $FROM; id -u; id -G; pwd; hostname; cat /mnt/file;"
        " touch /mnt/x 2>/dev/null || echo ro; touch /tmp/y 2>/dev/null || echo ro; touch /t/z"
    )
    done = daemon.ctd(
        "run",
        "--rm",
        *("-e", "K=V", "-u", "app", "-w", "/home/app", "-v", f"{tmp_path}:/mnt:ro"),
        *("--mount", "type=tmpfs,dst=/t,tmpfs-mode=1777", "--hostname", "box", "--read-only"),
        image,
        *("sh", "-c", script),
    )
    assert done.status == 0, done
    assert done.out.splitlines() == [
        "V image",
        "1000",
        "1000 2000 2001",
        "/home/app",
        "box",
        "from the host",
        "ro",
        "ro",
    ]


def test_exec(daemon: Daemon, image: str) -> None:
    """exec has input, output and an exit status of its own."""
    assert daemon.ctd("run", "-d", "--name", "box", image, "sleep", "1000").out == "box\n"
    done = daemon.ctd(
        "exec", "-i", "-e", "A=B", "box", "sh", "-c", "cat; echo $A; exit 7", stdin=b"in\n"
    )
    assert (done.status, done.out) == (7, "in\nB\n"), done
    assert daemon.ctd("exec", "box", "no-such-command").status == 127
    assert daemon.ctd("exec", "nobody", "true").status == 125
    done = daemon.ctd("exec", "-d", "box", "touch", "/tmp/made")
    assert done.status == 0, done
    eventually(lambda: daemon.ctd("exec", "box", "test", "-e", "/tmp/made").status == 0)
    assert daemon.ctd("stop", "-t", "0.2", "box").out == "box\n"
    assert daemon.ctd("exec", "box", "true").status == 125


def test_life(daemon: Daemon, image: str) -> None:
    """create, start, ps, inspect, stop, wait and rm, one after the other."""
    assert daemon.ctd("create", "--name", "web", image, "sleep", "1000").out == "web\n"
    assert daemon.ctd("ps", "-q").out == ""
    assert "Created" in daemon.ctd("ps", "-a").out
    assert daemon.ctd("start", "web").status == 0
    assert daemon.ctd("ps", "-q").out == "web\n"
    assert json.loads(daemon.ctd("inspect", "web").out)[0]["status"] == "running"
    assert daemon.ctd("rm", "web").status == 1
    assert daemon.ctd("stop", "-t", "0.2", "web").status == 0
    assert daemon.ctd("wait", "web").out == "137\n"
    assert daemon.ctd("rm", "web").out == "web\n"
    topics = [json.loads(line)["topic"] for line in daemon.ctd("events", "--json").out.splitlines()]
    life = [topic for topic in topics if topic.startswith("container.")]
    assert life == [f"container.{word}" for word in ("created", "started", "exited", "deleted")]


def test_daemon_killed(daemon: Daemon, image: str) -> None:
    """The command outlives its daemon: no byte is missing and the status is the right one."""
    script = "for i in $(seq 1 300); do echo line $i; sleep 0.01; done; exit 9"
    process = daemon.popen("run", "--rm", image, "sh", "-c", script)
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    for _ in range(3):
        time.sleep(0.3)
        daemon.kill9()
        daemon.start()
    assert process.wait(30) == 9
    reader.join(10)
    assert lines == [b"line %d\n" % n for n in range(1, 301)]
    exits = [event for event in daemon.events() if event["topic"] == "container.exited"]
    assert len(exits) == 1
    assert list(daemon.items("containers.list")) == []


def test_follow_events(daemon: Daemon, image: str) -> None:
    """events -f goes on over a restart of the daemon, each event once."""
    process = daemon.popen("events", "-f", "--since", "0", "-q")
    for _ in range(2):
        daemon.ctd("run", "--rm", image, "true")
        daemon.restart()
    last = daemon.events()[-1]["seq"]
    seen = []
    while not seen or seen[-1] < last:
        seen.append(int(line_of(process)))
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert seen == [event["seq"] for event in daemon.events()]
