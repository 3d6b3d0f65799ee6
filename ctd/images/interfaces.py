"""What images offers: pull, and the table of images by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from zope.interface import Interface

from ctd.model import Descriptor, Platform


@attrs.frozen
class Image:
    """A named image.

    :ivar name: full: ``docker.io/library/alpine:latest``.
    :ivar target: the manifest or index the name stands for.
    :ivar size: of its content here, in bytes.
    :ivar created_at: when it was first named; ``updated_at``: when it last changed.
    """

    namespace: str
    name: str
    target: Descriptor
    created_at: str
    updated_at: str
    size: int = 0
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class PullProgress:
    """How far a pull is.  ``phase``: resolving, downloading, unpacking, done.

    :ivar layers: each layer's digest, bytes downloaded, bytes unpacked, total and state
        (``waiting``, ``downloading``, ``downloaded``, ``unpacked``, ``exists``).
    """

    phase: str
    downloaded: int = 0
    total: int = 0
    unpacked: int = 0
    layers: Sequence[Mapping[str, Any]] = ()


class IImages(Interface):
    """Images by name, in namespaces."""

    async def pull(
        namespace: str,
        reference: str,
        platform: Platform | None = None,
        snapshotter: str | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        plain_http: bool | None = None,
    ) -> Image:
        """Fetch an image, unpack it, and give it its name.

        Layers are unpacked while they download.  The name is set last: until
        then the old image of that name stays.  Any number may pull the same
        image at once: each layer is fetched and unpacked once.

        :raise InvalidArgument: *reference* is not one.
        :raise NotFound: the registry has no such image, or not for the platform.
        """

    async def get(namespace: str, reference: str) -> Image:
        """By name, or by digest.  :raise NotFound: it is not here."""

    async def list(namespace: str | None = None) -> Sequence[Image]:
        """All, or one namespace's, by name."""

    async def config(namespace: str, reference: str) -> Mapping[str, Any]:
        """The image's configuration for this platform (image-spec, config.md)."""

    async def tag(namespace: str, source: str, target: str) -> Image:
        """Give *source* another name.  :raise NotFound: there is no *source*."""

    async def delete(namespace: str, reference: str) -> None:
        """Take the name away; what nothing else needs is collected.

        :raise NotFound: it is not here.
        """
