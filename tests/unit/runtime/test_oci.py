"""Finding and asking OCI runtimes: real executables."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ctd.errors import InvalidArgument, Unavailable
from ctd.runtime.oci import PROBE_LIMIT, find_runtime, probe


def executable(path: Path, body: str, mode: int = 0o755) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)
    return str(path)


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_by_name(tmp_path: Path) -> None:
    """A name is looked up in the directories given, in order; others are passed over."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    executable(tmp_path / "a" / "rt", "", 0o644)
    found = executable(tmp_path / "b" / "rt", "")
    executable(tmp_path / "rt", "")
    path = f"::relative:{tmp_path}/none:{tmp_path}/a:{tmp_path}/b:{tmp_path}"
    assert find_runtime("rt", path) == found


def test_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without directories a name is looked up where the daemon's own programs are."""
    found = executable(tmp_path / "rt", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_runtime("rt") == found


def test_by_path(tmp_path: Path) -> None:
    """An absolute path is taken as it is."""
    found = executable(tmp_path / "rt", "")
    assert find_runtime(found, "") == found


def test_absent(tmp_path: Path) -> None:
    """What cannot be run is refused, with what was looked for and where."""
    plain = executable(tmp_path / "plain", "", 0o644)
    for name in ("none", f"{tmp_path}/none", plain, str(tmp_path), "a/b", "", "a\0b"):
        with pytest.raises(InvalidArgument) as caught:
            find_runtime(name, str(tmp_path))
        assert caught.value.field == "runtime"
    with pytest.raises(InvalidArgument, match=str(tmp_path)):
        find_runtime("none", str(tmp_path))


def test_runc() -> None:
    """The runc that is installed says its name and version."""
    found = probe(find_runtime("runc", "/usr/sbin:/usr/bin:/usr/local/sbin"))
    assert found.name == "runc"
    assert found.version[0].isdigit()
    assert found.text.startswith("runc version")


def test_silent(tmp_path: Path) -> None:
    """A runtime that does not answer is given up in time, and killed with its children."""
    path = executable(tmp_path / "rt", "sleep 654.25")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="within"):
        probe(path, 0.2)
    assert time.monotonic() - began < 5
    mine = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _reads(p) == b"sleep\x00654.25\x00"]
    assert mine == []


def test_failing(tmp_path: Path) -> None:
    """A runtime that fails is not available, and says why."""
    path = executable(tmp_path / "rt", "echo broken >&2; exit 3")
    with pytest.raises(Unavailable, match=r"status 3: broken"):
        probe(path)


def test_no_program(tmp_path: Path) -> None:
    """A file that the kernel cannot execute is not available."""
    path = tmp_path / "rt"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    with pytest.raises(Unavailable):
        probe(str(path))


def test_endless(tmp_path: Path) -> None:
    """Of what a runtime says without end a bounded part is read."""
    path = executable(tmp_path / "rt", "while echo 1.0 endless; do :; done")
    with pytest.raises(Unavailable):
        probe(path, 1.0)
    path = executable(tmp_path / "rt2", f"head -c {PROBE_LIMIT * 2} /dev/zero | tr '\\0' 9")
    assert len(probe(path).text) <= PROBE_LIMIT
