"""What users install: the built wheel, in an environment that has nothing else of ctd."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the build tool from the source as it is."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(SOURCE)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bin_directory(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the locked requirements and the wheel."""
    top = tmp_path_factory.mktemp("env")
    venv.create(top, with_pip=True)
    pip = [str(top / "bin/python"), "-m", "pip", "install", "--quiet"]
    pip.append("--disable-pip-version-check")
    requirements = str(SOURCE / "requirements.txt")
    subprocess.run([*pip, "--require-hashes", "-r", requirements], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    return top / "bin"


def test_contents(wheel: Path) -> None:
    """The wheel has the plugin and the typing marker, and no package of twisted's own."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"twisted/plugins/ctd_plugin.py", "ctd/py.typed", "ctd/shim/template.py"} <= names
    assert not [n for n in names if n.startswith("twisted/") and n.endswith("__init__.py")]
    assert not [n for n in names if n.startswith(("tests/", "design/", "demo/"))]


def test_command(bin_directory: Path) -> None:
    """``ctd`` says its version, and without a daemon says so and what to do."""
    version = subprocess.run(
        [bin_directory / "ctd", "--version"], capture_output=True, text=True, check=True
    )
    assert "0." in version.stdout
    lost = subprocess.run(
        [bin_directory / "ctd", "-H", "/nonexistent/ctd.sock", "ps"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert lost.returncode != 0
    assert "twistd" in lost.stderr


def test_daemon(bin_directory: Path, tmp_path: Path) -> None:
    """``twistd ctd`` starts, answers, and ends on SIGTERM with status 0."""
    path = tmp_path / "ctd.sock"
    options = ["--root", tmp_path / "root", "--state", tmp_path / "state", "--socket", path]
    daemon = subprocess.Popen(
        [bin_directory / "twistd", "-n", "--pidfile=", "ctd", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
    )
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and daemon.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b'{"id": 1, "method": "daemon.info"}\n')
            answer = json.loads(connection.makefile().readline())
        assert answer["result"]["pid"] == daemon.pid
        daemon.terminate()
        output = daemon.communicate(timeout=20)[0]
        assert daemon.returncode == 0, output
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
