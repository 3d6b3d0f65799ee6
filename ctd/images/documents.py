"""Image configurations and chain IDs (OCI image-spec, config.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs
import msgspec

from ctd.errors import CtdError
from ctd.model import Digest, ProcessDefaults


@attrs.define(auto_exc=True)
class MalformedConfig(CtdError):
    """An image's configuration is not one, or does not fit its manifest."""

    kind = "data_loss"
    digest: str
    reason: str

    def __str__(self) -> str:
        return f"image configuration {self.digest}: {self.reason}"


class _Process(msgspec.Struct, rename="pascal"):
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    env: list[str] | None = None
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    labels: dict[str, str] | None = None


class _RootFS(msgspec.Struct):
    type: str = "layers"
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    rootfs: _RootFS
    os: str = ""
    architecture: str = ""
    config: _Process | None = None


@attrs.frozen
class ImageConfig:
    """What ctd needs of an image's configuration.

    :ivar diff_ids: of each layer's uncompressed tar, base first.
    """

    diff_ids: tuple[Digest, ...]
    defaults: ProcessDefaults

    @classmethod
    def parse(cls, digest: Digest, body: bytes) -> ImageConfig:
        """Read a configuration.

        :raise MalformedConfig: it is not JSON of the right shape.
        """
        try:
            raw = msgspec.json.decode(body, type=_Config)
            diff_ids = tuple(Digest.parse(d, "rootfs.diff_ids") for d in raw.rootfs.diff_ids)
        except (msgspec.MsgspecError, CtdError, UnicodeError, RecursionError) as error:
            raise MalformedConfig(str(digest), str(error)) from None
        process = raw.config or _Process()
        entrypoint = tuple(process.entrypoint or ())
        return cls(
            diff_ids,
            ProcessDefaults(
                args=entrypoint + tuple(process.cmd or ()),
                env=tuple(process.env or ()),
                cwd=process.working_dir or "/",
                user=process.user,
                entrypoint=entrypoint,
                stop_signal=process.stop_signal,
                labels=process.labels or {},
            ),
        )


def chain_ids(diff_ids: Sequence[Digest]) -> list[str]:
    """The chain ID of each layer and all below it, base first (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            joined = hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest()
            chain.append(f"sha256:{joined}")
        else:
            chain.append(str(diff_id))
    return chain
