"""The real template and shims, spoken to as a daemon speaks to them, and bundles of busybox."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctd.protocols.shim import Failure, Lines, decode, encode, escaped
from ctd.shim import template

RUNC = "/usr/sbin/runc"
BUSYBOX = "/bin/busybox"
#: The parent of all containers' cgroups.
CGROUP = f"ctd-shim-test-{os.getpid()}"
NULL = {"stdin": "null", "stdout": "null", "stderr": "null"}


def fifo(path: Path, query: str = "") -> str:
    """Make a fifo; its URI."""
    os.mkfifo(path, 0o600)
    return f"fifo://{escaped(str(path))}{query}"


def args(*command: str) -> dict[str, Any]:
    """An OCI process object for busybox's commands."""
    return {
        "args": list(command),
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "terminal": False,
    }


class Connection:
    """A connection to a shim, or to the template by two pipes."""

    def __init__(self, receive: Callable[[int], bytes], send: Callable[[bytes], Any]) -> None:
        self._receive = receive
        self._send = send
        self._lines = Lines()
        self._last = 0
        self.messages: list[dict[str, Any]] = []

    def send(self, method: str, **params: Any) -> int:
        """Send a request; its id."""
        self._last += 1
        self._send(encode({"id": self._last, "method": method, "params": params}))
        return self._last

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request.  :raise Failure: the error it was answered with."""
        return self.reply(self.send(method, **params))

    def reply(self, id: int) -> dict[str, Any]:
        """The result of a request that was sent."""
        message = self.take(lambda message: message.get("id") == id)
        if "error" in message:
            raise Failure.read(message["error"])
        result: dict[str, Any] = message["result"]
        return result

    def notification(self, method: str, process: str = "init") -> dict[str, Any]:
        """The parameters of the next such notification about a process."""
        message = self.take(
            lambda m: m.get("method") == method and m["params"]["process"] == process
        )
        params: dict[str, Any] = message["params"]
        return params

    def take(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that is wanted; the others stay, in :attr:`messages`."""
        while True:
            for message in self.messages:
                if wanted(message):
                    self.messages.remove(message)
                    return message
            data = self._receive(1 << 16)
            if not data:
                raise EOFError
            self.messages += map(decode, self._lines.feed(data))


class Shim:
    """A forked shim and where its files are."""

    def __init__(self, rig: Rig, run: str) -> None:
        self.run = run
        self.directory = rig.state / "shims" / run
        self.records = rig.root / "runs" / run
        self.bundle = self.directory / "bundle"
        self.pid = 0
        self._sockets: list[socket.socket] = []

    def connect(self) -> Connection:
        """A new connection that has said hello."""
        connection = self.connect_silently()
        assert connection.call("hello", versions=[1, 2])["version"] == 1
        return connection

    def connect_silently(self) -> Connection:
        """A new connection that has said nothing."""
        fd = os.open(self.directory, os.O_PATH)
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(30)
        one.connect(f"/proc/self/fd/{fd}/shim.sock")
        os.close(fd)
        self._sockets.append(one)
        return Connection(one.recv, one.sendall)

    def hang_up(self) -> None:
        """Close all connections."""
        while self._sockets:
            self._sockets.pop().close()

    def configure(self, *command: str, **extra: Any) -> None:
        """Write the bundle's config.json; *extra* goes into its ``linux`` object."""
        config = {
            "ociVersion": "1.0.2",
            "process": args(*command),
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
                "cgroupsPath": f"/{CGROUP}/{self.run}",
                **extra,
            },
        }
        (self.bundle / "config.json").write_text(json.dumps(config))


class Rig:
    """A template, and everything below one directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ctd-shim-test-"))
        self.root = self.directory / "root"
        self.state = self.directory / "state"
        self.rootfs = self.directory / "rootfs"
        self.shims: list[Shim] = []
        for name in ("bin", "proc", "dev", "etc", "tmp"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, self.rootfs / "bin" / "busybox")
        for name in ("sh", "true", "cat", "yes", "sleep", "echo", "head", "dd", "ls", "tail"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "etc" / "plain").write_text("text")
        self.start_template()

    def start_template(self) -> None:
        """Start a template, as the daemon does."""
        self.template = subprocess.Popen(
            [sys.executable, "-I", "-S", template.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "NOTIFY_SOCKET": "/nowhere"},
        )
        stdin, stdout = self.template.stdin, self.template.stdout
        assert stdin is not None
        assert stdout is not None
        self.connection = Connection(
            lambda size: os.read(stdout.fileno(), size), lambda line: os.write(stdin.fileno(), line)
        )

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """The root file system, as storage hands it over."""
        return [
            {"type": "bind", "source": str(self.rootfs), "options": ["rbind", "rw"], "target": ""}
        ]

    def fork(self, idle: float = 60) -> Shim:
        """Have a shim forked."""
        shim = Shim(self, os.urandom(6).hex())
        for directory in (shim.bundle, shim.records):
            directory.mkdir(parents=True)
        shim.pid = self.connection.call("fork", **self.fork_params(shim), idle=idle)["pid"]
        self.shims.append(shim)
        return shim

    def fork_params(self, shim: Shim) -> dict[str, Any]:
        """The parameters to fork it with."""
        return {
            "run": shim.run,
            "namespace": "default",
            "container": "box",
            "directory": str(shim.directory),
            "records": str(shim.records),
            "runtime": RUNC,
            "runtime_root": str(self.state / "runtime"),
        }

    def close(self) -> None:
        """End what is left, and remove the files."""
        if self.template.poll() is None:
            assert self.template.stdin is not None
            self.template.stdin.close()
            self.template.wait(10)
        for shim in self.shims:
            shim.hang_up()
            runc(self.state, "delete", "--force", shim.run)
            if alive(shim.pid):
                os.kill(shim.pid, 9)
                wait_until(lambda pid=shim.pid: not alive(pid))  # type: ignore[misc]
        shutil.rmtree(self.directory)
        for cgroup in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
            cgroup.rmdir()


def runc(state: Path, *arguments: str) -> str:
    """What runc says on standard output."""
    command = [RUNC, "--root", str(state / "runtime"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for a condition to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
