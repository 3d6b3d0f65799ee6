"""What a daemon answers instead of a result."""

from __future__ import annotations

from typing import Any

import attrs

from ctd.errors import KINDS, CtdError


@attrs.define(auto_exc=True)
class RemoteError(CtdError):
    """A call failed at the daemon.

    :ivar kind: as the daemon said; one of :data:`ctd.errors.KINDS`.
    :ivar message: for people.
    :ivar data: the error's own fields, with ``kind`` and ``error``.
    """

    kind: str  # type: ignore[misc]  # of the instance here: the daemon's, not this class's
    message: str
    data: dict[str, Any] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return self.message


def remote(error: Any) -> RemoteError:
    """A JSON-RPC error object as an exception, whatever it is made of."""
    error = error if isinstance(error, dict) else {}
    data = error.get("data")
    data = data if isinstance(data, dict) else {}
    kind = data.get("kind")
    return RemoteError(
        kind if isinstance(kind, str) and kind in KINDS else "internal",
        str(error.get("message", "the daemon gave no message")),
        data,
    )
