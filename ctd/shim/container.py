"""The container of a shim: what the daemon can ask for, as tasks.

Every request can be repeated.  Requests about one process are done one after
the other, those about different processes at the same time.
"""

from __future__ import annotations

import contextlib
import os

from ctd.protocols.shim import (
    BUNDLE,
    CREATED,
    FAILED_PRECONDITION,
    INIT,
    IO,
    NOT_FOUND,
    ROOTFS,
    RUNNING,
    RUNTIME_FAILURE,
    RUNTIME_LOG,
    STOPPED,
    UNIMPLEMENTED,
    Failure,
    FieldError,
    exit_file,
    is_process,
    stdio,
)
from ctd.shim import mounts, records
from ctd.shim.log import log
from ctd.shim.oom import OomCounter
from ctd.shim.process import Process
from ctd.shim.stdio import Streams
from ctd.shim.tasks import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ctd.shim.children import Children
    from ctd.shim.loop import Loop
    from ctd.shim.runtime import Runtime
    from ctd.shim.tasks import Task

#: How long to wait before an exit record is tried again that could not be written.
_RETRY = 1.0


class Container:
    """The processes of one container.

    :param directory: the run's, which is the working directory too.
    :param records: where exit records go.
    :param notify: tells a notification to who listens.
    :ivar deleted: it was, and cannot come again.
    """

    def __init__(
        self,
        loop: Loop,
        children: Children,
        runtime: Runtime,
        directory: str,
        records: str,
        notify: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._runtime = runtime
        self._bundle = f"{directory}/{BUNDLE}"
        self._io = f"{directory}/{IO}"
        self._directory = directory
        self._log = f"{self._bundle}/{RUNTIME_LOG}"
        self._records = records
        self._notify = notify
        self._turns = Turns()
        self._processes: dict[str, Process] = {}
        self._oom: OomCounter | None = None
        self.deleted = False

    @property
    def alive(self) -> bool:
        """Whether there is a container that has not been deleted."""
        return INIT in self._processes

    def create(self, params: dict[str, Any]) -> Task[dict[str, Any]]:
        """Mount the root file system and have the runtime create the container."""
        _refuse_terminal(params)
        listed = _field(params, "mounts", list)
        yield self._turns.take(INIT)
        try:
            if INIT not in self._processes:
                if self.deleted:
                    raise Failure(FAILED_PRECONDITION, "it was deleted")
                streams = self._streams(INIT, params)
                try:
                    yield from self._create(listed, streams)
                except BaseException:
                    streams.close()
                    raise
            return self._processes[INIT].state()
        finally:
            self._turns.give(INIT)

    def _create(self, listed: list[dict[str, Any]], streams: Streams) -> Task[None]:
        root = f"{self._bundle}/{ROOTFS}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(root, 0o711)
        try:
            mounts.mount_all(listed, root)
        except OSError as error:
            raise Failure(RUNTIME_FAILURE, f"mount: {error}", operation="create") from None
        pid_file = f"{self._io}/{INIT}.pid"
        with self._children.operation():
            try:
                pid = yield from self._runtime.create(self._bundle, pid_file, self._log, streams)
            except Failure:
                yield from self._undo(root)
                raise
            finally:
                _remove(pid_file)
            self._oom = OomCounter(pid)
            self._add(INIT, pid, streams)

    def _undo(self, root: str) -> Task[None]:
        try:
            yield from self._runtime.delete(self._log)
        except Failure as failure:
            log(f"deleting after a failed create: {failure}")
        mounts.unmount_all(root)

    def start(self, params: dict[str, Any]) -> Task[dict[str, Any]]:
        """Let the first process go."""
        yield self._turns.take(INIT)
        try:
            process = self._processes.get(INIT)
            if process is None:
                raise Failure(FAILED_PRECONDITION, "there is no container")
            if process.started_at is None:
                if process.status != CREATED:
                    raise Failure(FAILED_PRECONDITION, "it ended before it was started")
                self._children.hold(process.pid)
                try:
                    with self._children.operation():
                        yield from self._runtime.start(self._log)
                    process.started()
                finally:
                    self._children.release(process.pid)
            return process.state()
        finally:
            self._turns.give(INIT)

    def exec(self, params: dict[str, Any]) -> Task[dict[str, Any]]:
        """Start another process in the container."""
        _refuse_terminal(params)
        id, spec = _field(params, "process", str), _field(params, "spec", dict)
        if not is_process(id) or id == INIT:
            raise FieldError("process", f"{id!r} cannot be the id of a process")
        yield self._turns.take(id)
        try:
            if id not in self._processes:
                init = self._processes.get(INIT)
                if init is None or init.status != RUNNING:
                    raise Failure(FAILED_PRECONDITION, "the container does not run")
                streams = self._streams(id, params)
                try:
                    yield from self._exec(id, spec, streams)
                except BaseException:
                    streams.close()
                    raise
            return self._processes[id].state()
        finally:
            self._turns.give(id)

    def _exec(self, id: str, spec: dict[str, Any], streams: Streams) -> Task[None]:
        path = f"{self._io}/{id}"
        _remove(f"{self._records}/{exit_file(id)}")  # of an earlier process of that id
        records.write(self._io, f"{id}.json", spec, durable=False)
        try:
            with self._children.operation():
                pid = yield from self._runtime.exec(
                    f"{path}.json", f"{path}.pid", f"{path}.log", streams
                )
                self._add(id, pid, streams).started()
        finally:
            _remove(f"{path}.json", f"{path}.pid", f"{path}.log")

    def kill(self, params: dict[str, Any]) -> Task[dict[str, Any]]:
        """Send a signal."""
        process, number = self._process(params), _field(params, "signal", int)
        if process.reaped:
            raise Failure(FAILED_PRECONDITION, f"{process.id} does not run")
        if not 0 <= number <= 64:
            raise FieldError("signal", f"there is no signal {number}")
        if params.get("all"):
            if process.id != INIT:
                raise FieldError("all", "is of init alone")
            process.sent(number)
            with self._children.operation():
                yield from self._runtime.kill_all(number, self._log)
        else:
            process.kill(number)
        return {}

    def close_stdin(self, params: dict[str, Any]) -> dict[str, Any]:
        """Let a process read an end of file."""
        self._process(params).streams.close_input()
        return {}

    def resize(self, params: dict[str, Any]) -> dict[str, Any]:
        """Set the size of a process's terminal."""
        raise Failure(UNIMPLEMENTED, f"{self._process(params).id} has no terminal")

    def reopen(self, params: dict[str, Any]) -> dict[str, Any]:
        """Open the files a process's output goes to anew."""
        try:
            self._process(params).streams.reopen()
        except OSError as error:
            raise Failure(FAILED_PRECONDITION, f"reopen: {error}") from None
        return {}

    def state(self, params: dict[str, Any]) -> dict[str, Any]:
        """Every process that has not been deleted, ``init`` first."""
        known = sorted(self._processes.values(), key=lambda process: process.id != INIT)
        return {"processes": [process.state() for process in known]}

    def delete(self, params: dict[str, Any]) -> Task[dict[str, Any]]:
        """Forget a process that has ended; with ``init`` goes the container."""
        id = _field(params, "process", str)
        yield self._turns.take(id)
        try:
            process = self._processes.get(id)
            if process is not None:
                if process.status != STOPPED:
                    raise Failure(FAILED_PRECONDITION, f"{id} has not ended")
                if id == INIT:
                    with self._children.operation():
                        yield from self._runtime.delete(self._log)
                    mounts.unmount_all(f"{self._bundle}/{ROOTFS}")
                    self.deleted = True
                else:
                    _remove(f"{self._records}/{exit_file(id)}")
                del self._processes[id]
                process.streams.close()
            return {}
        finally:
            self._turns.give(id)

    def close(self) -> None:
        """Let all streams go."""
        for process in self._processes.values():
            process.streams.close()

    def _process(self, params: dict[str, Any]) -> Process:
        id = _field(params, "process", str)
        process = self._processes.get(id)
        if process is None:
            raise Failure(NOT_FOUND, f"there is no process {id!r}")
        return process

    def _streams(self, id: str, params: dict[str, Any]) -> Streams:
        parsed = stdio(_field(params, "stdio", dict))
        return Streams(self._loop, id, parsed, lambda: self._output_changed(id))

    def _add(self, id: str, pid: int, streams: Streams) -> Process:
        attach = f"{self._directory}/{streams.attach}" if streams.attach else None
        process = self._processes[id] = Process(id, pid, streams, attach)
        self._children.watch(pid, lambda status: self._ended(process, status))
        streams.begin()
        return process

    def _ended(self, process: Process, status: int) -> None:
        process.ended(status, self._oom)
        self._record(process)

    def _record(self, process: Process) -> None:
        exit = process.exit()
        try:
            records.write_exit(self._records, exit)
        except OSError as error:
            log(f"the exit of {process.id} cannot be recorded yet: {error}")
            self._loop.after(_RETRY, lambda: self._record(process))
            return
        process.recorded = True
        del exit["started_at"]
        self._notify("exited", exit)
        self._output_changed(process.id)

    def _output_changed(self, id: str) -> None:
        process = self._processes.get(id)
        if process is not None and process.output_ended and not process.output_told:
            process.output_told = True
            self._notify("output_ended", {"process": id, "dropped": process.streams.dropped})


def _field(params: dict[str, Any], name: str, kind: type) -> Any:
    value = params.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FieldError(name, f"not a {kind.__name__}: {value!r:.100}")
    return value


def _refuse_terminal(params: dict[str, Any]) -> None:
    if params.get("terminal"):
        raise Failure(UNIMPLEMENTED, "terminals", field="terminal")


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
