"""Who is at the other end of the control socket, by the kernel's word, and who may be."""

from __future__ import annotations

import errno
import os
import socket
import struct

import attrs
from twisted.internet.interfaces import ITransport

from ctd.errors import CtdError

_SO_PEERGROUPS = 59  # linux/asm-generic/socket.h; not in Python's socket module
_GROUPS_SIZE = 1024  # bytes; the most that socket.getsockopt takes


@attrs.define(auto_exc=True)
class PeerRefused(CtdError):
    """This user may not use the control socket."""

    kind = "permission_denied"
    uid: int
    pid: int

    def __str__(self) -> str:
        return f"user {self.uid} may not use this socket; be root, or in the group ctd allows"


@attrs.frozen
class Peer:
    """The process that connected, as it was then.

    :ivar groups: its supplementary groups; empty if it has over 256 of them.
    """

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


@attrs.frozen
class Access:
    """Who may: root, the daemon's own user, and the members of one group.

    :ivar gid: that group, or None.
    """

    gid: int | None = None
    uids: frozenset[int] = attrs.field(factory=lambda: frozenset({0, os.getuid()}))

    def check(self, peer: Peer) -> None:
        """Let *peer* in.  :raise PeerRefused: it may not."""
        if peer.uid in self.uids:
            return
        if self.gid is None or (self.gid != peer.gid and self.gid not in peer.groups):
            raise PeerRefused(peer.uid, peer.pid)


def peer_of(transport: ITransport) -> Peer:
    """The peer of a connected unix socket (unix(7): SO_PEERCRED, SO_PEERGROUPS).

    :raise OSError: the kernel does not tell.
    """
    connection: socket.socket = transport.getHandle()  # type: ignore[attr-defined]
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", credentials)
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        packed = b""
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{len(packed) // 4}I", packed)))
