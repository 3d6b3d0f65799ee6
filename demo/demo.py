"""Shows ctd's whole path with real parts, and checks each step: ``make demo``.

A registry on loopback serves an image; ``twistd ctd`` pulls, verifies, unpacks
and runs it; the daemon is killed with ``kill -9`` while the container writes, a
new one reattaches; at the end nothing is left.  The exit status is 0 only if
every check held.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent
LINES = 3000
SCRIPT = (
    "i=0; while [ $i -lt %d ]; do echo line $i of the container; i=$((i+1));"
    " [ $((i %% 10)) = 0 ] && usleep 10000; done; exit 7" % LINES
)

CLOSING = """\
    An image served by a registry on loopback was pulled over HTTP, verified and
    unpacked; runc ran it on overlayfs; the daemon was killed with kill -9 while
    the container wrote, and a new one had it back: no byte of output was lost,
    one exit event came with the right code, and nothing was left behind."""

shown: list[str] = []


def say(text: str) -> None:
    print(f"\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"==> {text}", flush=True)


def check(what: str, true: object) -> None:
    """Note that *what* was shown, or end with status 1 because it was not."""
    if not true:
        print(f"FAILED: {what}", flush=True)
        raise SystemExit(1)
    print(f"    ok: {what}", flush=True)
    shown.append(what)


def eventually(what: str, condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    check(what, condition())


def mounts() -> list[str]:
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def cgroups(containing: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").rglob(f"*{containing}*") if path.is_dir()]


def processes(mentioning: str) -> list[str]:
    """Processes whose command line or working directory mentions a path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and (mentioning in command or mentioning in where):
            found.append(f"{entry.name} {command or where}")
    return found


