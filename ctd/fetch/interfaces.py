"""What fetch offers: names turned into descriptors, and descriptors into bytes.

A *reference* names an image as people write it (``alpine``,
``ghcr.io/a/b:1@sha256:...``); :class:`ctd.fetch.reference.Reference` is its
checked form.  A *repository* is the part of it that a registry serves blobs
and manifests under.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
from zope.interface import Attribute, Interface

from ctd.fetch.reference import Reference
from ctd.model import Descriptor, Digest, Platform

#: The most bytes of a manifest or index (OCI distribution-spec asks for at least 4 MiB).
MANIFEST_LIMIT = 8 << 20


@attrs.frozen
class Document:
    """A manifest or index as the registry gave it.

    :ivar descriptor: its media type, the digest its bytes hash to, and its size.
    :ivar body: those bytes.
    """

    descriptor: Descriptor
    body: bytes


@attrs.frozen
class Manifest:
    """An image manifest, OCI or Docker schema 2 (image-spec, manifest.md).

    :ivar layers: base first.
    """

    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]


@attrs.frozen
class Index:
    """An image index or Docker manifest list (image-spec, image-index.md).

    :ivar manifests: as listed, with their platforms.
    """

    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]


class IBlobStream(Interface):
    """A blob's bytes as they arrive.  An asynchronous context manager: leaving it hangs up."""

    offset = Attribute("int: where in the blob the first chunk begins; 0 if no range was given.")

    def __aiter__() -> AsyncIterator[bytes]:
        """Chunks of at least one byte, in order.

        Nothing is read from the network while the consumer holds a chunk for
        long: at most about a MiB waits.  The iteration ends only when exactly
        the declared size has come; it never gives more than that.

        :raise TransferBroken: the peer stopped, was silent for too long, sent
            less than it declared, or went on after it.  May be tried again
            from where it stopped.
        """

    async def __aenter__() -> IBlobStream:
        """Itself."""

    async def __aexit__(*exception: object) -> None:
        """Close the connection, unless the body was read to its end."""


class IRegistry(Interface):
    """Images by name, from whatever registries their names point to.

    *plain_http* says how the registry is spoken to: True is plain HTTP, False
    is TLS, and None is what its name asks for: plain HTTP on loopback and to
    registries that the operator has declared insecure, TLS to all others.
    Credentials go over plain HTTP only where None would use it too.
    """

    async def resolve(reference: Reference, plain_http: bool | None = None) -> Document:
        """What *reference* names now: an index or a manifest.

        With a digest in the reference the body is what hashes to it, or there
        is an error; a tag beside a digest is only a label.

        :raise NotFound: the registry does not have it.
        :raise Unauthorized: credentials are missing or were refused.
        :raise RegistryUnavailable: it cannot be reached, or answers 5xx; try again.
        :raise DigestMismatch: the body does not hash to the digest.
        :raise MalformedDocument: the body is no manifest or index that ctd reads.
        :raise ResourceExhausted: it is larger than :data:`MANIFEST_LIMIT`.
        """

    async def manifest(
        reference: Reference, descriptor: Descriptor, plain_http: bool | None = None
    ) -> Document:
        """The manifest or index *descriptor* points to, in *reference*'s repository.

        Errors as for :meth:`resolve`; the size must match too.
        """

    async def blob(
        reference: Reference,
        descriptor: Descriptor,
        offset: int = 0,
        plain_http: bool | None = None,
    ) -> IBlobStream:
        """Open *descriptor*'s bytes, from *offset* where the server can do that.

        The caller looks at the stream's ``offset``: a server that ignores
        ranges starts at 0 again.  The bytes are not verified here: who stores
        them hashes them.

        :raise NotFound: the registry does not have it.
        :raise TransferBroken: the server declares another size, or another range.
        :raise InvalidArgument: *offset* is beyond the blob.
        :raise Unauthorized: as for :meth:`resolve`.
        :raise RegistryUnavailable: as for :meth:`resolve`.
        """

    async def tags(reference: Reference, plain_http: bool | None = None) -> list[str]:
        """The tags of *reference*'s repository, sorted.  Errors as for :meth:`resolve`.

        :raise ResourceExhausted: there are more than a hundred thousand.
        """


class IPlatformChoice(Interface):
    """How one of an index's manifests is chosen; :func:`ctd.fetch.platforms.choose` does it."""

    def choose(index: Index, platform: Platform) -> Descriptor:
        """The first manifest that fits best.

        :raise NoSuchPlatform: none fits; its field ``available`` lists what there is.
        """


class ICredentials(Interface):
    """Who ctd is to a registry."""

    async def lookup(host: str) -> tuple[str, str] | None:
        """The user and password (or token) for *host*, or None.

        :param host: ``name[:port]`` as references have it: Docker Hub is ``docker.io``.
        """


__all__ = [
    "MANIFEST_LIMIT",
    "Digest",
    "Document",
    "IBlobStream",
    "ICredentials",
    "IPlatformChoice",
    "IRegistry",
    "Index",
    "Manifest",
]
