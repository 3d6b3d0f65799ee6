"""Layers on one another, on each snapshotter."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.defer import Deferred

from ctd.model import Digest, MediaType
from ctd.storage.errors import (
    LayerMalformed,
)
from ctd.storage.interfaces import SHARED, UnpackProgress
from tests.unit.storage.unpack.archives import (
    BASE,
    Made,
    Member,
    chain,
    directory,
    hard_link,
    layer_of,
    opaque,
    pack,
    symlink,
    whiteout,
)
from tests.unit.storage.unpack.listing import listing
from tests.unit.storage.unpack.rig import UnpackTestCase


class LayersTests(UnpackTestCase):
    """Layers on one another: the same whatever keeps them, and in whatever order they end.

    :cvar untimed: directories that have no entry anywhere, and so the time they were made.
    """

    untimed = frozenset({".", "usr/lib", "d", "etc/z", "b"})

    async def both(self, *tars: bytes) -> dict[str, Any]:
        """What the layers look like together, on overlay and natively: the same."""
        layers = chain(*tars)
        seen = []
        for on in ("overlayfs", "native"):
            top = await self.build(layers, on)
            seen.append(await self.look(top, on))
        for path in seen[0].keys() | seen[1].keys():
            one, other = (dict(s.get(path, {})) for s in seen)
            if path not in self.untimed:
                self.assertEqual(one, other, path)
        result: dict[str, Any] = seen[0]
        return result

    async def test_everything(self) -> None:
        """Replacing, hiding, and directories that have no entry in the upper layers."""
        seen = await self.both(
            BASE,
            pack(
                [
                    Member("etc/group", b"root:x:0:\n"),  # etc has no entry here
                    whiteout("gone"),
                    whiteout("old/deep/file"),
                    whiteout("etc/nothing"),
                    Member("usr/bin/su", b"newer"),
                    directory("old", 0o700, mtime=1_200_000_000),
                    symlink("fifo", "null"),
                ]
            ),
            pack([opaque("old"), Member("old/new", b"new"), Member("usr/lib/x", b"x")]),
        )
        self.assertEqual(seen["etc"]["mode"], "0o40750")
        self.assertEqual(seen["etc"]["owner"], (7, 8))
        self.assertEqual(seen["etc"]["mtime"], 1_100_000_000 * 10**9)
        self.assertEqual(seen["old"]["mode"], "0o40700")
        self.assertNotIn("gone", seen)
        self.assertEqual({p for p in seen if p.startswith("old/")}, {"old/new"})
        self.assertEqual(seen["etc/passwd"]["owner"], (1, 2))

    async def test_through_lower_links(self) -> None:
        """A path through a symbolic link of a lower layer leads where the link does."""
        seen = await self.both(BASE, pack([Member("bin/new", b"new"), whiteout("bin/same")]))
        self.assertEqual(seen["bin"]["link"], b"usr/bin")
        self.assertIn("usr/bin/new", seen)
        self.assertNotIn("usr/bin/same", seen)

    async def test_links_into_lower_layers(self) -> None:
        """A hard link to a file of a lower layer is a link to that file."""
        seen = await self.both(BASE, pack([hard_link("link", "etc/passwd")]))
        self.assertEqual(seen["link"]["same"], seen["etc/passwd"]["same"])
        self.assertEqual(seen["link"]["owner"], (1, 2))

    async def test_links_to_nothing(self) -> None:
        """A hard link to what no layer has is malformed, on every snapshotter."""
        layers = chain(BASE, pack([hard_link("link", "nothing")]))
        for on in self.snapshotters:
            below = await self.unpack(layers[0], None, on)
            with self.assertRaises(LayerMalformed) as caught:
                await self.unpack(layers[1], below, on)
            self.assertEqual(caught.exception.entry, "link")

    async def test_files_below_on_the_way(self) -> None:
        """A path through a file of a lower layer is malformed, on every snapshotter."""
        layers = chain(BASE, pack([Member("gone/x", b"x")]))
        for on in self.snapshotters:
            below = await self.unpack(layers[0], None, on)
            with self.assertRaises(LayerMalformed):
                await self.unpack(layers[1], below, on)

    async def test_opaque_root(self) -> None:
        """An opaque root hides all that lies below."""
        seen = await self.both(BASE, pack([Member("new", b"x"), Member(".wh..wh..opq")]))
        self.assertEqual(set(seen), {".", "new"})

    async def test_whiteouts_of_nothing(self) -> None:
        """A whiteout in a directory that is new, or of what is not there, is not seen."""
        seen = await self.both(
            BASE,
            pack([directory("fresh"), whiteout("fresh/x"), whiteout("usr/y"), whiteout("etc/z/q")]),
        )
        self.assertNotIn("fresh/x", seen)
        self.assertEqual([p for p in seen if seen[p]["mode"] == "0o20000"], [])

    async def test_root_metadata(self) -> None:
        """The root's metadata come from the topmost layer that has an entry for it."""
        seen = await self.both(pack([directory("./", 0o555, uid=3)]), pack([Member("a", b"x")]))
        self.assertEqual((seen["."]["mode"], seen["."]["owner"]), ("0o40555", (3, 0)))

    async def test_attributes_of_passed_directories(self) -> None:
        """A directory passed through keeps its attributes; one with an entry gets that entry's."""
        pax = {"SCHILY.xattr.user.a": "v"}
        seen = await self.both(
            pack([directory("p", pax=pax), directory("q", pax=pax)]),
            pack([Member("p/x", b"x"), directory("q")]),
        )
        self.assertEqual(seen["p"]["xattrs"], {"user.a": b"v"})
        self.assertNotIn("xattrs", seen["q"])

    async def test_parent_that_comes_late(self) -> None:
        """A layer is unpacked before its parent is, and committed after it."""
        layers = chain(BASE, pack([Member("etc/x", b"x")]))
        await self.store(layers[1])
        parent: Deferred[Any] = Deferred()
        told: list[UnpackProgress] = []
        work = self.begin(layers[1], parent, progress=told.append)
        await self.until(lambda: told)
        below = await self.unpack(layers[0])
        self.assertFalse(work.called)
        parent.callback(below)
        self.assertEqual(await work, layers[1].layer.chain_id)
        info = await self.snapshotters["overlayfs"].info(SHARED, layers[1].layer.chain_id)
        self.assertEqual(info.parent, below)

    async def test_parent_that_is_none(self) -> None:
        """A layer that learns late that it is the first has no whiteouts in it."""
        made = layer_of(pack([Member("a", b"x"), whiteout("b"), Member("c/d", b"")]))
        await self.store(made)
        parent: Deferred[Any] = Deferred()
        told: list[UnpackProgress] = []
        work = self.begin(made, parent, progress=told.append)
        await self.until(lambda: told)
        parent.callback(None)
        self.assertEqual(set(await self.look(await work, "overlayfs")), {".", "a", "c", "c/d"})

    async def test_many_layers(self) -> None:
        """More layers than there are workers, each on the one before."""
        tars = [pack([Member(f"f{n}", b"x" * n), Member("d/same", b"%d" % n)]) for n in range(20)]
        seen = await self.both(*tars)
        self.assertEqual(len(seen), 23)

    async def test_many_layers_on_the_full_view(self) -> None:
        """An overlay of so many layers that a page does not name them is unpacked into too."""
        tars = [pack([Member(f"f{n}", b"x")]) for n in range(90)]
        layers = chain(*tars, pack([hard_link("last", "f3")]))
        top = await self.build(layers, "overlayfs")
        seen = await self.look(top, "overlayfs")
        self.assertEqual(seen["last"]["same"], "f3")

    async def test_hidden_directories(self) -> None:
        """An opaque mark keeps the directory's own metadata; a whiteout does not."""
        seen = await self.both(
            pack([directory("a", 0o700, uid=5), directory("b", 0o700, uid=5), Member("b/x")]),
            pack([opaque("a"), Member("a/n"), whiteout("b"), Member("b/n")]),
        )
        self.assertEqual((seen["a"]["mode"], seen["a"]["owner"]), ("0o40700", (5, 0)))
        self.assertEqual((seen["b"]["mode"], seen["b"]["owner"]), ("0o40755", (0, 0)))
        self.assertNotIn("b/x", seen)

    async def test_as_umoci_does(self) -> None:
        """An image's layers look as umoci unpacks them."""
        if shutil.which("umoci") is None:
            raise SkipTest("umoci is not installed")
        tars = [
            BASE,
            pack(
                [
                    directory("old"),
                    opaque("old"),
                    Member("old/new", b"new"),
                    directory("etc", 0o750, uid=7, gid=8),
                    Member("etc/group", b"x", pax={"SCHILY.xattr.user.a": "v"}),
                    whiteout("gone"),
                    symlink("fifo", "/null"),
                ]
            ),
            pack(
                [
                    directory("old/new"),
                    directory("old/new/deeper/still"),
                    Member("usr", b"a file now"),
                    directory("bin"),
                    Member("bin/sh", b"sh", mode=0o755),
                    hard_link("bin/bash", "bin/sh"),
                ]
            ),
        ]
        layers = chain(*tars)
        image = self.root / "image"
        write_image(image, layers)
        command = ["umoci", "raw", "unpack", "--image", f"{image}:t", str(self.root / "out")]
        subprocess.run(command, check=True, capture_output=True)
        theirs = listing(str(self.root / "out"))
        for on in ("overlayfs", "native"):
            ours = await self.look(await self.build(layers, on), on)
            for path in ours.keys() | theirs.keys():
                one, other = dict(ours.get(path, {})), dict(theirs.get(path, {}))
                if path in {".", "old/new", "old/new/deeper"}:
                    one.pop("mtime", None), other.pop("mtime", None)
                self.assertEqual(one, other, path)


def write_image(path: Path, layers: list[Made]) -> None:
    """An image layout with these layers, tagged ``t``."""
    (path / "blobs" / "sha256").mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = Digest.of(data)
        (path / "blobs" / "sha256" / digest.hex).write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    diff_ids = [str(made.layer.diff_id) for made in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MediaType.OCI_MANIFEST,
        "config": put(json.dumps(config).encode(), MediaType.OCI_CONFIG),
        "layers": [put(made.blob, made.layer.blob.media_type) for made in layers],
    }
    named = put(json.dumps(manifest).encode(), MediaType.OCI_MANIFEST)
    named["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    index = {"schemaVersion": 2, "manifests": [named]}
    (path / "index.json").write_text(json.dumps(index))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
