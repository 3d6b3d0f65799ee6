"""The attach socket of a process: any number of clients, with what was said before.

Raw bytes in both directions, for socat.  What a client sends goes to standard
input; that it stops sending, or goes, does no harm: standard input is ended by
``close_stdin`` alone.  A client that does not read loses bytes, the others not.
"""

from __future__ import annotations

import contextlib
import os
import socket

from ctd.shim.loop import BROKEN, HUNG_UP, READABLE, WRITABLE
from ctd.shim.relay import COPIED, OutputRelay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ctd.shim.loop import Loop

#: So many bytes of the latest output are kept for who comes later.
REPLAY = 1 << 16
#: So many bytes may wait for one client.
UNREAD = 1 << 18
#: So many clients may be attached to a process.
CLIENTS = 64


class AttachSocket:
    """A listening socket and who is connected to it.

    :param path: relative to the working directory, since its length is limited.
    :param outputs: how many streams come in through :meth:`push`, each ended
        by :meth:`output_ended`.
    :ivar dropped: bytes that a client missed, or that nobody was there for.
    """

    def __init__(self, loop: Loop, path: str, outputs: int) -> None:
        self._loop = loop
        self._path = path
        self._outputs = outputs
        self._replay = bytearray()
        self._unseen = 0
        self._clients: dict[int, Client] = {}
        self._input: int | None = None
        self._typed = b""
        self._input_ending = False
        self.dropped = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(path)
            os.chmod(path, 0o600)
            self._socket.listen(16)
        except OSError:
            self._socket.close()
            raise
        loop.watch(self._socket.fileno(), READABLE, self._on_connection)

    def connect_input(self, pipe: int) -> None:
        """Write what clients send to *pipe*."""
        os.set_blocking(pipe, False)
        self._input = pipe
        self._loop.watch(pipe, 0, self._on_input)

    def end_input(self) -> None:
        """Close the process's standard input, after what was sent to it already."""
        self._input_ending = True
        if not self._typed:
            self._close_input()

    def push(self, data: bytes) -> None:
        """Output of the process, for everyone who is here and those who come."""
        self._replay += data
        del self._replay[:-REPLAY]
        if not self._clients:
            self._unseen += len(data)
            self.dropped += max(0, self._unseen - REPLAY)
            self._unseen = min(self._unseen, REPLAY)
        for client in list(self._clients.values()):
            self.dropped += client.send(data)

    def output_ended(self) -> None:
        """One stream has ended; with the last one, clients are let go when they have all."""
        self._outputs -= 1
        if not self._outputs:
            for client in list(self._clients.values()):
                client.finish()

    def close(self) -> None:
        """Let everyone go at once, and remove the socket.  Can be repeated."""
        self._close_input()
        for client in list(self._clients.values()):
            client.close()
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    def receive(self, data: bytes) -> None:
        """What a client has sent, for the process."""
        if self._input is not None and not self._input_ending:
            self._typed += data
            self._type()

    def gone(self, client: Client) -> None:
        """A client is gone."""
        self._clients.pop(client.fd, None)

    def _on_connection(self, _: int) -> None:
        try:
            connection, _address = self._socket.accept()
        except OSError:
            return
        if len(self._clients) >= CLIENTS:
            connection.close()
            return
        client = Client(self._loop, connection, self)
        self._clients[client.fd] = client
        self._unseen = 0
        client.listen(not self._typed)
        client.send(bytes(self._replay))
        if not self._outputs and self._input is None:
            client.finish()

    def _type(self) -> None:
        assert self._input is not None
        try:
            self._typed = self._typed[os.write(self._input, self._typed) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close_input()
        if self._typed:
            self._loop.change(self._input, WRITABLE)
        elif self._input is not None:
            self._loop.change(self._input, 0)
        for client in list(self._clients.values()):
            client.listen(not self._typed)
        if self._input_ending and not self._typed:
            self._close_input()

    def _on_input(self, events: int) -> None:
        if events & BROKEN:  # the process has closed its end
            self._close_input()
        else:
            self._type()

    def _close_input(self) -> None:
        self._typed = b""
        if self._input is not None:
            self._loop.unwatch(self._input)
            os.close(self._input)
            self._input = None
            for client in list(self._clients.values()):
                client.listen(True)


class Client:
    """One connection to an attach socket."""

    def __init__(self, loop: Loop, connection: socket.socket, hub: AttachSocket) -> None:
        self._loop = loop
        self._connection = connection
        self._hub = hub
        self._unsent = bytearray()
        self._listening = True
        self._heard_all = False
        self._finishing = False
        self._left = False
        self.fd = connection.fileno()
        connection.setblocking(False)
        loop.watch(self.fd, READABLE, self._on_event)

    def send(self, data: bytes) -> int:
        """Send output, now or when the client reads; how many bytes it will miss."""
        if self._left:
            return 0
        if len(self._unsent) + len(data) > UNREAD:
            return len(data)
        self._unsent += data
        return self._flush()

    def listen(self, listening: bool) -> None:
        """Whether to take what the client sends."""
        if listening != self._listening:
            self._listening = listening
            if self._left and listening:
                self._left = False
                self._loop.watch(self.fd, READABLE, self._on_event)
            self._watch()

    def finish(self) -> None:
        """Close when everything has been sent."""
        self._finishing = True
        self._flush()

    def close(self) -> None:
        """Close at once.  Can be repeated."""
        if self._connection.fileno() >= 0:
            self._loop.unwatch(self.fd)
            self._connection.close()
            self._hub.gone(self)

    def _flush(self) -> int:
        lost = 0
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            lost = len(self._unsent)
            self._unsent.clear()
            self.close()
            return lost
        if self._finishing and not self._unsent:
            self.close()
        else:
            self._watch()
        return lost

    def _watch(self) -> None:
        reading = READABLE if self._listening and not self._heard_all else 0
        if self._connection.fileno() >= 0 and not self._left:
            self._loop.change(self.fd, reading | (WRITABLE if self._unsent else 0))

    def _on_event(self, events: int) -> None:
        if events & READABLE:
            try:
                data = self._connection.recv(COPIED)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if data:
                self._hub.receive(data)
            else:
                self._heard_all = True
                self._watch()
        elif events & HUNG_UP and not (self._listening or self._heard_all):
            # It is gone, and what it sent is still to be taken when there is room.
            self._left = True
            self._unsent.clear()
            self._loop.unwatch(self.fd)
        elif events & (HUNG_UP | BROKEN):
            self.close()
        elif events & WRITABLE:
            self._hub.dropped += self._flush()


class AttachOutput(OutputRelay):
    """Output to an attach socket."""

    def __init__(
        self, loop: Loop, source: int, done: Callable[[], None], hub: AttachSocket
    ) -> None:
        super().__init__(loop, source, done)
        self._hub = hub

    def _on_source(self, _: int) -> None:
        try:
            data = os.read(self._source, COPIED)
        except BlockingIOError:
            return
        if data:
            self._hub.push(data)
        else:
            self._end()

    def _release(self) -> None:
        self._hub.output_ended()
