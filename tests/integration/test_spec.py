"""Generated configurations in the real runc: what a container sees from inside."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from ctd.model import ProcessDefaults, User
from ctd.runtime import capabilities, cgroups
from ctd.runtime.checks import check_container, check_exec
from ctd.runtime.host import host
from ctd.runtime.interfaces import ContainerRequest, ExecRequest, Resources, UserMount
from ctd.runtime.spec import container_spec, exec_process

BUSYBOX = Path("/bin/busybox")
RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or RUNC is None or not BUSYBOX.exists(), reason="needs root, runc, busybox"
)

here = functools.cache(host)


@attrs.frozen
class Box:
    """A bundle and a run of its own, to run requests with."""

    directory: Path
    run_id: str

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs"

    def configure(self, script: str, user: User, fields: dict[str, Any]) -> dict[str, Any]:
        wanted = {"namespace": "default", "id": "web", "rootfs": str(self.rootfs)}
        request = ContainerRequest(**{**wanted, "args": ("/bin/sh", "-c", script), **fields})
        check_container(request)
        config = container_spec(request, ProcessDefaults(), user, self.run_id, here())
        (self.directory / "config.json").write_text(json.dumps(config))
        return config

    def runc(self, *words: str, check: bool = True) -> str:
        assert RUNC is not None
        command = [RUNC, "--root", str(self.directory / "state"), *words]
        # To files: a container left running would hold pipes open.
        with (self.directory / "out").open("w+") as out, (self.directory / "err").open("w+") as err:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=60, check=False
            )
        said, errors = ((self.directory / n).read_text() for n in ("out", "err"))
        assert done.returncode == 0 or not check, errors + said
        return said + errors

    def run(self, script: str, user: User = User(), **fields: Any) -> str:  # noqa: B008
        """What *script* says in a container of its own."""
        self.configure(script, user, fields)
        return self.runc("run", "--bundle", str(self.directory), self.run_id)

    def start(self, script: str, user: User = User(), **fields: Any) -> dict[str, Any]:  # noqa: B008
        """Let *script* run on in the background.  :return: the process object."""
        process: dict[str, Any] = self.configure(script, user, fields)["process"]
        self.runc("run", "--detach", "--bundle", str(self.directory), self.run_id)
        return process


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """A bundle with busybox; after the test nothing of its container is left."""
    directory = tmp_path / "bundle"
    box = Box(directory, secrets.token_hex(6))
    (box.rootfs / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, box.rootfs / "bin" / "busybox")
    for name in ("sh", "cat", "ls", "id", "env", "grep", "touch", "mkdir", "sleep", "mknod",
                 "hostname", "readlink", "wc", "head", "pwd"):  # fmt: skip
        (box.rootfs / "bin" / name).symlink_to("busybox")
    yield box
    box.runc("delete", "--force", box.run_id, check=False)
    cgroups.kill(box.run_id)
    cgroups.remove(box.run_id)
    assert cgroups.directories(box.run_id) == []


def facts(text: str) -> dict[str, str]:
    """``/proc/PID/status``, or other lines of names and values."""
    pairs = (line.partition(":" if ":" in line else "=") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def mask(names: tuple[str, ...]) -> int:
    return sum(1 << capabilities.ALL.index(name) for name in names)


def test_capabilities(box: Box) -> None:
    """Root in a container has the fourteen capabilities and can get no others."""
    status = facts(box.run("cat /proc/self/status"))
    for line in ("CapBnd", "CapEff", "CapPrm"):
        assert int(status[line], 16) == mask(capabilities.DEFAULT)
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_capabilities_changed(box: Box) -> None:
    """What is added is there, what is taken away is not."""
    status = facts(box.run("cat /proc/self/status", capabilities=("NET_ADMIN", "-mknod")))
    expected = set(capabilities.DEFAULT) - {"CAP_MKNOD"} | {"CAP_NET_ADMIN"}
    assert int(status["CapEff"], 16) == mask(tuple(expected))


def test_no_capabilities(box: Box) -> None:
    """Root without any capability is root without any privilege."""
    script = "grep CapBnd /proc/self/status; mknod /x c 1 3 2>&1 || echo refused"
    said = box.run(script, capabilities=("-ALL",))
    assert "0000000000000000" in said
    assert "refused" in said


def test_doors(box: Box) -> None:
    """Masked files are empty, masked directories too, and read-only paths cannot be written."""
    said = box.run(
        "exec 3>&2 2>/dev/null; cat /proc/kcore | head -c 1 | wc -c;"
        "cat /proc/keys /proc/timer_list /proc/interrupts | wc -c;"
        "ls /sys/firmware /proc/acpi /proc/scsi | grep -v : | grep -c .; exec 2>&3;"
        "for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/default_smp_affinity;"
        "do (echo x > $f) 2>&1; done; mkdir /sys/x 2>&1; mkdir /sys/fs/cgroup/pids/x 2>&1; :"
    )
    lines = said.splitlines()
    assert lines[:3] == ["0", "0", "0"]
    writes = lines[3:]
    assert len(writes) >= 4
    assert "/proc/sys/kernel/domainname: Read-only file system" in writes[0]
    for line in writes:
        assert any(word in line for word in ("Read-only", "not permitted", "nonexistent")), line


def test_devices(box: Box) -> None:
    """The harmless devices work; a disk's node can be made and not opened."""
    major, minor = next((d.major, d.minor) for d in here().devices if d.type == "b")
    said = box.run(
        "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 1 /dev/urandom | wc -c;"
        f"mknod /disk b {major} {minor} && (head -c 1 /disk 2>&1); ls /dev"
    )
    assert said.splitlines()[:2] == ["3", "1"]
    assert "Operation not permitted" in said
    assert {"ptmx", "pts", "shm", "mqueue", "tty"} <= set(said.split())