class Demo:
    """The parts that are started, in one directory that goes at the end."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root, self.state = top / "root", top / "state"
        self.socket = self.state / "ctd.sock"
        self.children: list[subprocess.Popen[bytes]] = []

    def ctd(self, *args: str, **how: object) -> subprocess.CompletedProcess[str]:
        print(f"    $ ctd {' '.join(args)}", flush=True)
        command = [str(BIN / "ctd"), "-H", str(self.socket), *args]
        return subprocess.run(command, text=True, capture_output=True, timeout=120, **how)  # type: ignore[call-overload, no-any-return]

    def call(self, method: str, **params: object) -> dict[str, object]:
        result = self.ctd("call", method, json.dumps(params))
        if result.returncode:
            raise SystemExit(f"FAILED: {method}: {result.stderr}")
        answer: dict[str, object] = json.loads(result.stdout)
        return answer

    def start(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        with (self.top / log).open("ab") as file:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.children.append(child)
        return child

    def daemon(self) -> subprocess.Popen[bytes]:
        child = self.start(
            *(str(BIN / "twistd"), "-n", "--pidfile=", "ctd"),
            *("--root", str(self.root), "--state", str(self.state), "--socket", str(self.socket)),
            log="ctd.log",
        )
        eventually("the daemon answers", lambda: child.poll() is None and self.answers())
        return child

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
                probe.sendall(b'{"id": 1, "method": "daemon.info"}\n')
                return b"result" in probe.recv(65536)
            except OSError:
                return False

    def registry(self) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % probe.getsockname()[1]
        config = self.top / "registry.yml"
        settings = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.top / "registry")}},
            "http": {"addr": address},
        }
        config.write_text(json.dumps(settings))
        child = self.start("docker-registry", "serve", str(config), log="registry.log")

        def listens() -> bool:
            host, port = address.split(":")
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        eventually("Debian's docker-registry listens on loopback", listens)
        check("it keeps running", child.poll() is None)
        return address

    def image(self, address: str) -> str:
        """An image of two layers made by umoci, pushed by skopeo."""
        rootfs, layout = self.top / "rootfs", self.top / "layout"
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            (rootfs / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin/busybox")
        for applet in ("sh", "cat", "echo", "usleep", "sleep", "id", "ls", "grep", "mount"):
            (rootfs / "bin" / applet).symlink_to("busybox")
        (rootfs / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\ndemo:x:1000:1000::/:/bin/sh\n")
        (rootfs / "etc/group").write_text("root:x:0:\ndemo:x:1000:\n")
        message = self.top / "message"
        message.write_text("the second layer was here\n")
        target = f"{layout}:demo"
        for command in (
            ["umoci", "init", "--layout", str(layout)],
            ["umoci", "new", "--image", target],
            ["umoci", "insert", "--image", target, str(rootfs), "/"],
            ["umoci", "insert", "--image", target, str(message), "/message"],
            ["umoci", "config", "--image", target, "--config.cmd", "sh"],
        ):
            subprocess.run(command, check=True, capture_output=True)
        name = f"{address}/demo/busybox:1"
        subprocess.run(
            ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{target}", f"docker://{name}"],
            check=True,
            capture_output=True,
        )
        return name

    def stop(self) -> None:
        for child in reversed(self.children):
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(15)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def show(demo: Demo) -> None:
    mounts_before, cgroups_before = mounts(), cgroups("ctd")
    say("A registry on loopback, with an image pushed by skopeo")
    name = demo.image(demo.registry())

    say("twistd ctd, and the image pulled over HTTP")
    daemon = demo.daemon()
    pulled = demo.ctd("pull", name)
    print(re.sub(r"(?m)^", "    ", pulled.stdout + pulled.stderr).rstrip())
    check("the image is pulled", pulled.returncode == 0)
    blobs = list((demo.root / "content").rglob("blobs/sha256/*"))
    check(
        f"each of the {len(blobs)} blobs hashes to its name",
        len(blobs) >= 4
        and all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs),
    )

    say("Run by runc, on overlayfs")
    ran = demo.ctd(
        "run", "--rm", "--user", "demo", name, "sh", "-c", "cat /message; id; mount | grep ' / '"
    )
    print(re.sub(r"(?m)^", "    ", ran.stdout + ran.stderr).rstrip())
    check("its output is on the terminal", "the second layer was here" in ran.stdout)
    check("it runs on overlayfs", "overlay on / " in ran.stdout)
    check("as the user of the image's own passwd file", "uid=1000(demo)" in ran.stdout)
    check("its exit status is ours", ran.returncode == 0)
    missing = demo.ctd("run", "--rm", name, "no-such-command")
    check("a command that is not there is status 127", missing.returncode == 127)

    say("A container that writes, an exec into it, and kill -9 of the daemon meanwhile")
    output = demo.top / "output"
    with output.open("wb") as file:
        writer = subprocess.Popen(
            [
                str(BIN / "ctd"),
                "-H",
                str(demo.socket),
                "run",
                "--name",
                "writer",
                name,
                "sh",
                "-c",
                SCRIPT,
            ],
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
    demo.children.append(writer)
    eventually("the container writes", lambda: output.stat().st_size > 1000)
    executed = demo.ctd("exec", "writer", "sh", "-c", "echo inside; exit 3")
    check("an exec runs in it", (executed.stdout, executed.returncode) == ("inside\n", 3))
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    size = output.stat().st_size
    check("the daemon is dead, by kill -9", daemon.returncode == -signal.SIGKILL)
    eventually("the container goes on writing", lambda: output.stat().st_size > size)
    check("it has not ended meanwhile", writer.poll() is None)

    say("A new daemon")
    daemon = demo.daemon()
    found = demo.call("containers.get", id="writer")
    check("has the container, running", found["status"] == "running")
    executed = demo.ctd("exec", "writer", "echo", "again")
    check("and can exec into it", executed.stdout == "again\n")
    writer.wait(60)
    expected = "".join(f"line {n} of the container\n" for n in range(LINES))
    check(f"not one of {len(expected)} bytes of output is missing", output.read_text() == expected)
    check("the exit status came through: 7", writer.returncode == 7)
    page = demo.call("events.list", limit=1000)
    events = page["items"]
    assert isinstance(events, list)
    mine = [e for e in events if e["subject"] == "writer"]
    exits = [e for e in mine if e["topic"] == "container.exited"]
    check("the exit event came exactly once", len(exits) == 1)
    check("with the right code", exits[0]["data"]["exit_status"] == 7)
    topics = [e["topic"] for e in mine]
    order = ["container.created", "container.started", "container.exited"]
    check(
        "events are in order, with increasing seq",
        topics == order and events == sorted(events, key=lambda e: e["seq"]),
    )

    say("Clean-up")
    check("the container is removed", demo.ctd("rm", "writer").returncode == 0)
    check("the image is removed", demo.ctd("rmi", name).returncode == 0)
    check("no blob is left", not [b for b in (demo.root / "content").rglob("blobs/sha256/*")])
    check("no shim is left", not list((demo.state / "shims").glob("*")))
    daemon.terminate()
    check("the daemon ends well", daemon.wait(20) == 0)
    check("no mount is left", mounts() == mounts_before)
    check("no cgroup is left", not set(cgroups("ctd")) - set(cgroups_before))
    mine_left = [p for p in processes(str(demo.root)) + processes(str(demo.state))]
    check("no process is left", not mine_left)
    left = [
        p
        for p in demo.root.rglob("*")
        if p.is_file() and not p.name.startswith(("metadata.db", "daemon.lock"))
    ]
    check("no file is left but the database", not left)
    state_left = [p for p in demo.state.rglob("*") if not p.is_dir() and p.suffix != ".lock"]
    check("no state is left but the socket's lock", not state_left)


def main() -> int:
    if os.geteuid() != 0:
        print("make demo needs root: it runs containers", file=sys.stderr)
        return 1
    top = Path(tempfile.mkdtemp(prefix="ctd-demo-"))
    demo = Demo(top)
    failed = True
    try:
        show(demo)
        failed = False
    finally:
        demo.stop()
        if failed:
            log = top / "ctd.log"
            print(
                "the daemon's log ends:\n",
                "".join(log.read_text().splitlines(True)[-40:]) if log.exists() else "",
            )
        shutil.rmtree(top, ignore_errors=True)
    say(f"Shown, and checked in {len(shown)} steps:")
    print(CLOSING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
