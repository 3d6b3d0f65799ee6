"""A server with fake parts, and clients of it that live in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from ctd.protocols.connection import ControlProtocol, Limits
from ctd.protocols.control.table import Parts, control_methods
from ctd.protocols.peers import Access, Peer
from ctd.protocols.server import ControlFactory
from tests.unit.protocols.fakes import (
    ROOT,
    ClientTransport,
    FakeCollector,
    FakeContainers,
    FakeContent,
    FakeDaemon,
    FakeImages,
    FakeJournal,
    FakeProcesses,
    FakeSnapshotter,
    FakeWatch,
)


class MemoryClient:
    """One connection, in memory."""

    def __init__(self, protocol: ControlProtocol) -> None:
        self.protocol = protocol
        self.transport = ClientTransport()
        protocol.makeConnection(self.transport)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.protocol.dataReceived(data)

    def send(self, method: str, params: Any = None, id: Any = 1) -> None:
        """Send a request."""
        self.write(json.dumps({"id": id, "method": method, "params": params}).encode() + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """What has come since the last time."""
        data: bytes = self.transport.value()
        self.transport.clear()
        return [json.loads(line) for line in data.splitlines()]

    def call(self, method: str, params: Any = None, id: Any = 1) -> Any:
        """The result of a call that ends at once."""
        self.send(method, params, id)
        (reply,) = self.read()
        if "error" in reply:
            raise AssertionError(reply["error"])
        assert reply["id"] == id
        return reply["result"]

    def error(self, method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
        """The error of a call that ends at once."""
        self.send(method, params, id)
        (reply,) = self.read()
        error: dict[str, Any] = reply["error"]
        return error

    def half_close(self) -> None:
        """Close the writing side."""
        self.protocol.readConnectionLost()

    def hang_up(self) -> None:
        """Close the connection."""
        self.protocol.connectionLost(Failure(ConnectionDone()))


class Rig:
    """The server and its parts."""

    def __init__(self, limits: Limits | None = None, access: Access | None = None) -> None:
        self.clock = Clock()
        self.watch = FakeWatch()
        self.containers = FakeContainers()
        self.processes = FakeProcesses()
        self.images = FakeImages()
        self.journal = FakeJournal()
        self.content = FakeContent()
        self.native = FakeSnapshotter("native")
        self.overlay = FakeSnapshotter("overlayfs")
        self.collector = FakeCollector()
        self.peer: Peer | OSError = ROOT
        self.table = control_methods(
            Parts(
                daemon=FakeDaemon(),
                images=self.images,
                containers=self.containers,
                processes=self.processes,
                journal=self.journal,
                content=self.content,
                snapshotters={"overlayfs": self.overlay, "native": self.native},
                snapshotter="overlayfs",
                collector=self.collector,
            )
        )
        self.factory = ControlFactory(
            self.table, self.clock, self.watch, access, limits, self.peer_of
        )

    def peer_of(self, transport: object) -> Peer:
        """Who every client is."""
        if isinstance(self.peer, OSError):
            raise self.peer
        return self.peer

    def client(self) -> MemoryClient:
        """A new connection."""
        return MemoryClient(self.factory.buildProtocol(None))

    def started(self, id: str = "web") -> MemoryClient:
        """A connection, beside a container that runs."""
        client = self.client()
        client.call("containers.create", {"id": id, "image": "alpine"})
        client.call("containers.start", {"id": id})
        return client