def test_user(box: Box) -> None:
    """A user has its numbers, its groups and no capabilities in effect."""
    said = box.run("cat /proc/self/status; env", User(1000, 100, (5, 7), "/home/me"))
    status = facts(said)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["100"] * 4
    assert sorted(map(int, status["Groups"].split())) == [5, 7, 100]
    assert int(status["CapEff"], 16) == 0
    assert status["HOME"] == "/home/me"


def test_surroundings(box: Box) -> None:
    """Directory, host's name and environment are as asked for."""
    said = box.run(
        "pwd; hostname; env; cat /proc/self/mountinfo",
        cwd="/made/here",
        hostname="db.example",
        env=("A=1=2", "PATH=/bin"),
    )
    lines = said.splitlines()
    assert lines[:2] == ["/made/here", "db.example"]
    assert {"A=1=2", "PATH=/bin", "HOSTNAME=db.example", "HOME=/"} <= set(lines)
    targets = [line.split()[4] for line in lines if " - " in line]
    for target in ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run"):
        assert target in targets


def test_read_only(box: Box) -> None:
    """A read-only root cannot be written to, and /run and /dev/shm can."""
    said = box.run("touch /x 2>&1; touch /run/x /dev/shm/x && echo written", read_only=True)
    assert "Read-only file system" in said
    assert said.endswith("written\n")
    assert not (box.rootfs / "x").exists()


def test_mounts(box: Box, tmp_path: Path) -> None:
    """Binds and tmpfs are where and as they were asked for, over the defaults too."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "hello").write_text("hello\n")
    (source / "t").mkdir()
    said = box.run(
        "cat /data/hello; touch /data/x 2>&1; touch /data/t/x && echo written; ls /run;"
        "grep ' /data/t ' /proc/self/mountinfo",
        mounts=(
            UserMount("/data/t", "tmpfs", options=("size=64k",)),
            UserMount("/data", source=str(source), options=("rbind", "ro")),
            UserMount("/run", source=str(source)),
        ),
    )
    lines = said.splitlines()
    assert lines[0] == "hello"
    assert "Read-only file system" in lines[1]
    assert lines[2] == "written"
    assert lines[3:5] == ["hello", "t"]
    assert "nosuid,nodev,noexec" in lines[5]
    assert "size=64k" in lines[5]


def test_shared_mount(box: Box, tmp_path: Path) -> None:
    """A shared bind mount is shared in the container."""
    source = tmp_path / "source"
    source.mkdir()
    mount = UserMount("/data", source=str(source), options=("rbind", "rshared"))
    assert " shared:" in box.run("grep ' /data ' /proc/self/mountinfo", mounts=(mount,))


def test_limits(box: Box) -> None:
    """Limits of memory, processes and processor time are in the run's cgroup."""
    limits = Resources(memory=64 << 20, cpus=0.5, cpu_shares=512, pids=50)
    box.start("sleep 100", resources=limits)
    found = {
        path.name: path.read_text().strip()
        for place in cgroups.directories(box.run_id)
        for path in place.iterdir()
        if path.is_file() and path.name in _LIMIT_FILES
    }
    assert found
    for name, text in found.items():
        assert text == _LIMIT_FILES[name], name


_LIMIT_FILES = {
    "memory.limit_in_bytes": str(64 << 20),
    "memory.max": str(64 << 20),
    "pids.max": "50",
    "cpu.shares": "512",
    "cpu.max": "50000 100000",
    "cpu.cfs_quota_us": "50000",
    "cpu.cfs_period_us": "100000",
}


