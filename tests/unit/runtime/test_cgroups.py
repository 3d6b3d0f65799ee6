"""The cgroups of runs, in the real hierarchies of this machine.

Every test has runs of its own; directories that look like a hierarchy are made
where a real one cannot be had.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctd.errors import Unavailable
from ctd.runtime import cgroups

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(cgroups.ROOT, os.W_OK), reason="needs root and cgroups"
)


@pytest.fixture
def run() -> Iterator[str]:
    """A run; nothing of it is left after the test, whatever becomes of that."""
    run = secrets.token_hex(6)
    yield run
    cgroups.kill(run)
    cgroups.remove(run)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be ended after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(processes: list[subprocess.Popen[bytes]], *places: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "600"])
    processes.append(process)
    for place in places:
        (place / "cgroup.procs").write_text(str(process.pid))
    return process


def freezer(run: str) -> Path:
    for place in cgroups.directories(run):
        if (place / "freezer.state").exists():
            return place
    pytest.skip("no freezer of cgroup v1 here")


def test_made_everywhere(run: str) -> None:
    """A run's cgroups are made in every hierarchy, found there, and made again without harm."""
    assert cgroups.directories(run) == []
    cgroups.make(run)
    cgroups.make(run)
    found = cgroups.directories(run)
    assert found
    assert all((path / "cgroup.procs").exists() for path in found)
    assert all(path.parts[-2:] == ("ctd", run) for path in found)


def test_removed(run: str) -> None:
    """Removing leaves nothing of a run with what is below it, and can be repeated."""
    cgroups.make(run)
    for place in cgroups.directories(run):
        (place / "a" / "b").mkdir(parents=True)
    cgroups.remove(run)
    cgroups.remove(run)
    assert cgroups.directories(run) == []


def test_parent_stays_for_others(run: str) -> None:
    """The parent goes with the last run in it, and not before."""
    other = secrets.token_hex(6)
    cgroups.make(run)
    cgroups.make(other)
    parents = [path.parent for path in cgroups.directories(run)]
    cgroups.remove(run)
    assert all(path.is_dir() for path in parents)
    cgroups.remove(other)
    for path in parents:
        assert not path.is_dir() or any(entry.is_dir() for entry in path.iterdir())


def test_killed(run: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Every process in any of a run's cgroups is killed, in those it made below too."""
    cgroups.make(run)
    places = cgroups.directories(run)
    for place in places:
        (place / "below").mkdir()
        if place.parts[4] != "cpuset":  # takes processes only when it has processors
            sleeper(processes, place)
            sleeper(processes, place / "below")
    assert processes
    cgroups.kill(run)
    assert {process.wait(5) for process in processes} == {-9}
    cgroups.remove(run)


def test_frozen(run: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """A frozen process is killed."""
    cgroups.make(run)
    place = freezer(run)
    process = sleeper(processes, place)
    (place / "freezer.state").write_text("FROZEN")
    cgroups.kill(run)
    assert process.wait(5) == -9


def test_forking(run: str) -> None:
    """Processes that fork all the time are all killed."""
    cgroups.make(run)
    place = freezer(run)
    script = "f() { while :; do sleep 0.02 & done; }; read go; f & f & f & f"
    process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE)
    try:
        (place / "cgroup.procs").write_text(str(process.pid))
        (cgroups.ROOT / "pids" / "ctd" / run / "pids.max").write_text("200")
        (cgroups.ROOT / "pids" / "ctd" / run / "cgroup.procs").write_text(str(process.pid))
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        cgroups.kill(run)
    finally:
        process.kill()
        process.wait(5)
    assert (place / "cgroup.procs").read_text() == ""


def test_others_live(run: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Killing one run does nothing to another."""
    other = secrets.token_hex(6)
    cgroups.make(run)
    cgroups.make(other)
    process = sleeper(processes, freezer(other))
    cgroups.kill(run)
    assert process.poll() is None
    cgroups.kill(other)
    cgroups.remove(other)


def test_occupied(run: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Cgroups with processes in them are not removed, and that is said after a bounded time."""
    cgroups.make(run)
    sleeper(processes, freezer(run))
    waits: list[float] = []
    with pytest.raises(Unavailable, match=run):
        cgroups.remove(run, wait=waits.append)
    assert 5 < sum(waits) < 30


def test_removed_later(run: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Removing waits for what is about to end."""
    cgroups.make(run)
    process = sleeper(processes, freezer(run))
    timer = threading.Timer(0.1, process.kill)
    timer.start()
    cgroups.remove(run)
    timer.join()
    assert cgroups.directories(run) == []


def test_side_by_side() -> None:
    """Runs made and removed at the same time by many never lose each other's cgroups."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(40):
                run = secrets.token_hex(6)
                cgroups.make(run)
                made = len(cgroups.directories(run))
                cgroups.remove(run)
                assert made == hierarchies
        except (AssertionError, OSError, Unavailable) as error:
            failures.append(error)

    hierarchies = sum(1 for p in cgroups.ROOT.iterdir() if (p / "cgroup.procs").exists()) or 1
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_nothing_there(tmp_path: Path) -> None:
    """Where there are no cgroups there is nothing to end or to remove."""
    for root in (tmp_path, tmp_path / "none"):
        cgroups.make("0123456789ab", root)
        cgroups.kill("0123456789ab", root)
        cgroups.remove("0123456789ab", root)
    assert list(tmp_path.iterdir()) == []


def test_unified(tmp_path: Path) -> None:
    """Where the root itself is a cgroup, that of cgroup v2, the run's is below it alone."""
    (tmp_path / "cgroup.procs").touch()
    (tmp_path / "other.slice").mkdir()
    (tmp_path / "other.slice" / "cgroup.procs").touch()
    cgroups.make("0123456789ab", tmp_path)
    assert cgroups.directories("0123456789ab", tmp_path) == [tmp_path / "ctd" / "0123456789ab"]
    cgroups.remove("0123456789ab", tmp_path)
    assert not (tmp_path / "ctd").exists()


def test_links(tmp_path: Path) -> None:
    """A hierarchy with several names is one hierarchy."""
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu,cpuacct" / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    cgroups.make("0123456789ab", tmp_path)
    assert len(cgroups.directories("0123456789ab", tmp_path)) == 1


def test_no_other_paths() -> None:
    """What is no run's id names no cgroup."""
    for run in ("..", "", "a/b", "../../memory", "0123456789ab\n", "0123456789AB"):
        with pytest.raises(ValueError, match="run id"):
            cgroups.kill(run)
