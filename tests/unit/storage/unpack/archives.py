"""Archives made for tests: entries as values, packed by the standard library's tarfile."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence

import attrs
import zstandard

from ctd.model import Descriptor, Digest, MediaType
from ctd.storage.interfaces import Layer


@attrs.frozen
class Member:
    """One entry.  ``type`` is tarfile's; ``pax`` are records as they are."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    link: str = ""
    uid: int = 0
    gid: int = 0
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = attrs.field(factory=dict, hash=False)


def directory(name: str, mode: int = 0o755, **more: object) -> Member:
    return Member(name, type=tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Member:
    return Member(name, type=tarfile.SYMTYPE, mode=0o777, link=target)


def hard_link(name: str, target: str) -> Member:
    return Member(name, type=tarfile.LNKTYPE, link=target)


def whiteout(name: str) -> Member:
    head, _, tail = name.rpartition("/")
    return Member(f"{head}/.wh.{tail}" if head else f".wh.{tail}")


def opaque(name: str) -> Member:
    return Member(f"{name}/.wh..wh..opq")


def pack(members: Sequence[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of *members*."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.mode, info.size = member.type, member.mode, len(member.data)
            info.uid, info.gid, info.mtime = member.uid, member.gid, member.mtime
            info.linkname = member.link
            info.devmajor, info.devminor = member.device
            info.pax_headers = dict(member.pax)
            archive.addfile(info, io.BytesIO(member.data))
    return out.getvalue()


@attrs.frozen
class Made:
    """A layer with its blob."""

    layer: Layer
    blob: bytes


_PACKERS = {
    MediaType.OCI_LAYER: lambda tar: tar,
    MediaType.OCI_LAYER_GZIP: lambda tar: gzip.compress(tar, 1, mtime=0),
    MediaType.OCI_LAYER_ZSTD: lambda tar: zstandard.ZstdCompressor().compress(tar),
}


def layer_of(
    tar: bytes,
    media_type: str = MediaType.OCI_LAYER_GZIP,
    *,
    below: str | None = None,
    blob: bytes | None = None,
    diff_id: Digest | None = None,
) -> Made:
    """A layer whose tar is *tar*, on the chain ID *below*."""
    blob = _PACKERS[media_type](tar) if blob is None else blob
    diff_id = diff_id or Digest.of(tar)
    chain_id = str(Digest.of(f"{below} {diff_id}".encode())) if below else str(diff_id)
    return Made(Layer(Descriptor(media_type, Digest.of(blob), len(blob)), diff_id, chain_id), blob)


def chain(*tars: bytes) -> list[Made]:
    """Layers of *tars*, each on the one before."""
    layers: list[Made] = []
    for tar in tars:
        layers.append(layer_of(tar, below=layers[-1].layer.chain_id if layers else None))
    return layers


#: A first layer with one of everything.
BASE = pack(
    [
        directory("etc", 0o750, uid=7, gid=8, mtime=1_100_000_000),
        Member("etc/passwd", b"root:x:0:0\n", mode=0o600, uid=1, gid=2),
        directory("usr"),
        directory("usr/bin"),
        Member("usr/bin/su", b"su", mode=0o4755),
        symlink("bin", "usr/bin"),
        hard_link("usr/bin/same", "usr/bin/su"),
        directory("old"),
        Member("old/file", b"old"),
        directory("old/deep"),
        Member("old/deep/file", b"old"),
        Member("gone", b"gone"),
        Member("fifo", type=tarfile.FIFOTYPE, mode=0o622),
        Member("null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
    ]
)
