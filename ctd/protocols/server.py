"""The control socket's server: who may connect, how many, and stopping them all."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime, ITransport
from twisted.internet.protocol import Factory

from ctd.errors import ResourceExhausted, Unavailable
from ctd.protocols.connection import ControlProtocol, Limits
from ctd.protocols.hangup import Watch
from ctd.protocols.methods import MethodTable
from ctd.protocols.peers import Access, Peer, peer_of


class ControlFactory(Factory):
    """Makes a protocol for each client, and knows them all.

    :param table: the methods.
    :param clock: for progress.
    :param hangups: :class:`ctd.protocols.hangup.HangUps` on the reactor.
    :param peer: who is at the other end of a transport.
    """

    noisy = False

    def __init__(
        self,
        table: MethodTable,
        clock: IReactorTime,
        hangups: Watch,
        access: Access | None = None,
        limits: Limits | None = None,
        peer: Callable[[ITransport], Peer] = peer_of,
    ) -> None:
        self.table = table
        self.clock = clock
        self.hangups = hangups
        self.limits = limits or Limits()
        self.stopping = False
        self._access = access or Access()
        self._peer = peer
        self._clients: set[ControlProtocol] = set()
        self._idle: list[Deferred[None]] = []

    def startFactory(self) -> None:
        """See :class:`twisted.internet.protocol.Factory`."""
        self.stopping = False

    def buildProtocol(self, addr: IAddress | None) -> ControlProtocol:
        """See :class:`twisted.internet.interfaces.IProtocolFactory`."""
        return ControlProtocol(self)

    def admit(self, client: ControlProtocol) -> Peer:
        """Note a new client.

        :raise PeerRefused: it may not use the socket.
        :raise ResourceExhausted: there are too many.
        :raise Unavailable: the daemon is stopping.
        """
        try:
            peer = self._peer(client.transport)
        except OSError as error:
            raise Unavailable("the client's credentials", str(error)) from None
        self._access.check(peer)
        if self.stopping:
            raise Unavailable("ctd", "it is stopping")
        if len(self._clients) >= self.limits.connections:
            raise ResourceExhausted("connections to the control socket", self.limits.connections)
        self._clients.add(client)
        return peer

    def forget(self, client: ControlProtocol) -> None:
        """Note that a client has gone and its calls have ended."""
        self._clients.discard(client)
        if not self._clients:
            idle, self._idle = self._idle, []
            for waiter in idle:
                waiter.callback(None)

    async def stop(self) -> None:
        """Cancel every call, wait until all have ended, and hang up."""
        self.stopping = True
        for client in list(self._clients):
            client.stop()
        if self._clients:
            waiter: Deferred[None] = Deferred()
            self._idle.append(waiter)
            await waiter
