"""Pulling, from Debian's registry filled by skopeo and from one that lies."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import stat
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ctd.cli.connection import Connection
from tests.integration.harness import Daemon, DaemonError, eventually
from tests.integration.image_builder import (
    Layer,
    architecture,
    base_layer,
    write_index,
    write_layout,
)
from tests.integration.leaks import descriptors
from tests.integration.lying_registry import LyingRegistry, cut_at, digest, file, held_at, tar_of
from tests.integration.registry import Registry

SNAPSHOTTERS = ("overlayfs", "native")
OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"

Member = tuple[tarfile.TarInfo, bytes]


def layer_of(*members: Member) -> bytes:
    """A layer blob."""
    return gzip.compress(tar_of(members), 1)


def big_layer(name: str = "big", size: int = 6 << 20) -> bytes:
    """A layer that is as large compressed, so that it can be cut off in its middle."""
    return layer_of(file("before", b"b"), file(name, os.urandom(size)), file("after", b"a"))


def here(daemon: Daemon) -> dict[str, list[dict[str, Any]]]:
    """All that a daemon has of images."""
    snapshots = [
        snapshot
        for name in SNAPSHOTTERS
        for snapshot in daemon.items("snapshots.list", snapshotter=name, all_namespaces=True)
    ]
    return {
        "images": list(daemon.items("images.list", all_namespaces=True)),
        "blobs": list(daemon.items("content.list")),
        "ingests": list(daemon.items("content.active")),
        "snapshots": snapshots,
    }


NOTHING: dict[str, list[dict[str, Any]]] = {
    "images": [],
    "blobs": [],
    "ingests": [],
    "snapshots": [],
}


def committed(daemon: Daemon) -> Counter[str]:
    """How often each layer was unpacked."""
    return Counter(e["subject"] for e in daemon.events(topics=["snapshot.committed"]))


def refusal(daemon: Daemon, ref: str, **params: Any) -> DaemonError:
    """The error that a pull ends with."""
    with pytest.raises(DaemonError) as caught:
        daemon.call("images.pull", ref=ref, **params)
    return caught.value


def aborted(daemon: Daemon, ref: str) -> bool:
    """Whether an ingest could be taken away: not while it is written."""
    try:
        daemon.call("content.abort", ref=ref)
    except DaemonError as error:
        if error.name != "IngestBusy":
            raise
        return False
    return True


@contextmanager
def pulling(daemon: Daemon, ref: str, **params: Any) -> Iterator[tuple[Connection, int]]:
    """A pull under way: its connection and the call's number; some bytes have come."""
    seen: list[dict[str, Any]] = []
    with closing(daemon.connect()) as connection:
        number = connection.send(
            "images.pull", {"ref": ref, **params}, lambda _, params: seen.append(params)
        )
        while not any(progress["downloaded"] for progress in seen):
            assert not connection.answered(number), connection.take(number)
            connection.receive()
        yield connection, number


@contextmanager
def running(daemon: Daemon, image: str, **params: Any) -> Iterator[Path]:
    """The root of a container that sleeps, as the container sees it."""
    container = daemon.call(
        "containers.create", id="look", image=image, args=["sleep", "1000"], **params
    )
    daemon.call("containers.start", id="look")
    yield Path(f"/proc/{container['pid']}/root")
    daemon.call("containers.delete", id="look", force=True)


def layers_of(daemon: Daemon, image: str) -> list[dict[str, Any]]:
    """The layers in an image's manifest, which was not an index."""
    target = daemon.call("images.get", ref=image)["target"]
    part = daemon.call("content.read", digest=target["digest"])
    layers: list[dict[str, Any]] = json.loads(base64.b64decode(part["data"]))["layers"]
    return layers


