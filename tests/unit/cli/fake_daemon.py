"""A daemon in a thread, for the command to speak to: it keeps state and writes to fifos.

Containers run "programs" of the tests' own: functions that get the container's
open streams and a queue of signals, and give an exit status.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal as signals
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

AT = "2026-01-02T03:04:05.678901Z"


NULL_STDIO = {"stdin": "null", "stdout": "null", "stderr": "null"}


class Refused(Exception):
    """What a method answers instead of a result."""

    def __init__(self, kind: str, error: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.error = {
            "code": -32001,
            "message": message,
            "data": {"kind": kind, "error": error, **fields},
        }


def not_found(what: str, name: str) -> Refused:
    return Refused("not_found", "NotFound", f"{what} {name!r} not found", what=what, name=name)


def number_of(name: str) -> int:
    """The number of a signal by name, with or without SIG."""
    return signals.Signals[f"SIG{name.removeprefix('SIG')}"].value


class Process:
    """A running program, with its end of the fifos."""

    def __init__(self, record: dict[str, Any], program: Callable[[Process], int]) -> None:
        self.record = record
        self.signals: queue.Queue[int] = queue.Queue()
        self.ended = threading.Event()
        self._program = program
        self._fds: dict[str, BinaryIO] = {}
        for name, mode in (
            ("stdin", os.O_RDONLY),
            ("stdout", os.O_WRONLY),
            ("stderr", os.O_WRONLY),
        ):
            uri = record["stdio"][name]
            if uri.startswith("fifo://"):
                path = uri.removeprefix("fifo://").partition("?")[0]
                fd = os.open(path, mode | os.O_NONBLOCK)
                os.set_blocking(fd, True)
                self._fds[name] = os.fdopen(fd, "rb" if name == "stdin" else "wb", 0)

    def read(self, size: int) -> bytes:
        """Up to *size* bytes of standard input; nothing at its end."""
        return self._fds["stdin"].read(size)

    def write(self, name: str, data: bytes) -> None:
        """Write all of *data*, to nowhere if the stream is null."""
        view = memoryview(data if name in self._fds else b"")
        while view:
            view = view[self._fds[name].write(view) :]

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def end(self, status: int) -> None:
        if not self.ended.is_set():
            reason = "exited" if status < 128 else "signalled"
            self.record |= {
                "status": "stopped",
                "exit_status": status,
                "exit_reason": reason,
                "exited_at": AT,
            }
            self.ended.set()

    def close(self) -> None:
        for file in self._fds.values():
            file.close()

    def _run(self) -> None:
        try:
            status = self._program(self)
        except BrokenPipeError:
            status = 141
        self.end(status)
        self.close()


class FakeDaemon:
    """The daemon.

    :ivar program: what new containers and execs run.
    :ivar log: every call, ``(method, params)`` in order of arrival.
    :ivar before: called by method with the params before the method: to hang up,
        to wait, to fail.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, Process] = {}
        self.execs: dict[tuple[str, str], Process] = {}
        self.events: list[dict[str, Any]] = []
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.before: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.after: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.program: Callable[[Process], int] = lambda process: 0
        self.create_error: Refused | None = None
        self._connections: list[socket.socket] = []
        self.listen()

    def listen(self) -> None:
        """Begin, or begin again as a new daemon with the same state."""
        self.path.unlink(missing_ok=True)
        fake = self

        class Client(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                fake._connections.append(self.connection)
                lock = threading.Lock()
                with contextlib.suppress(OSError):
                    for line in self.rfile:
                        request = json.loads(line)
                        fake.log.append((request["method"], dict(request["params"])))
                        threading.Thread(
                            target=fake._answer, args=(self, lock, request), daemon=True
                        ).start()

        self._server = socketserver.ThreadingUnixStreamServer(str(self.path), Client)
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def die(self) -> None:
        """Close every connection and the socket, as kill -9 does."""
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection."""
        connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def methods(self) -> list[str]:
        return [method for method, _ in self.log]

    def params(self, method: str) -> dict[str, Any]:
        return next(params for name, params in self.log if name == method)

    def add_image(self, name: str, stop_signal: str | None = None) -> None:
        self.images[name] = {
            "name": f"docker.io/library/{name}:latest",
            "namespace": "default",
            "target": {"digest": "sha256:" + 64 * "a", "media_type": "", "size": 2},
            "size": 7_830_000,
            "created_at": AT,
            "updated_at": AT,
            "labels": {},
            "stop_signal": stop_signal,
        }

    def _answer(self, client: Any, lock: threading.Lock, request: dict[str, Any]) -> None:
        method, params = request["method"], dict(request.get("params", {}))
        number = request.get("id")

        def send(message: dict[str, Any]) -> None:
            with lock, contextlib.suppress(OSError, ValueError):  # the client may be gone
                client.wfile.write(json.dumps(message).encode() + b"\n")

        def notify(name: str, **facts: Any) -> None:
            send({"jsonrpc": "2.0", "method": name, "params": {"call": number, **facts}})

        try:
            if method in self.before:
                self.before[method](params)
            function = getattr(self, method.replace(".", "_"))
            result = function(notify, **{k: v for k, v in params.items() if k != "namespace"})
            if method in self.after:
                self.after[method](params)
            send({"jsonrpc": "2.0", "id": number, "result": result})
        except Refused as refused:
            send({"jsonrpc": "2.0", "id": number, "error": refused.error})

    def _container(self, name: str) -> Process:
        if name not in self.containers:
            raise not_found("container", name)
        return self.containers[name]

    # The methods.

    def daemon_info(self, notify: Any) -> Any:
        return {"version": "1", "counts": {"containers": 0}, "snapshotters": ["native"]}

    def gc_run(self, notify: Any, dry_run: bool = False) -> Any:
        removed = [{"kind": "content", "key": "sha256:aa"}]
        return {"removed": removed, "removed_count": 1, "kept": 2, "size": 1500}

    def images_pull(self, notify: Any, ref: str, **_: Any) -> Any:
        if ref == "missing":
            raise not_found("image", ref)
        layer = {"digest": "sha256:" + 64 * "b", "downloaded": 0, "unpacked": 0, "total": 10}
        notify("progress", phase="resolving", downloaded=0, unpacked=0, total=0, layers=[])
        for state, done in (("downloading", 5), ("unpacked", 10)):
            progress = {**layer, "state": state, "downloaded": done}
            facts = {"downloaded": done, "unpacked": 0, "total": 10}
            notify("progress", phase="downloading", layers=[progress], **facts)
        self.add_image(ref)
        return self.images[ref]

    def images_list(self, notify: Any, cursor: str | None = None, **_: Any) -> Any:
        names = sorted(self.images)
        at = int(cursor or 0)  # pages of one
        following = str(at + 1) if at + 1 < len(names) else None
        return {"items": [self.images[name] for name in names[at : at + 1]], "next": following}

    def images_config(self, notify: Any, ref: str) -> Any:
        signal = self.images[ref]["stop_signal"]
        return {"config": {"config": {"StopSignal": signal} if signal else {}}}

    def images_tag(self, notify: Any, source: str, target: str) -> Any:
        if source not in self.images:
            raise not_found("image", source)
        self.add_image(target)
        return self.images[target]

    def images_delete(self, notify: Any, ref: str) -> Any:
        if self.images.pop(ref, None) is None:
            raise not_found("image", ref)
        return {}

    def containers_create(self, notify: Any, id: str, image: str, **params: Any) -> Any:
        if id in self.containers:
            raise Refused("already_exists", "AlreadyExists", f"container {id!r} already exists")
        if image not in self.images:
            raise not_found("image", image)
        if self.create_error is not None:
            raise self.create_error
        record = {
            "id": id,
            "namespace": "default",
            "image": image,
            "status": "created",
            "args": params.get("args", ["sh"]),
            "created_at": AT,
            "started_at": None,
            "exited_at": None,
            "exit_status": None,
            "exit_reason": None,
            "stdio": params.get("stdio", NULL_STDIO),
            "labels": {},
        }
        self.containers[id] = Process(record, self.program)
        return record

    def containers_start(self, notify: Any, id: str) -> Any:
        process = self._container(id)
        if process.record["status"] != "created":
            raise Refused("failed_precondition", "FailedPrecondition", "not created")
        process.record |= {"status": "running", "started_at": AT}
        process.start()
        return process.record

    def containers_get(self, notify: Any, id: str) -> Any:
        return self._container(id).record

    def containers_list(self, notify: Any, **_: Any) -> Any:
        return {"items": [one.record for one in self.containers.values()], "next": None}

    def containers_wait(self, notify: Any, id: str) -> Any:
        process = self._container(id)
        process.ended.wait()
        return {key: process.record[key] for key in ("exit_status", "exit_reason", "exited_at")}

    def containers_kill(self, notify: Any, id: str, signal: Any = 15, all: bool = False) -> Any:
        process = self._container(id)
        if process.record["status"] != "running":
            raise Refused("failed_precondition", "FailedPrecondition", "does not run")
        if signal in (9, "KILL"):
            process.end(137)
        process.signals.put(signal if isinstance(signal, int) else number_of(signal))
        return {}

    def containers_delete(self, notify: Any, id: str, force: bool = False) -> Any:
        process = self._container(id)
        if process.record["status"] == "running" and not force:
            raise Refused("failed_precondition", "FailedPrecondition", "it runs")
        if process.record["status"] == "created":
            process.close()
        del self.containers[id]
        return {}

    def processes_list(self, notify: Any, container: str) -> Any:
        return {"items": [], "next": None}

    def processes_exec(self, notify: Any, container: str, id: str, **params: Any) -> Any:
        self._container(container)
        if self.create_error is not None:
            raise self.create_error
        nothing = {"stdin": "null", "stdout": "null", "stderr": "null"}
        record = {"id": id, "status": "running", "stdio": params.get("stdio", nothing)}
        process = self.execs[container, id] = Process(record, self.program)
        process.start()
        return record

    def processes_get(self, notify: Any, container: str, id: str) -> Any:
        if (container, id) not in self.execs:
            raise not_found("process", id)
        return self.execs[container, id].record

    def processes_wait(self, notify: Any, container: str, id: str) -> Any:
        process = self.execs[container, id]
        process.ended.wait()
        return {key: process.record[key] for key in ("exit_status", "exit_reason", "exited_at")}

    def processes_kill(self, notify: Any, container: str, id: str, signal: Any) -> Any:
        self.execs[container, id].signals.put(signal)
        return {}

    def processes_delete(self, notify: Any, container: str, id: str) -> Any:
        del self.execs[container, id]
        return {}

    def events_list(self, notify: Any, since: int, limit: int, **_: Any) -> Any:
        rest = [event for event in self.events if event["seq"] > since]
        page = rest[:2]
        following = page[-1]["seq"] if len(rest) > 2 else None
        return {"items": page, "next": following, "trimmed": None}

    def events_subscribe(self, notify: Any, since: int | None = None, **_: Any) -> Any:
        notify("event", subscribed={"since": since or 0})
        for event in list(self.events):
            if event["seq"] > (since or 0):
                notify("event", event=event)
        threading.Event().wait()
