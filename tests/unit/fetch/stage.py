"""HTTP servers in memory, under the real HTTP client; and a registry with state on one."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IPushProducer, IStreamClientEndpoint, ITransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from ctd.fetch.connections import Connections
from ctd.fetch.credentials import StaticCredentials
from ctd.fetch.registry import Registry
from ctd.model import Descriptor, Digest, MediaType

T = TypeVar("T")
OCTETS = "application/octet-stream"


@attrs.frozen
class Request:
    """A request as a server got it."""

    origin: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


@attrs.define
class Reply:
    """What a server says.

    :ivar length: the Content-Length it declares; None: that of the body.
    :ivar chunked: the body comes in chunks, without a length.
    :ivar sent: how much of the body is sent before the server falls silent.
    :ivar close: the server hangs up after what it has sent.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = attrs.field(factory=dict)
    length: int | None = None
    chunked: bool = False
    sent: int | None = None
    close: bool = False

    def wire(self) -> bytes:
        """The bytes of it."""
        lines = [f"HTTP/1.1 {self.status} Whatever"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        body = self.body if self.sent is None else self.body[: self.sent]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            if self.sent is None:
                body += b"0\r\n\r\n"
        else:
            lines.append(
                f"Content-Length: {len(self.body) if self.length is None else self.length}"
            )
        return "\r\n".join([*lines, "", ""]).encode() + body


Serve = Callable[[Request], Reply | bytes]


@implementer(ITransport, IPushProducer)
class Wire:
    """The client's end of a connection in memory."""

    disconnecting = False

    def __init__(self, network: Network, origin: str, protocol: Any) -> None:
        self.network, self.origin, self.protocol = network, origin, protocol
        self.asked = b""
        self.coming = b""
        self.closing: Exception | None = None
        self.paused = self.closed = False

    def write(self, data: bytes) -> None:
        self.asked += data
        if not self.asked.endswith(b"\r\n\r\n"):
            return
        first, *lines = self.asked.decode().strip().split("\r\n")
        self.asked = b""
        headers = dict(line.split(": ", 1) for line in lines)
        request = Request(self.origin, first.split(" ")[1], headers)
        self.network.requests.append(request)
        reply = self.network.servers[self.origin](request)
        if isinstance(reply, Reply):
            self.coming += reply.wire()
            if reply.close:
                self.closing = ConnectionDone()
        else:
            self.coming += reply
        self.network.clock.callLater(0, self.pump)

    def writeSequence(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def pump(self) -> None:
        """Bring what the client is ready for."""
        while self.coming and not (self.paused or self.closed or self.disconnecting):
            size = self.network.split
            piece, self.coming = self.coming[:size], self.coming[size:]
            self.network.delivered += len(piece)
            self.protocol.dataReceived(piece)
        if self.closing is not None and not self.closed and (not self.coming or self.disconnecting):
            self.closed = True
            self.protocol.connectionLost(Failure(self.closing))

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self.network.clock.callLater(0, self.pump)

    def stopProducing(self) -> None:
        self.abortConnection()

    def loseConnection(self) -> None:
        assert not self.coming, "a polite close in the middle of a reply"
        self.disconnecting = True
        self.closing = ConnectionDone()
        self.network.clock.callLater(0, self.pump)

    def abortConnection(self) -> None:
        self.disconnecting = True
        self.closing = ConnectionAborted()
        self.network.clock.callLater(0, self.pump)

    def getPeer(self) -> str:
        return self.origin

    getHost = getPeer


@implementer(IStreamClientEndpoint)
class Door:
    """Where one origin is connected to."""

    def __init__(self, network: Network, origin: str) -> None:
        self.network, self.origin = network, origin

    def connect(self, factory: Any) -> Deferred[Any]:
        if error := self.network.unreachable.get(self.origin):
            return fail(error)
        protocol = factory.buildProtocol(None)
        wire = Wire(self.network, self.origin, protocol)
        self.network.wires.append(wire)
        protocol.makeConnection(wire)
        return succeed(protocol)


@implementer(IAgentEndpointFactory)
class Network:
    """All servers there are.

    :ivar servers: by origin: ``http://host:port``, the port always given.
    :ivar split: replies come in pieces of at most so many bytes.
    :ivar requests: all that came, in order.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.servers: dict[str, Serve] = {}
        self.unreachable: dict[str, Exception] = {}
        self.requests: list[Request] = []
        self.wires: list[Wire] = []
        self.split = 1 << 16
        self.delivered = 0

    def endpointForURI(self, uri: Any) -> Door:
        return Door(self, f"{uri.scheme.decode()}://{uri.host.decode()}:{uri.port}")

    def sent(self, origin: str) -> list[str | None]:
        """The Authorization of each request to *origin*."""
        return [r.headers.get("Authorization") for r in self.requests if r.origin == origin]


def document(media_type: str, **fields: Any) -> tuple[Descriptor, bytes]:
    """A manifest or index and its descriptor."""
    body = json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()
    return Descriptor(media_type, Digest.of(body), len(body)), body


def raw(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as documents hold it."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


BLOB = bytes(range(256)) * 40
LAYER = Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(BLOB), len(BLOB))
CONFIG = Descriptor(MediaType.OCI_CONFIG, Digest.of(b"{}"), 2)
MANIFEST, MANIFEST_BODY = document(MediaType.OCI_MANIFEST, config=raw(CONFIG), layers=[raw(LAYER)])


class FakeRegistry:
    """One registry's state, and the distribution API to read it.

    :ivar documents: media type and body by ``repository/reference``.
    :ivar demand: what a 401 asks for, or None where everybody may read.
    :ivar accepts: the Authorizations it takes.
    :ivar change: the last word on every reply.
    """

    def __init__(self) -> None:
        self.documents = {
            f"a/b:{name}": (MediaType.OCI_MANIFEST, MANIFEST_BODY)
            for name in ("1", str(MANIFEST.digest))
        }
        self.blobs = {str(LAYER.digest): BLOB, str(CONFIG.digest): b"{}"}
        self.tags = ["1", "2"]
        self.demand: str | None = None
        self.accepts: set[str | None] = set()
        self.change: Callable[[Request, Reply], Reply | bytes] = lambda request, reply: reply

    def __call__(self, request: Request) -> Reply | bytes:
        return self.change(request, self._reply(request))

    def _reply(self, request: Request) -> Reply:
        if self.demand is not None and request.headers.get("Authorization") not in self.accepts:
            return Reply(401, b"{}", {"WWW-Authenticate": self.demand})
        repository, _, name = request.path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        if kind == "manifests" and f"{repository}:{name}" in self.documents:
            media_type, body = self.documents[f"{repository}:{name}"]
            digest = {"Docker-Content-Digest": str(Digest.of(body))}
            return Reply(200, body, {"Content-Type": media_type, **digest})
        if kind == "blobs" and name in self.blobs:
            return self._blob(request, self.blobs[name])
        if kind == "tags":
            return Reply(200, json.dumps({"name": repository, "tags": self.tags}).encode())
        return Reply(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "m"}]}')

    def _blob(self, request: Request, body: bytes) -> Reply:
        wanted = request.headers.get("Range")
        if wanted is None:
            return Reply(200, body, {"Content-Type": OCTETS})
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if first >= len(body):
            return Reply(416)
        return Reply(
            206, body[first:], {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        )


class Stage:
    """A clock, servers, and a client of registries.

    :ivar fake: the registry at ``https://reg.example:443``.
    """

    def __init__(
        self,
        credentials: Mapping[str, tuple[str, str]] | None = None,
        insecure: tuple[str, ...] = (),
    ) -> None:
        self.clock = Clock()
        self.network = Network(self.clock)
        self.fake = FakeRegistry()
        self.network.servers["https://reg.example:443"] = self.fake
        self.registry = Registry(
            self.clock,
            Connections(self.clock, self.network),
            StaticCredentials(credentials),
            insecure,
        )

    def begin(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start *work*, and bring all there is to bring."""
        running = Deferred.fromCoroutine(work)
        self.settle()
        return running

    def settle(self) -> None:
        """Let happen what needs no time."""
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        self.clock.advance(seconds)
        self.settle()

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """What *work*, which needs at most a second, gives."""
        running = self.begin(work)
        for _ in range(20):
            self.wait(0.05)
        outcome: list[T | Failure] = []
        running.addBoth(outcome.append)
        assert outcome, "it has not ended"
        if isinstance(outcome[0], Failure):
            outcome[0].raiseException()
        return outcome[0]  # type: ignore[return-value]


async def collect(stream: Any) -> bytes:
    """All of a stream."""
    async with stream:
        return b"".join([chunk async for chunk in stream])