# What is pulled.


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_oci(daemon: Daemon, registry: Registry, tmp_path: Path, compression: str) -> None:
    """An OCI image with layers of each compression is pulled, and runs."""
    layout = write_layout(tmp_path / "layout", compression=compression)
    image = registry.push(layout, f"test/oci:{compression or 'tar'}", "--preserve-digests")
    pulled = daemon.call("images.pull", ref=image)
    assert pulled["name"] == image
    assert pulled["target"]["media_type"] == OCI
    suffix = f"+{compression}" if compression else ""
    types = {layer["mediaType"] for layer in layers_of(daemon, image)}
    assert types == {f"application/vnd.oci.image.layer.v1.tar{suffix}"}
    assert daemon.run(["greet"], image=image).out == "hello, world\n"
    assert sum(committed(daemon).values()) == 3


def test_docker(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    """An image in Docker's format, schema 2, is pulled, and runs."""
    layout = write_layout(tmp_path / "layout", compression="gzip")
    image = registry.push(layout, "test/docker:1", "--format", "v2s2")
    pulled = daemon.call("images.pull", ref=image)
    assert pulled["target"]["media_type"] == DOCKER
    types = {layer["mediaType"] for layer in layers_of(daemon, image)}
    assert types == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
    assert daemon.run(["greet"], image=image).out == "hello, world\n"


def test_by_digest(daemon: Daemon, registry: Registry, image: str) -> None:
    """An image is pulled by its digest too, and the registry's word for it is not taken."""
    target = daemon.call("images.pull", ref=image)["target"]
    name = f"{image.rpartition(':')[0]}@{target['digest']}"
    assert daemon.call("images.pull", ref=name)["target"] == target
    assert daemon.run(["true"], image=name).status == 0
    missing = f"{image.rpartition(':')[0]}@sha256:{64 * '0'}"
    assert refusal(daemon, missing).kind == "not_found"


def test_platforms(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    """Of an index, the image for this machine or for the platform asked for is taken."""
    other = "riscv64" if architecture() != "riscv64" else "amd64"
    images = {
        name: [base_layer(), Layer().add("platform", name.encode())]
        for name in ("s390x", "arm/v7", architecture(), other)
    }
    layout = write_index(tmp_path / "layout", images)
    image = registry.push(layout, "test/platforms:1", "--all")
    daemon.call("images.pull", ref=image)
    assert daemon.run(["cat", "/platform"], image=image).out == architecture()
    assert daemon.call("images.config", ref=image)["config"]["architecture"] == architecture()
    daemon.call("images.pull", ref=image, platform=f"linux/{other}")
    with running(daemon, image) as root:  # its shell is this machine's
        assert (root / "platform").read_text() == other
    error = refusal(daemon, image, platform="linux/mips64le")
    assert (error.kind, error.name) == ("not_found", "NoSuchPlatform")
    assert f"linux/{other}" in error.data["available"]


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_root(daemon: Daemon, image: str, snapshotter: str) -> None:
    """Inside, whiteouts, opaque directories, links, owners and modes are as the layers say."""
    daemon.call("images.pull", ref=image, snapshotter=snapshotter)
    script = (
        "ls /etc; cat /etc/changed; ls -a /opaque; ls -d /replaced;"
        " stat -c '%n %a %u:%g' /etc/changed /home/app /home/app/owned /tmp /bin/greet;"
        " stat -c '%h' /bin/busybox; stat -c %i /bin/busybox /bin/hard-linked | uniq | wc -l;"
        " readlink /bin/sh; stat -c %Y /etc/changed; cat /home/app/owned"
    )
    done = daemon.run(["sh", "-c", script], image=image, snapshotter=snapshotter)
    assert done.out.splitlines() == [
        *("changed", "group", "passwd"),
        "after",
        *(".", "..", "new"),
        *("/etc/changed 600 0:0", "/home/app 755 1000:1000", "/home/app/owned 640 1000:1000"),
        *("/tmp 1777 0:0", "/bin/greet 755 0:0"),
        *("2", "1"),
        *("busybox", "1700000000"),
        "mine",
    ]
    assert done.err == "ls: /replaced: No such file or directory\n"
    kinds = {s["kind"] for s in daemon.items("snapshots.list", snapshotter=snapshotter,
                                             all_namespaces=True)}  # fmt: skip
    assert kinds == {"committed"}


def rare_layers() -> Sequence[Layer]:
    """What tar can hold and few images have."""
    first = Layer()
    first.directory("d", 0o750, uid=5, gid=6).add("d/kept", b"k")
    first.add("d/linked", b"l").link("d/link", "d/linked")
    first.add("file-then-directory").directory("directory-then-file").add("directory-then-file/x")
    first.directory("target").symlink("symlink-then-directory", "target").add("target/kept")
    first.add("fifo", type=tarfile.FIFOTYPE, mode=0o620)
    first.add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    first.add("setuid", b"s", mode=0o4755).add("sticky-no", b"s", mode=0o2711)
    first.add("n" * 200 + "/" + "m" * 200, b"long")
    first.add("Ünïcödé", b"u").symlink("dangling", "/" + "t" * 200)
    first.add("attributes", b"a", pax_headers={"SCHILY.xattr.user.colour": "blue"})
    capability = base64.b64decode("AQAAAgAgAAAAAAAAAAAAAAAAAAA=").decode("latin-1")
    first.add("capable", b"c", pax_headers={"SCHILY.xattr.security.capability": capability})
    first.add("time", b"t", mtime=1_234_567_890.5, pax_headers={"mtime": "1234567890.5"})
    second = Layer()
    second.directory("d", 0o711, uid=7, gid=8).add("d/.wh.linked")
    second.directory("file-then-directory").add("file-then-directory/y")
    second.add("directory-then-file", b"file")
    second.directory("symlink-then-directory").add("symlink-then-directory/z")
    return base_layer(), first, second


@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_rare_entries(daemon: Daemon, registry: Registry, tmp_path: Path, snapshotter: str) -> None:
    """Devices, fifos, set-uid bits, attributes, long names and changes of type are unpacked."""
    image = registry.push(write_layout(tmp_path / "layout", rare_layers()), "test/rare:1")
    daemon.call("images.pull", ref=image, snapshotter=snapshotter)
    with running(daemon, image, snapshotter=snapshotter) as root:
        assert (stat.S_IMODE((root / "d").stat().st_mode), (root / "d").stat().st_uid) == (0o711, 7)
        assert sorted(os.listdir(root / "d")) == ["kept", "link"]
        assert (root / "d/link").read_bytes() == b"l"
        assert os.listdir(root / "file-then-directory") == ["y"]
        assert (root / "directory-then-file").read_bytes() == b"file"
        assert os.listdir(root / "symlink-then-directory") == ["z"]
        assert os.listdir(root / "target") == ["kept"]
        assert stat.S_ISFIFO((root / "fifo").lstat().st_mode)
        null = (root / "null").lstat()
        assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
        assert stat.S_IMODE((root / "setuid").stat().st_mode) == 0o4755
        assert stat.S_IMODE((root / "sticky-no").stat().st_mode) == 0o2711
        assert (root / ("n" * 200) / ("m" * 200)).read_bytes() == b"long"
        assert (root / "Ünïcödé").read_bytes() == b"u"
        assert os.readlink(root / "dangling") == "/" + "t" * 200
        assert os.getxattr(root / "attributes", "user.colour") == b"blue"
        assert "security.capability" in os.listxattr(root / "capable")
        assert (root / "time").stat().st_mtime_ns == 1_234_567_890_500_000_000


def test_again(daemon: Daemon, image: str) -> None:
    """What is here is not fetched, unpacked or told of again."""
    first = daemon.call("images.pull", ref=image)
    seen = daemon.events()[-1]["seq"]
    assert daemon.call("images.pull", ref=image)["target"] == first["target"]
    assert daemon.events(since=seen) == []


def test_moved_tag(daemon: Daemon, registry: Registry, tmp_path: Path) -> None:
    """A tag that has moved is pulled anew, and what only the old image needed is collected."""
    old, new = (
        write_layout(tmp_path / name, [base_layer(), Layer().add("version", name.encode())])
        for name in ("old", "new")
    )
    image = registry.push(old, "test/moved:1")
    daemon.call("images.pull", ref=image)
    before = len(here(daemon)["blobs"])
    registry.push(new, "test/moved:1")
    daemon.call("images.pull", ref=image)
    assert daemon.run(["cat", "/version"], image=image).out == "new"
    daemon.call("gc.run")
    assert len(here(daemon)["blobs"]) == before


# Together.


def test_ten_at_once(daemon: Daemon, registry: Registry, image: str) -> None:
    """Ten clients in two namespaces pull an image at once, and each layer is unpacked once."""

    def pull(number: int) -> Any:
        return daemon.call("images.pull", ref=image, namespace=("one", "two")[number % 2])

    with ThreadPoolExecutor(10) as pool:
        targets = [image["target"] for image in pool.map(pull, range(10))]
    assert all(target == targets[0] for target in targets)
    assert sorted(committed(daemon).values()) == [1, 1, 1]
    assert len(list(daemon.items("images.list", all_namespaces=True))) == 2


def test_ten_requests(daemon: Daemon) -> None:
    """However many pull an image at once, each of its blobs is asked for once."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer("one"), big_layer("two")])) as registry:
        registry.send = held_at(1 << 20, go_on)
        with pulling(daemon, registry.image) as (first, number), ThreadPoolExecutor(9) as pool:
            others = [pool.submit(daemon.call, "images.pull", ref=registry.image) for _ in range(9)]
            paths = {path for path in registry.requests if "/manifests/" not in path}
            eventually(lambda: descriptors(daemon.pid)["socket:"] >= 10)
            go_on.set()
            assert first.reply(number)["name"] == registry.image
            assert {other.result()["name"] for other in others} == {registry.image}
        paths = {path for path in registry.requests if "/blobs/" in path}
        assert {path: registry.requests[path] for path in paths} == dict.fromkeys(paths, 1)
        assert len(paths) == 3
    assert sorted(committed(daemon).values()) == [1, 1]


def test_one_hangs_up(daemon: Daemon) -> None:
    """A pull goes on when one of the two who wait for it hangs up."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer()])) as registry:
        registry.send = held_at(1 << 20, go_on)
        with closing(daemon.connect()) as second:
            with pulling(daemon, registry.image):
                number = second.send("images.pull", {"ref": registry.image})
                second.reply(second.send("daemon.info", {}))
                open_before = descriptors(daemon.pid)["socket:"]
            eventually(lambda: descriptors(daemon.pid)["socket:"] < open_before)
            go_on.set()
            assert second.reply(number)["name"] == registry.image
        assert registry.fetched(registry.layers[0]) == 1
    assert sorted(committed(daemon).values()) == [1]


def test_all_hang_up(daemon: Daemon) -> None:
    """A pull that nobody waits for any more ends, and only what may be resumed is kept."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer()])) as registry:
        registry.send = held_at(3 << 20, go_on)
        with pulling(daemon, registry.image):
            pass
        eventually(lambda: {**here(daemon), "ingests": []} == NOTHING)
        for ingest in here(daemon)["ingests"]:
            assert ingest["expected"] == registry.layers[0]
            eventually(partial(aborted, daemon, ingest["ref"]))
        go_on.set()
    assert here(daemon) == NOTHING


def test_cancel(daemon: Daemon) -> None:
    """A pull that is cancelled answers with that, when what it had begun is undone."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer()])) as registry:
        registry.send = held_at(1 << 20, go_on)
        with pulling(daemon, registry.image) as (connection, number):
            connection.reply(connection.send("rpc.cancel", {"call": number}))
            with pytest.raises(DaemonError) as caught:
                connection.reply(number)
            assert caught.value.kind == "cancelled"
            assert {**here(daemon), "ingests": []} == NOTHING
        go_on.set()
        # Now it is pulled as if nothing had been.
        daemon.call("images.pull", ref=registry.image)


# Cut off.


def test_daemon_killed(daemon: Daemon) -> None:
    """After kill -9 of the daemon a pull goes on where it was, not from the beginning."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer()])) as registry:
        registry.send = held_at(5 << 20, go_on)
        with pulling(daemon, registry.image):
            eventually(lambda: sum(i["offset"] for i in here(daemon)["ingests"]) >= 3 << 20)
            daemon.kill9()
        daemon.start()
        assert here(daemon)["images"] == here(daemon)["snapshots"] == []
        go_on.set()
        daemon.call("images.pull", ref=registry.image)
        [(path, ranges)] = registry.ranges.items()
        assert path.endswith(registry.layers[0])
        assert int(ranges[0].removeprefix("bytes=").removesuffix("-")) >= 3 << 20
    assert here(daemon)["ingests"] == []
    assert sorted(committed(daemon).values()) == [1]


@pytest.mark.parametrize("which", ["workers", "jobs"])
def test_worker_killed(daemon: Daemon, which: str) -> None:
    """After kill -9 of what unpacks, in the middle, the layers are unpacked again, by another."""
    go_on = threading.Event()
    with closing(LyingRegistry([big_layer("one"), big_layer("two")])) as registry:
        registry.send = held_at(5 << 20, go_on)
        with pulling(daemon, registry.image) as (connection, number):
            eventually(lambda: len(daemon.jobs()) == 2)
            killed = getattr(daemon, which)()
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: not set(killed) & {*daemon.workers(), *daemon.jobs()})
            go_on.set()
            assert connection.reply(number)["name"] == registry.image
        assert [registry.fetched(layer) for layer in registry.layers] == [1, 1]
    assert sorted(committed(daemon).values()) == [1, 1]


def test_registry_restarts(daemon: Daemon) -> None:
    """A transfer that breaks is taken up where it broke."""
    with closing(LyingRegistry([big_layer()])) as registry:
        whole = registry.send
        cut = cut_at(0.5)

        def send(request: Any, name: str, body: bytes) -> None:
            (cut if name == registry.layers[0] and registry.fetched(name) < 3 else whole)(
                request, name, body
            )

        registry.send = send
        daemon.call("images.pull", ref=registry.image)
        assert registry.fetched(registry.layers[0]) == 3
    assert here(daemon)["ingests"] == []


# Lies.


def test_wrong_digest(daemon: Daemon) -> None:
    """A layer with other bytes than its digest's is refused, and nothing is left."""
    with closing(LyingRegistry([layer_of(file("x", b"right")), big_layer()])) as registry:
        name = registry.layers[1]
        right = registry.blobs[name]
        registry.blobs[name] = right[:-9] + bytes([right[-9] ^ 1]) + right[-8:]
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("data_loss", "DigestMismatch")
        assert error.data["expected"] == name
        assert here(daemon) == NOTHING
        registry.blobs[name] = right
        daemon.call("images.pull", ref=registry.image)


def test_wrong_config(daemon: Daemon) -> None:
    """A configuration with other bytes than its digest's is refused, and nothing is left."""
    with closing(LyingRegistry([layer_of(file("x"))])) as registry:
        name = json.loads(registry.manifest)["config"]["digest"]
        registry.blobs[name] = registry.blobs[name].replace(b"linux", b"Linux")
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("data_loss", "DigestMismatch")
        assert here(daemon) == NOTHING


def test_wrong_manifest(daemon: Daemon) -> None:
    """A manifest with other bytes than the digest that was asked for is refused."""
    with closing(LyingRegistry([layer_of(file("x"))])) as registry:
        name = digest(registry.manifest)
        registry.manifest += b" "
        error = refusal(daemon, f"{registry.image.rpartition(':')[0]}@{name}")
        assert (error.kind, error.name) == ("data_loss", "DigestMismatch")
        assert here(daemon) == NOTHING


def test_truncated(daemon: Daemon) -> None:
    """A body that always ends early is a typed error; only what may be resumed is kept."""
    with closing(LyingRegistry([big_layer()])) as registry:
        name, whole = registry.layers[0], registry.send
        total = len(registry.blobs[name])

        def send(request: Any, name: str, body: bytes) -> None:
            missing = len(body) - total // 2
            request.wfile.write(body[: max(0, missing)] if name == registry.layers[0] else body)
            request.close_connection = True

        registry.send = send
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("unavailable", "TransferBroken")
        assert error.data["digest"] == name
        assert error.data["offset"] == total - total // 2
        assert {**here(daemon), "ingests": []} == NOTHING
        [ingest] = here(daemon)["ingests"]
        assert ingest["offset"] == total - total // 2
        daemon.call("content.abort", ref=ingest["ref"])
        assert here(daemon) == NOTHING
        registry.send = whole
        daemon.call("images.pull", ref=registry.image)


def test_other_length(daemon: Daemon) -> None:
    """A body that is announced with another length than the manifest's is refused."""
    with closing(LyingRegistry([big_layer()])) as registry:
        registry.blobs[registry.layers[0]] += b"more"
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("unavailable", "TransferBroken")
        assert here(daemon) == NOTHING


def test_missing_blob(daemon: Daemon) -> None:
    """A layer that the registry does not have is named, and nothing is left."""
    with closing(LyingRegistry([layer_of(file("x")), big_layer()])) as registry:
        del registry.blobs[registry.layers[0]]
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("not_found", "NotFound")
        assert error.data["name"] == registry.layers[0]
        assert here(daemon) == NOTHING


def broken_gzip(kind: str) -> bytes:
    """A layer whose bytes are the right ones, and which cannot be decompressed."""
    whole = big_layer(size=1 << 20)
    middle = len(whole) // 2
    compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
    match kind:
        case "header":
            return b"\x1f\x8b\x07" + whole[3:]
        case "body":
            stored = compressor.compress(bytes(1 << 20)) + compressor.flush()
            return stored[:40] + bytes(b ^ 0xFF for b in stored[40:200]) + stored[200:]
        case "checksum":
            return whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:]
        case "end":
            return whole[:middle]
        case _:
            return os.urandom(1 << 20)


@pytest.mark.parametrize("kind", ["header", "body", "checksum", "end", "noise"])
def test_corrupt_gzip(daemon: Daemon, kind: str) -> None:
    """A gzip stream that is corrupt is a typed error that names the layer, and nothing is left."""
    layers = [layer_of(file("x")), broken_gzip(kind)]
    with closing(LyingRegistry(layers, [digest(b""), digest(b"x")])) as registry:
        error = refusal(daemon, registry.image)
        assert error.kind == "data_loss"
        assert error.name in ("LayerMalformed", "DiffIDMismatch")
        assert error.data["layer"] in registry.layers
        assert here(daemon) == NOTHING


def test_corrupt_gzip_alone(daemon: Daemon) -> None:
    """A corrupt gzip stream is LayerMalformed, whatever its diff ID would be."""
    layer = broken_gzip("body")
    with closing(LyingRegistry([layer], [digest(b"")])) as registry:
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("data_loss", "LayerMalformed")
        assert error.data["layer"] == registry.layers[0]
        assert here(daemon) == NOTHING


def test_wrong_diff_id(daemon: Daemon) -> None:
    """A layer that unpacks to another tar than the image's configuration says is refused."""
    layers = [layer_of(file("x")), layer_of(file("y"))]
    diff_ids = [digest(gzip.decompress(layers[0])), digest(b"something else")]
    with closing(LyingRegistry(layers, diff_ids)) as registry:
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("data_loss", "DiffIDMismatch")
        assert error.data["layer"] == registry.layers[1]
        assert error.data["expected"] == diff_ids[1]
        assert error.data["actual"] == digest(gzip.decompress(layers[1]))
        assert here(daemon) == NOTHING


@pytest.mark.parametrize(
    "members",
    [
        [file("../../outside")],
        [file("a/b/../../../outside")],
        [file("a", b"", type=tarfile.DIRTYPE), file("a/.wh...", b"")],
        [file("a", b"", type=tarfile.DIRTYPE), file("a/.wh..", b"")],
        [file("x", b"", type=tarfile.LNKTYPE, linkname="../../../../etc/passwd")],
        [file("x", b"", type=tarfile.LNKTYPE, linkname="/proc/1/environ")],
    ],
    ids=["up", "down-and-up", "whiteout-of-parent", "whiteout-of-self", "link-up", "link-to-host"],
)
def test_leaving_the_root(daemon: Daemon, members: list[Member]) -> None:
    """An entry that tries to leave the root is a typed error that names it; nothing is left."""
    with closing(LyingRegistry([layer_of(file("x0")), layer_of(*members)])) as registry:
        error = refusal(daemon, registry.image)
        assert (error.kind, error.name) == ("data_loss", "LayerMalformed")
        assert error.data["layer"] == registry.layers[1]
        assert error.data["entry"] == members[-1][0].name
        assert here(daemon) == NOTHING


@pytest.mark.parametrize("name", ["way/{}", "{}"], ids=["symlink", "absolute"])
def test_staying_inside(daemon: Daemon, tmp_path: Path, name: str) -> None:
    """A path through a symbolic link to the host's root, or an absolute one, stays inside."""
    name = name.format(f"{tmp_path.name}-outside")
    members = [
        file("way", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path)),
        file(name if name.startswith("way") else f"{tmp_path}/{name}", b"evil"),
    ]
    with closing(LyingRegistry([layer_of(*members)])) as registry:
        try:
            daemon.call("images.pull", ref=registry.image)
        except DaemonError as error:
            if error.name != "LayerMalformed":
                raise
            assert here(daemon) == NOTHING
        assert list(tmp_path.iterdir()) == []


