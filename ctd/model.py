"""The words every part shares: digests, descriptors, platforms, mounts, processes.

All are frozen values, checked when they are made from text that comes from
outside (:meth:`Digest.parse`, :meth:`Platform.parse`) and trusted after that.
"""

from __future__ import annotations

import hashlib
import platform as _host
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import attrs

from ctd.errors import InvalidArgument

_HEX_LENGTH = {"sha256": 64, "sha512": 128}


class Hasher(Protocol):
    """What :mod:`hashlib` objects are."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Add *data*."""

    def hexdigest(self) -> str:
        """The digest of what was added, in lower-case hex."""


@attrs.frozen(order=True)
class Digest:
    """A content digest (OCI image-spec, descriptor.md, "Digests").

    :ivar algorithm: ``sha256`` or ``sha512``.
    :ivar hex: the digest in lower-case hex.
    """

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str, field: str = "digest") -> Digest:
        """Read ``algorithm:hex``.

        :raise InvalidArgument: *text* is not that, or the algorithm is unknown.
        """
        algorithm, _, hexed = text.partition(":")
        length = _HEX_LENGTH.get(algorithm)
        if length is None or not re.fullmatch(f"[0-9a-f]{{{length}}}", hexed):
            raise InvalidArgument(
                field, f"{text[:200]!r} is not sha256:<64 hex digits> or sha512:<128 hex digits>"
            )
        return cls(algorithm, hexed)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of *data*."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A new hasher of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@attrs.frozen
class Platform:
    """What an image runs on (OCI image-spec, image-index.md, ``platform``)."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str, field: str = "platform") -> Platform:
        """Read ``os/architecture[/variant]``, or ``architecture`` alone.

        :raise InvalidArgument: *text* is not of that form.
        """
        words = text.lower().split("/")
        if len(words) == 1:
            words = ["linux", *words]
        if len(words) > 3 or not all(re.fullmatch(r"[a-z0-9_.-]+", w) for w in words):
            raise InvalidArgument(field, f"{text[:100]!r} is not os/architecture[/variant]")
        return cls(*words).normalised()

    @classmethod
    def here(cls) -> Platform:
        """The platform of this machine."""
        return cls("linux", _host.machine().lower()).normalised()

    def normalised(self) -> Platform:
        """The same platform under the names images use."""
        architecture, variant = self.architecture, self.variant
        match architecture, variant:
            case ("x86_64" | "x86-64", _):
                architecture = "amd64"
            case ("aarch64" | "arm64", "" | "8" | "v8"):
                architecture, variant = "arm64", ""
            case ("i386" | "i686" | "x86", _):
                architecture, variant = "386", ""
            case ("armhf" | "armv7l", _) | ("arm", "" | "7"):
                architecture, variant = "arm", "v7"
            case ("armel" | "armv6l", _) | ("arm", "6"):
                architecture, variant = "arm", "v6"
            case _:
                pass
        if architecture == "amd64" and variant == "v1":
            variant = ""
        return Platform(self.os, architecture, variant)

    def __str__(self) -> str:
        return "/".join(w for w in (self.os, self.architecture, self.variant) if w)


class MediaType:
    """Media types ctd reads and writes (OCI image-spec, media-types.md; Docker schema 2)."""

    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
    DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"

    INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
    MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
    LAYERS = frozenset(
        {
            OCI_LAYER,
            OCI_LAYER_GZIP,
            OCI_LAYER_ZSTD,
            DOCKER_LAYER,
            DOCKER_LAYER_GZIP,
            DOCKER_LAYER_ZSTD,
        }
    )


@attrs.frozen
class Descriptor:
    """A pointer to content (OCI image-spec, descriptor.md).

    :ivar size: in bytes.
    :ivar platform: set on the entries of an index.
    """

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class Mount:
    """One mount, made by storage and consumed by runtime.

    :ivar type: a file system type (``overlay``), or ``bind``.
    :ivar source: what mount(2) takes as source.
    :ivar options: as mount(8) names them: ``ro``, ``rbind``, ``lowerdir=...``.
    :ivar target: where, inside the root that the mounts make up; empty for the root itself.
    """

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@attrs.frozen
class ProcessDefaults:
    """What an image says of the process it is made for.

    :ivar args: entrypoint and command, joined.
    :ivar env: ``NAME=value`` strings.
    :ivar user: as in the image's configuration: ``user[:group]``, names or numbers.
    :ivar stop_signal: a signal's name, or empty.
    """

    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class User:
    """A user as the kernel knows it: numbers (OCI runtime-spec, config.md, "User")."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    home: str = "/"


def rfc3339(at: datetime) -> str:
    """*at* in UTC with microseconds: ``2026-01-02T03:04:05.678901Z``."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def utcnow() -> datetime:
    """The wall clock, for the composition root to pass down."""
    return datetime.now(UTC)


def plain(value: Any) -> Any:
    """A frozen value as what JSON can carry: nested mappings, lists and strings."""
    if isinstance(value, Digest | Platform):
        return str(value)
    if isinstance(value, datetime):
        return rfc3339(value)
    if attrs.has(type(value)):
        return {f.name: plain(getattr(value, f.name)) for f in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return value
