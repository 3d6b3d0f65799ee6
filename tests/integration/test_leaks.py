"""The check for leaks finds leaks: without that it proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.harness import Daemon
from tests.integration.leaks import CGROUPS, Watch


@contextmanager
def removed(path: Path) -> Iterator[Path]:
    """A directory made for the time inside."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        path.rmdir()


def test_nothing(daemon: Daemon) -> None:
    """A daemon that has done nothing has left nothing."""
    assert Watch(daemon).leaks() == []


def test_mount(daemon: Daemon) -> None:
    """A mount below the daemon's directory is found, here and in another namespace."""
    watch = Watch(daemon)
    with removed(daemon.directory / "mounted") as target:
        subprocess.run(["mount", "-t", "tmpfs", "none", target], check=True)
        assert f"mount {target}" in watch.leaks()
        subprocess.run(["umount", target], check=True)
        assert watch.leaks() == []
        script = f"mount -t tmpfs none {target}; cd /; echo; exec sleep 1000"
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert any("mount in the namespace of" in leak for leak in watch.leaks())
            process.kill()
    assert watch.leaks() == []


def test_process(daemon: Daemon) -> None:
    """A process is found by its command, its environment, and where it is."""
    watch = Watch(daemon)
    place = str(daemon.state)
    for options in (
        {"args": ["sh", "-c", "sleep 1000; true", f"{place}/x"]},
        {"args": ["sleep", "1000"], "env": {**os.environ, "PLACE": f"{place}/x"}},
        {"args": ["sleep", "1000"], "cwd": place},
    ):
        with subprocess.Popen(**options, start_new_session=True) as process:
            assert any(f"process {process.pid}:" in leak for leak in watch.leaks())
            os.killpg(process.pid, signal.SIGKILL)
    assert watch.leaks() == []


def test_cgroup(daemon: Daemon) -> None:
    """A cgroup with a run's id in its name is found."""
    watch = Watch(daemon)
    pids = CGROUPS / "pids"
    with removed((pids if pids.is_dir() else CGROUPS) / "ctd-test-0123456789ab"):
        assert any("0123456789ab" in leak for leak in watch.leaks())
    assert watch.leaks() == []


@pytest.mark.parametrize(
    "name",
    [
        *("state/shims/0123456789ab", "root/runs/0123456789ab", "root/content/ingest/1"),
        *("root/content/blobs/sha256/00", "root/snapshots/overlayfs/999", "fifos/ctd-1"),
    ],
)
def test_file(daemon: Daemon, name: str) -> None:
    """A file or directory where nothing should be is found."""
    watch = Watch(daemon)
    path = daemon.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    baseline = watch.leaks()
    with removed(path):
        assert set(watch.leaks()) - set(baseline)