def test_no_registry(daemon: Daemon) -> None:
    """A registry that does not answer, or an image it has not, is a typed error."""
    with closing(LyingRegistry([layer_of(file("x"))])) as registry:
        image = registry.image
    error = refusal(daemon, image)
    assert (error.kind, error.name) == ("unavailable", "RegistryUnavailable")
    assert here(daemon) == NOTHING


def test_missing_image(daemon: Daemon, registry: Registry) -> None:
    """An image that the registry does not have is not_found."""
    error = refusal(daemon, f"{registry.address}/test/nothing:1")
    assert (error.kind, error.name) == ("not_found", "NotFound")
    assert here(daemon) == NOTHING


# Taken away.


def test_removed(daemon: Daemon, image: str) -> None:
    """When an image's last name is gone no blob, layer or file of it is left."""
    for snapshotter in SNAPSHOTTERS:
        daemon.call("images.pull", ref=image, snapshotter=snapshotter)
    daemon.call("images.tag", source=image, target="other:1")
    before = here(daemon)
    daemon.call("images.delete", ref=image)
    assert {**here(daemon), "images": []} == {**before, "images": []}
    daemon.call("images.delete", ref="other:1")
    assert here(daemon) == NOTHING
    assert [path for path in (daemon.root / "content").rglob("*") if path.is_file()] == []
    for snapshotter in SNAPSHOTTERS:
        assert os.listdir(daemon.root / "snapshots" / snapshotter) == []


def test_in_use(daemon: Daemon, image: str) -> None:
    """A container keeps its layers when its image is removed, until it is deleted."""
    daemon.call("images.pull", ref=image)
    with running(daemon, image) as root:
        daemon.call("images.delete", ref=image)
        daemon.call("gc.run")
        assert (root / "etc/changed").read_text() == "after\n"
        assert daemon.call("processes.exec", container="look", args=["true"])["pid"]
        assert here(daemon)["blobs"] == []
    daemon.call("gc.run")
    assert here(daemon) == NOTHING
