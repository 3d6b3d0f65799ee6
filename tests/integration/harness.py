"""The real daemon, run as users run it, spoken to over its socket."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ctd.cli.connection import Connection
from ctd.cli.errors import ConnectionLost, DaemonError, DaemonUnreachable

BIN = Path(sys.executable).parent
T = TypeVar("T")

__all__ = ["Completed", "ConnectionLost", "Daemon", "DaemonError", "eventually"]


def eventually(condition: Callable[[], T], seconds: float = 10.0, what: str = "") -> T:
    """Call *condition* until it gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {seconds:g} s: {what or condition}; it is {value!r}")
        time.sleep(0.02)
    return value


def children_of(pid: int) -> list[int]:
    """The pids of a process's children; none if it is not there."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found


def _hear_interrupts() -> None:
    # Shells have what they run in the background ignore it; commands inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Completed:
    """How a command ended: its exit status, standard output and standard error."""

    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status = status
        self.raw = out
        self.out = out.decode(errors="replace")
        self.err = err.decode(errors="replace")

    def __repr__(self) -> str:
        return f"Completed({self.status}, {self.out[-2000:]!r}, {self.err[-2000:]!r})"


class Daemon:
    """One daemon with a root and a state directory of its own, over all its restarts.

    The directory is directly below the temporary one: paths of sockets are short.

    :param options: more options of ``twistd ctd``.
    """

    def __init__(self, *options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ctd-test-"))
        self.root = self.directory / "root"
        self.state = self.directory / "state"
        self.socket = self.directory / "ctd.sock"
        self.log = self.directory / "daemon.log"
        self.fifos = self.directory / "fifos"
        self.fifos.mkdir()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the daemon that runs now."""
        assert self.process is not None, "the daemon does not run"
        return self.process.pid

    def start(self) -> Daemon:
        """Start it and wait until it answers."""
        places = ("--root", self.root, "--state", self.state, "--socket", self.socket)
        command = [BIN / "twistd", "-n", "--pidfile=", "ctd", *places, *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = 30.0) -> None:
        """Wait until it answers; its log is in the error if it does not."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.call("daemon.info")
            except (DaemonUnreachable, ConnectionLost):
                ended = self.process is None or self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    text = self.log.read_text()[-8000:]
                    raise AssertionError(f"the daemon does not start:\n{text}") from None
                time.sleep(0.01)
            else:
                return

    def stop(self) -> int:
        """End it as systemd does, and give its exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill9()
            text = self.log.read_text()[-8000:]
            raise AssertionError(f"the daemon does not end on SIGTERM:\n{text}") from None
        self.process = None
        return status

    def kill9(self) -> None:
        """Kill it outright."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def restart(self) -> None:
        """End it and start another one in its place."""
        self.stop()
        self.start()

    def connect(self) -> Connection:
        """A connection, for several calls at once or to hang up."""
        return Connection(str(self.socket))

    def call(self, method: str, **params: Any) -> Any:
        """Call a method on a connection of its own.  :raise DaemonError: it failed."""
        connection = self.connect()
        try:
            return connection.reply(connection.send(method, params))
        finally:
            connection.close()

    def items(self, method: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Everything a listing has."""
        while True:
            page = self.call(method, **params)
            yield from page["items"]
            if page["next"] is None:
                return
            params["cursor"] = page["next"]

    def events(self, since: int = 0, **params: Any) -> list[dict[str, Any]]:
        """All events after *since*, of every namespace."""
        return list(self.items("events.list", since=since, all_namespaces=True, **params))

    def run(self, args: Sequence[str] | None = None, **params: Any) -> Completed:
        """Run a container over the socket to its end, output in files, and delete it.

        :param params: of ``containers.create``.
        """
        id = params.pop("id", None) or secrets.token_hex(6)
        files = [self.directory / f"{id}.{name}" for name in ("out", "err")]
        stdio = dict(zip(("stdout", "stderr"), (file.as_uri() for file in files), strict=True))
        try:
            self.call("containers.create", **{"args": args, "stdio": stdio, **params}, id=id)
            try:
                self.call("containers.start", id=id)
                status = self.call("containers.wait", id=id)["exit_status"]
            finally:
                self.call("containers.delete", id=id, force=True)
            return Completed(status, *(file.read_bytes() for file in files))
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start the ``ctd`` command for this daemon."""
        environment = {
            **os.environ,
            "CTD_HOST": str(self.socket),
            "XDG_RUNTIME_DIR": str(self.fifos),
            **options.pop("env", {}),
        }
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        settings = {"stdin": subprocess.DEVNULL, **pipes, **options}
        settings["preexec_fn"] = _hear_interrupts
        return subprocess.Popen([str(BIN / "ctd"), *args], env=environment, **settings)

    def ctd(
        self, *args: str, stdin: bytes | None = None, timeout: float = 60.0, **options: Any
    ) -> Completed:
        """Run the ``ctd`` command for this daemon to its end."""
        if stdin is not None:
            options["stdin"] = subprocess.PIPE
        process = self.popen(*args, **options)
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"ctd {' '.join(args)} hangs: {out!r} {err!r}") from None
        return Completed(process.returncode, out or b"", err or b"")

    def delete_containers(self) -> None:
        """Remove every container, running or not."""
        for container in self.items("containers.list", all_namespaces=True):
            which = {"id": container["id"], "namespace": container["namespace"]}
            try:
                self.call("containers.delete", **which, force=True)
            except DaemonError as error:
                if error.kind != "not_found":
                    raise

    def shims(self) -> dict[str, dict[str, Any]]:
        """What each shim says of itself on disk, by run."""
        found = self.state.glob("shims/*/shim.json")
        return {path.parent.name: json.loads(path.read_bytes()) for path in found}

    def template(self) -> int:
        """The pid of the process that forks shims."""
        return next(pid for pid, command in self.children() if "template" in " ".join(command))

    def workers(self) -> list[int]:
        """The pids of the processes from which those that unpack layers come."""
        return [pid for pid, command in self.children() if "unpack" in " ".join(command)]

    def jobs(self) -> list[int]:
        """The pids of the processes that unpack a layer now."""
        return [pid for worker in self.workers() for pid in children_of(worker)]

    def children(self) -> Sequence[tuple[int, list[str]]]:
        """The pids and command lines of the daemon's own children."""
        found = []
        for pid in children_of(self.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            found.append((pid, command.split("\0")[:-1]))
        return found

    def destroy(self) -> None:
        """Remove everything of it by all means, also after a test that failed."""
        from tests.integration.leaks import CGROUPS, cgroups, mounts_below, processes_of

        runs = {path.name for top in ("state/shims", "root/runs")
                for path in (self.directory / top).glob("*")}  # fmt: skip
        if self.process is not None:
            self.kill9()
        for _ in range(5):
            for pid in processes_of(self.directory):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)
        for target in reversed(mounts_below(self.directory)):
            subprocess.run(["umount", "-l", target], check=False)
        for path in sorted(cgroups(), reverse=True):
            if runs.intersection(path.split("/")):
                with contextlib.suppress(OSError):
                    (CGROUPS / path.lstrip("/")).rmdir()
        shutil.rmtree(self.directory, ignore_errors=True)
