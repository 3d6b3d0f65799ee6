"""Images made by hand: OCI layouts of a few layers on Debian's static busybox."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

BUSYBOX = Path("/bin/busybox")
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:an application:/home/app:/bin/sh
worker:x:1001:1000::/home/worker:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = """\
root:x:0:
app:x:1000:
extra:x:2000:app,worker
more:x:2001:app
nogroup:x:65534:
"""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Layer:
    """A layer's tar, entry by entry.

    :ivar compression: ``gzip``, ``zstd`` or empty.
    """

    def __init__(self, compression: str = "gzip") -> None:
        self.compression = compression
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, data: bytes = b"", **fields: Any) -> Layer:
        """Add an entry; *fields* are those of :class:`tarfile.TarInfo`."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 1_700_000_000
        for key, value in fields.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, mode: int = 0o755, **fields: Any) -> Layer:
        """Add a directory."""
        return self.add(name, type=tarfile.DIRTYPE, mode=mode, **fields)

    def symlink(self, name: str, target: str) -> Layer:
        """Add a symbolic link."""
        return self.add(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)

    def link(self, name: str, target: str) -> Layer:
        """Add a hard link to an entry before it."""
        return self.add(name, type=tarfile.LNKTYPE, linkname=target)

    def tar(self) -> bytes:
        """The archive, ended."""
        self._tar.close()
        return self._buffer.getvalue()


def base_layer() -> Layer:
    """A root file system that has a shell, and things for the next layers to take away."""
    layer = Layer()
    for name in ("bin", "etc", "root", "home", "proc", "sys", "dev", "var", "opaque", "replaced"):
        layer.directory(name)
    layer.directory("tmp", 0o1777).directory("home/app", uid=1000, gid=1000)
    layer.add("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    layer.link("bin/hard-linked", "bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            layer.symlink(f"bin/{applet}", "busybox")
    layer.add("etc/passwd", PASSWD.encode()).add("etc/group", GROUP.encode())
    layer.add("etc/removed", b"still here\n").add("etc/changed", b"before\n")
    return layer.add("opaque/old", b"still here\n").add("replaced/inside", b"still here\n")


def change_layer() -> Layer:
    """Whiteouts, an opaque directory, a file in a directory's place, changed contents."""
    layer = Layer("zstd")
    layer.add("etc/.wh.removed").add("etc/changed", b"after\n", mode=0o600)
    layer.directory("opaque").add("opaque/.wh..wh..opq").add("opaque/new", b"new\n")
    layer.add(".wh.replaced")
    return layer.add("home/app/owned", b"mine\n", uid=1000, gid=1000, mode=0o640)


def command_layer() -> Layer:
    """Files for the tests to run, one of which cannot be executed."""
    layer = Layer("")
    layer.add("bin/not-executable", b"#!/bin/sh\n")
    return layer.add("bin/greet", b'#!/bin/sh\necho "hello, ${1:-world}"\n', mode=0o755)


def write_layout(
    directory: Path,
    layers: Sequence[Layer] | None = None,
    compression: str | None = None,
    **config: Any,
) -> Path:
    """Write an OCI image layout with one image, tagged ``latest``, and give its path.

    :param layers: base first; default: one of each function here, of which one
        is compressed with gzip, one with zstd, and one not at all.
    :param compression: of all layers, instead of their own (Docker's formats know gzip alone).
    :param config: fields of the image's ``config``: Env, Cmd, User ...
    """
    layout = _Layout(directory)
    if layers is None:
        layers = (base_layer(), change_layer(), command_layer())
    return layout.finish(layout.image(layers, compression, architecture(), config))


def write_index(directory: Path, images: Mapping[str, Sequence[Layer]]) -> Path:
    """Write an OCI image layout with an index, tagged ``latest``, of an image a platform.

    :param images: layers by ``architecture`` or ``architecture/variant``.
    """
    layout = _Layout(directory)
    entries = []
    for platform, layers in images.items():
        name, _, variant = platform.partition("/")
        entry = layout.image(layers, None, name, {})
        entry["platform"] = {"os": "linux", "architecture": name}
        if variant:
            entry["platform"]["variant"] = variant
        entries.append(entry)
    return layout.finish(layout.put_json({"manifests": entries}, "index"))


class _Layout:
    """An OCI image layout being written (image-spec, image-layout.md)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def put(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Write a blob and give its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def put_json(self, document: dict[str, Any], what: str) -> dict[str, Any]:
        """Write a manifest or index and give its descriptor."""
        media_type = f"application/vnd.oci.image.{what}.v1+json"
        document = {"schemaVersion": 2, "mediaType": media_type, **document}
        return self.put(json.dumps(document).encode(), media_type)

    def image(
        self,
        layers: Sequence[Layer],
        compression: str | None,
        architecture: str,
        config: dict[str, Any],
    ) -> dict[str, Any]:
        """Write an image and give its manifest's descriptor."""
        descriptors, diff_ids = [], []
        for layer in layers:
            tar = layer.tar()
            diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
            chosen = layer.compression if compression is None else compression
            suffix = f"+{chosen}" if chosen else ""
            media_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
            descriptors.append(self.put(compressed(tar, chosen), media_type))
        document = {
            "os": "linux",
            "architecture": architecture,
            "created": "2026-01-02T03:04:05Z",
            "config": {
                "Env": ["PATH=/bin", "FROM=image"],
                "Cmd": ["sh"],
                "WorkingDir": "/",
                **config,
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        described = self.put(
            json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json"
        )
        return self.put_json({"config": described, "layers": descriptors}, "manifest")

    def finish(self, entry: dict[str, Any]) -> Path:
        """Tag *entry*, and give the layout's path."""
        entry = {**entry, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (self._directory / "index.json").write_text(json.dumps(index))
        (self._directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return self._directory


def compressed(tar: bytes, compression: str) -> bytes:
    """*tar* as a layer blob."""
    match compression:
        case "gzip":
            return gzip.compress(tar, 1, mtime=0)
        case "zstd":
            return zstandard.compress(tar)
        case _:
            return tar


def architecture() -> str:
    """This machine's, as images name it."""
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True)
    return ARCHITECTURES.get(machine.stdout.strip(), machine.stdout.strip())
