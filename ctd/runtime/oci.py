"""OCI runtimes: finding the executable, and what it says it is.  Blocking: for worker threads."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from pathlib import Path

import attrs

from ctd.errors import InvalidArgument, Unavailable

#: How long a runtime may take to tell its version, in seconds, and the most bytes of that.
PROBE_SECONDS = 5.0
PROBE_LIMIT = 4096


@attrs.frozen
class RuntimeVersion:
    """What ``--version`` says.

    :ivar name: ``runc``; :ivar version: ``1.1.5``, empty if there is none in it.
    :ivar text: all of it.
    """

    path: str
    name: str
    version: str
    text: str


def find_runtime(name_or_path: str, path_env: str | None = None) -> str:
    """The absolute path of an OCI runtime's executable.

    :param path_env: where a name is looked up: directories with colons between them;
        None: where this process has its own programs from.
    :raise InvalidArgument: there is no such executable.
    """
    if not name_or_path or "\0" in name_or_path:
        raise InvalidArgument("runtime", "must be the name or path of an OCI runtime")
    if name_or_path.startswith("/"):
        found = name_or_path
        if not Path(found).is_file():
            raise InvalidArgument("runtime", f"there is no file {found[:200]}")
        if not os.access(found, os.X_OK):
            raise InvalidArgument("runtime", f"{found[:200]} cannot be executed")
        return found
    if "/" in name_or_path:
        raise InvalidArgument(
            "runtime", f"{name_or_path[:200]!r} is a relative path: give a name or an absolute one"
        )
    if path_env is None:
        path_env = os.environ.get("PATH", os.defpath)
    for directory in path_env.split(":"):
        found = f"{directory}/{name_or_path}"
        if directory.startswith("/") and Path(found).is_file() and os.access(found, os.X_OK):
            return found
    raise InvalidArgument(
        "runtime",
        f"there is no {name_or_path[:200]!r} in {path_env[:500]}: install it, or give its path",
    )


def probe(path: str, seconds: float = PROBE_SECONDS) -> RuntimeVersion:
    """Ask a runtime for its version.

    :raise Unavailable: it cannot be run, fails, or does not answer in time.
    """
    try:
        process = subprocess.Popen(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"runtime {path}", str(error.strerror)) from None
    with process:
        try:
            said = _read(process, seconds)
            status = process.wait(seconds)
        except (TimeoutError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: its number is its own
            raise Unavailable(f"runtime {path}", f"no version within {seconds:g} s") from None
    text = said.decode(errors="replace").strip()
    if status:
        raise Unavailable(f"runtime {path}", f"--version: status {status}: {text[:200]}")
    words = text.partition("\n")[0].split()
    version = next((word for word in words if word[:1].isdigit()), "")
    return RuntimeVersion(path, words[0] if words else Path(path).name, version, text)


def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What it writes until the end, or enough of that.  :raise TimeoutError: it goes on."""
    assert process.stdout is not None
    until = time.monotonic() + seconds
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(said) < PROBE_LIMIT:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), PROBE_LIMIT - len(said))
            if not piece:
                break
            said += piece
    return said
