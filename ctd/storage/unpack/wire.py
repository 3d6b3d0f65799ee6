"""What daemon and worker say to each other: JSON objects, a packet each, over a socket pair.

To the worker: ``{"job": ...}`` with the blob's descriptor beside it begins a
job; ``{"size", "complete"}`` tells of more bytes; ``{"layers"}`` answers.  From
it: ``{"read", "entries", "waiting"}`` is progress; ``{"ask": "layers"}`` asks
for the parent's directories; ``{"digest"}`` or ``{"fault"}`` is the result;
``{"idle"}`` or ``{"died"}`` says that the job's process is gone.  The socket's
end is the end of either.
"""

from __future__ import annotations

import json
import socket
from typing import Any

#: The most bytes of a packet; an overlay's options name up to 500 directories.
LIMIT = 180 << 10


def encode(message: dict[str, Any]) -> bytes:
    """A message as a packet."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def decode(packet: bytes) -> dict[str, Any]:
    """A packet as the message it is."""
    message: dict[str, Any] = json.loads(packet)
    return message


def receive(channel: socket.socket, flags: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message with its descriptors; None at the end.

    :raise BlockingIOError: there is none yet, and the flags or the socket say not to wait.
    """
    packet, fds, _, _ = socket.recv_fds(channel, LIMIT, 4, flags | socket.MSG_CMSG_CLOEXEC)
    return (decode(packet) if packet else None), fds
