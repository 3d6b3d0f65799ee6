"""Ending a run by all means, and removing what is left of it.  Blocking: for worker threads.

Each step can be repeated, and none depends on an earlier one having been
taken by the same process: what is found is what counts.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Mapping

import msgspec

from ctd import kernel
from ctd.errors import Unavailable
from ctd.protocols import shim as words
from ctd.runtime import cgroups
from ctd.runtime.interfaces import Exit
from ctd.runtime.places import Places

#: How long a killed process may take to be gone, and the OCI runtime to delete, in seconds.
KILL_SECONDS = 10.0
DELETE_SECONDS = 30.0

#: The most bytes read of a shim's description or an exit record.
_LIMIT = 1 << 16


class Description(msgspec.Struct, frozen=True):
    """What a shim says of itself: ``shim.json``."""

    version: int
    run: str
    pid: int
    start_time: int
    namespace: str = ""
    container: str = ""
    runtime: str = ""


class _ExitRecord(msgspec.Struct, frozen=True):
    exit_status: int
    exit_reason: str
    exited_at: str
    started_at: str | None = None


def describe(places: Places, run: str) -> Description | None:
    """What the shim of *run* says of itself; None if it says nothing.

    :raise Unavailable: that cannot be read now.
    """
    try:
        with places.description(run).open("rb") as file:
            found = msgspec.json.decode(file.read(_LIMIT), type=Description)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"shim {run}", str(error)) from None
    except (msgspec.MsgspecError, UnicodeError):
        return None
    return found if found.run == run else None


def found(places: Places) -> list[str]:
    """The runs that have a directory in the state or in the root directory."""
    runs = set()
    for directory in (places.shims, places.runs):
        try:
            runs |= {name for name in os.listdir(directory) if words.is_run(name)}
        except FileNotFoundError:
            continue
    return sorted(runs)


def exits(places: Places, run: str) -> Mapping[str, Exit]:
    """The exit records of *run* on disk, by process.  What cannot be read is passed over."""
    records = {}
    try:
        names = os.listdir(places.records(run))
    except FileNotFoundError:
        return {}
    for name in names:
        process = words.process_of(name)
        if process is None:
            continue
        try:
            with (places.records(run) / name).open("rb") as file:
                record = msgspec.json.decode(file.read(_LIMIT), type=_ExitRecord)
        except (OSError, msgspec.MsgspecError, UnicodeError):
            continue
        records[process] = Exit(
            record.exit_status, record.exit_reason, record.exited_at, record.started_at
        )
    return records


def end(places: Places, run: str, runtime: str | None) -> None:
    """End the shim and the processes of *run*; its exit records stay.

    :param runtime: the OCI runtime's path; None: what the shim's description says.
    :raise Unavailable: something of it does not end.
    """
    description = describe(places, run)
    if description is not None:
        kill(description.pid, description.start_time)
        runtime = runtime or description.runtime
    state = places.runtime_root / run
    cgroups.kill(run)
    if runtime and state.exists():
        command = [runtime, "--root", str(places.runtime_root), "delete", "--force", run]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=DELETE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass  # what it should have done is done here
    cgroups.remove(run)
    shutil.rmtree(state, ignore_errors=True)


def destroy(places: Places, run: str, runtime: str | None) -> None:
    """End *run* and remove everything of it.  As :func:`end`."""
    end(places, run, runtime)
    for directory in (places.shim(run), places.records(run)):
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            raise Unavailable(f"run {run}", f"{directory} cannot be removed")


def kill(pid: int, start_time: int) -> None:
    """Kill a process for sure, and wait until it is gone; not there is fine.

    :raise Unavailable: it does not end.
    """
    try:
        pidfd = kernel.open_process(pid, start_time)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise Unavailable(f"process {pid}", "it does not end")
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