def test_limits_seen_inside(box: Box) -> None:
    """A program in a container finds its own limit where programs look for it."""
    said = box.run(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"
        " || cat /sys/fs/cgroup/memory.max",
        resources=Resources(memory=64 << 20),
    )
    assert said.strip() == str(64 << 20)


def test_no_limits(box: Box) -> None:
    """Without limits nothing is limited."""
    box.start("sleep 100")
    for place in cgroups.directories(box.run_id):
        if (place / "pids.max").exists():
            assert (place / "pids.max").read_text() == "max\n"


def test_new_network(box: Box) -> None:
    """A new network namespace has a loopback device alone, and is not the host's."""
    said = box.run("readlink /proc/self/ns/net; ls /sys/class/net")
    ours = os.readlink("/proc/self/ns/net")
    assert said.splitlines()[0] != ours
    assert "lo" in said.splitlines()[1:]


def test_host_network(box: Box) -> None:
    """In the host's network the namespace is the host's, and names resolve as there."""
    said = box.run("readlink /proc/self/ns/net; cat /etc/resolv.conf", netns="host")
    first, _, rest = said.partition("\n")
    assert first == os.readlink("/proc/self/ns/net")
    if "/etc/resolv.conf" in here().resolver_files:
        assert rest == Path("/etc/resolv.conf").read_text()


def test_network_at_path(box: Box) -> None:
    """A network namespace that something else has made is joined."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "readlink /proc/self/ns/net; exec sleep 600"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        said = box.run("readlink /proc/self/ns/net", netns=f"/proc/{holder.pid}/ns/net")
        assert said.strip() == name
        assert name != os.readlink("/proc/self/ns/net")
    finally:
        holder.kill()
        holder.communicate()


def test_privileged(box: Box) -> None:
    """A privileged container has the daemon's capabilities, writes to /sys and sees devices."""
    said = box.run(
        "cat /proc/self/status; ls /dev; mkdir /sys/fs/cgroup/pids/below && echo made;"
        "head -c 1 /proc/keys | wc -c",
        privileged=True,
    )
    status = facts(said)
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == mask(here().capabilities)
    assert status["NoNewPrivs"] == "0"
    assert set(said.splitlines()) >= {d.path.split("/")[2] for d in here().devices}
    if Path("/sys/fs/cgroup/pids").exists():
        assert "made" in said


def test_host_dev(box: Box) -> None:
    """The host's /dev can be bound in place of the container's."""
    mount = UserMount("/dev", source="/dev")
    said = box.run("ls /dev", mounts=(mount,), privileged=True)
    assert set(said.split()) >= {"null", "zero"}


def test_default_path(box: Box) -> None:
    """The default search path finds commands without an image."""
    assert box.run("", args=("sh", "-c", "busybox echo found")) == "found\n"


def test_exec(box: Box) -> None:
    """Another process is in the same container, as its own user, with no more privileges."""
    base = box.start("sleep 100", User(1000, 100, home="/home/me"), env=("A=1",))
    script = "cat /proc/self/status; env; pwd; hostname"
    request = ExecRequest(
        "default", "web", "sh", ("sh", "-c", script), ("B=2",), "/bin", "0", capabilities=("-KILL",)
    )
    check_exec(request)
    process = exec_process(base, request, User(0, 0, (), "/root"), here())
    (box.directory / "exec.json").write_text(json.dumps(process))
    said = box.runc("exec", "--process", str(box.directory / "exec.json"), box.run_id)
    status = facts(said)
    expected = set(capabilities.DEFAULT) - {"CAP_KILL"}
    assert int(status["CapEff"], 16) == mask(tuple(expected))
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["0"] * 4
    assert (status["A"], status["B"], status["HOME"]) == ("1", "2", "/root")
    assert said.splitlines()[-2:] == ["/bin", "web"]


def test_exec_as_first(box: Box) -> None:
    """What an exec leaves out is as for the first process."""
    base = box.start("sleep 100", User(1000, 100, home="/home/me"), cwd="/bin")
    request = ExecRequest("default", "web", "sh", ("sh", "-c", "id -u; id -g; pwd"))
    process = exec_process(base, request, None)
    (box.directory / "exec.json").write_text(json.dumps(process))
    said = box.runc("exec", "--process", str(box.directory / "exec.json"), box.run_id)
    assert said.split() == ["1000", "100", "/bin"]


def test_cgroups_of_a_run(box: Box) -> None:
    """Every cgroup that runc makes for a run is found, emptied and removed."""
    cgroups.make(box.run_id)
    box.start("sleep 100 & sleep 100")
    occupied = [p for p in cgroups.directories(box.run_id) if (p / "cgroup.procs").read_text()]
    assert occupied
    cgroups.kill(box.run_id)
    cgroups.remove(box.run_id)
    below = [path for path, _, _ in os.walk(cgroups.ROOT) if box.run_id in path]
    assert below == []
