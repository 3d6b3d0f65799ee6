"""What can go wrong between ctd and a registry."""

from __future__ import annotations

from typing import Any

import attrs

from ctd.errors import CtdError


@attrs.define(auto_exc=True)
class Unauthorized(CtdError):
    """The registry wants credentials, or refused those it got.

    :ivar status: the HTTP status: 401, or 403 where rights are missing.
    """

    kind = "unauthenticated"
    host: str
    repository: str
    status: int

    def __str__(self) -> str:
        return f"{self.host} refuses access to {self.repository} (HTTP {self.status})"


@attrs.define(auto_exc=True)
class RegistryUnavailable(CtdError):
    """The registry cannot be reached or cannot answer now; a retry may succeed."""

    kind = "unavailable"
    host: str
    reason: str

    def __str__(self) -> str:
        return f"registry {self.host}: {self.reason}"


@attrs.define(auto_exc=True)
class MalformedDocument(CtdError):
    """What a registry sent is not what it says it is.

    :ivar what: ``manifest``, ``index``, ``token`` ...
    """

    kind = "data_loss"
    what: str
    reason: str

    def __str__(self) -> str:
        return f"malformed {self.what}: {self.reason}"


@attrs.define(auto_exc=True)
class DigestMismatch(CtdError):
    """Bytes from a registry do not hash to the digest they were asked for by."""

    kind = "data_loss"
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"content hashes to {self.actual}, not {self.expected}"


@attrs.define(auto_exc=True)
class TransferBroken(CtdError):
    """A body ended early, went on too long, was silent, or has another size.

    :ivar offset: how far it had come, in bytes of the blob.
    """

    kind = "unavailable"
    digest: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"transfer of {self.digest} broke at byte {self.offset}: {self.reason}"


@attrs.define(auto_exc=True)
class NoSuchPlatform(CtdError):
    """An index has no manifest for the platform."""

    kind = "not_found"
    platform: str
    available: list[Any]

    def __str__(self) -> str:
        return f"no image for {self.platform}; there is {', '.join(map(str, self.available))}"
