"""Connections to registries: kept open, read in large pieces, cut without ceremony.

The only module that knows sockets and TLS; the others see an
:class:`twisted.web.iweb.IAgent`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

#: Bytes a read asks the kernel for.  Twisted's 64 KiB cost half as much CPU again.
READ_SIZE = 512 << 10
#: The most bytes of a reply before its body: status lines and headers.
HEAD_LIMIT = 256 << 10
CONNECT_SECONDS = 15.0
#: Idle connections kept for a host, and for how long.
IDLE_LIMIT = 8
IDLE_SECONDS = 30.0


class _Connection(ProtocolWrapper):
    """Between the socket (or TLS) and Twisted's HTTP client.

    Twisted's client bounds a header line but not their number, and it closes a
    connection politely, for which a TLS peer would have to cooperate.  A
    request of ctd's has no body: nothing is lost by cutting the connection.
    """

    _head = 0
    _in_head = False
    _tls = False

    def makeConnection(self, transport: Any) -> None:
        """Make the reads large; below TLS it is the socket that reads."""
        socket = getattr(transport, "transport", transport)
        self._tls = socket is not transport
        if hasattr(socket, "bufferSize"):
            socket.bufferSize = READ_SIZE
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> None:
        """A part of a request: a reply's head comes next."""
        self._head, self._in_head = 0, True
        super().write(data)  # type: ignore[no-untyped-call]

    def writeSequence(self, data: Any) -> None:
        """As for :meth:`write`."""
        self.write(b"".join(data))

    def pauseProducing(self) -> None:
        """The client does this first when it has read a head."""
        self._in_head = False
        self.transport.pauseProducing()  # type: ignore[union-attr]

    def loseConnection(self) -> None:
        """Cut it, unless it is idle and closing it needs nobody's help."""
        idle = getattr(self.wrappedProtocol, "state", None) == "QUIESCENT"
        if idle and not self._tls:
            super().loseConnection()  # type: ignore[no-untyped-call]
        else:
            self.disconnecting = 1
            self.transport.abortConnection()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """Pass on, as long as the head is not too long."""
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        if self._in_head:
            self._head += len(data)
            if self._head > HEAD_LIMIT:
                self.loseConnection()


class _Quiet(HTTPConnectionPool._factory):  # type: ignore[misc, valid-type]
    """The pool's own factory, without a log line a connection."""

    noisy = False


class _Connections(WrappingFactory[_Connection]):
    protocol = _Connection
    noisy = False


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect, with a :class:`_Connection` around the protocol."""
        wrapping = _Connections(factory)  # type: ignore[no-untyped-call]
        connecting: Deferred[Any] = self._endpoint.connect(wrapping)
        return connecting.addCallback(lambda wrapper: wrapper.wrappedProtocol)


@implementer(IAgentEndpointFactory)
class SocketEndpoints:
    """Endpoints over TCP, and TLS for ``https``.

    :param policy: which certificates are trusted; default: those the system trusts.
    """

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS | None = None) -> None:
        self._reactor = reactor
        self._policy = policy or BrowserLikePolicyForHTTPS()

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See :class:`twisted.web.iweb.IAgentEndpointFactory`."""
        host = uri.host.decode("ascii")
        endpoint = HostnameEndpoint(self._reactor, host, uri.port, timeout=CONNECT_SECONDS)
        if uri.scheme == b"https":
            options = self._policy.creatorForNetloc(uri.host, uri.port)
            return wrapClientTLS(options, endpoint)
        return endpoint


@implementer(IAgentEndpointFactory)
class _Wrapped:
    def __init__(self, endpoints: IAgentEndpointFactory) -> None:
        self._endpoints = endpoints

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """What the inner factory gives, wrapped."""
        return _Endpoint(self._endpoints.endpointForURI(uri))


class Connections:
    """All connections of one daemon to registries.

    :param reactor: for time; with the default *endpoints*, for sockets too.
    :param endpoints: where a URI is connected to.
    :ivar agent: sends a request over one of them.
    """

    def __init__(self, reactor: Any, endpoints: IAgentEndpointFactory | None = None) -> None:
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool._factory = _Quiet
        self._pool.maxPersistentPerHost = IDLE_LIMIT
        self._pool.cachedConnectionTimeout = IDLE_SECONDS  # type: ignore[assignment]
        wrapped = _Wrapped(endpoints or SocketEndpoints(reactor))
        self.agent = Agent.usingEndpointFactory(reactor, wrapped, self._pool)

    async def close(self) -> None:
        """Close those that are idle; those in use belong to who uses them."""
        await self._pool.closeCachedConnections()
