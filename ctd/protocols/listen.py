"""The control socket: taken for sure, or a loud failure; never stolen from another daemon."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import attrs
from twisted.application.service import Service
from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorFDSet
from twisted.python.failure import Failure

from ctd.errors import CtdError
from ctd.protocols.server import ControlFactory

#: Connections that wait to be accepted; beyond it non-blocking clients are turned away.
BACKLOG = 1024

_PATH_LIMIT = 107  # sun_path without its final NUL (unix(7))


@attrs.define(auto_exc=True)
class SocketUnusable(CtdError):
    """The control socket cannot be listened on."""

    kind = "failed_precondition"
    path: str
    reason: str

    def __str__(self) -> str:
        return f"cannot listen on {self.path}: {self.reason}"


class _Port(unix.Port):
    """A port that leaves its file to :class:`ControlSocket`, which knows whose it is."""

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


class ControlSocket(Service):
    """Listens on a unix socket while it runs.

    A lock file beside the socket, held as long as the daemon lives and left
    there, makes sure that a socket found is a dead one before it is removed.

    :param path: of any length; its directory is made, for the daemon alone, if missing.
    :param gid: the group that may connect, or None.  A directory that is
        the daemon's alone is opened to that group for passing through.
    """

    def __init__(
        self, reactor: IReactorFDSet, path: Path, factory: ControlFactory, gid: int | None = None
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._factory = factory
        self._gid = gid
        self._lock = -1
        self._directory = -1
        self._port: _Port | None = None
        self._identity = (0, 0)

    def startService(self) -> None:
        """Listen.

        :raise SocketUnusable: another daemon listens there, something else is
            in the way, or the kernel says no.
        """
        try:
            self._open_directory()
            self._take_lock()
            self._remove_stale()
            self._listen()
        except (OSError, CtdError) as error:
            self._close()
            if isinstance(error, CtdError):
                raise
            raise SocketUnusable(str(self._path), error.strerror or str(error)) from error
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None]:
        """Stop listening, cancel the calls under way, and wait for their end."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._port is not None:
            port, self._port = self._port, None
            self._remove_own()
            await maybeDeferred(port.stopListening)
        try:
            await self._factory.stop()
        finally:
            self._close()

    def _open_directory(self) -> None:
        parent = self._path.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.stat(parent)
        private = found.st_uid == os.getuid() and not found.st_mode & 0o077
        if self._gid is not None and private:
            os.chown(parent, -1, self._gid)
            os.chmod(parent, 0o710)

    def _take_lock(self) -> None:
        self._lock = os.open(
            self._path.name + ".lock",
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
            dir_fd=self._directory,
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SocketUnusable(str(self._path), "another ctd listens on it") from None

    def _remove_stale(self) -> None:
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise SocketUnusable(str(self._path), "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._address())
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
            except BlockingIOError:  # its backlog is full: somebody listens
                pass
        raise SocketUnusable(str(self._path), "another program listens on it")

    def _listen(self) -> None:
        mode = 0o600 if self._gid is None else 0o660
        port = _Port(os.fsencode(self._address()), self._factory, BACKLOG, mode, self._reactor)
        try:
            port.startListening()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise SocketUnusable(str(self._path), str(error)) from error
        self._port = port
        if self._gid is not None:
            os.chown(self._path, -1, self._gid)
        found = os.lstat(self._path)
        self._identity = (found.st_dev, found.st_ino)

    def _address(self) -> str:
        if len(os.fsencode(self._path)) <= _PATH_LIMIT:
            return str(self._path)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def _remove_own(self) -> None:
        try:
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self._path)
        except FileNotFoundError:
            pass

    def _close(self) -> None:
        if self._port is not None:
            self._port.stopListening()  # type: ignore[no-untyped-call]
            self._port = None
            self._remove_own()
        for fd in (self._lock, self._directory):
            if fd >= 0:
                os.close(fd)
        self._lock = self._directory = -1
