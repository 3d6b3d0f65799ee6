"""Reading out of unmounted root file systems; as root, on the real kernel."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import ResourceExhausted
from ctd.images.peek import LIMIT, read_files, read_process_files
from ctd.model import Mount

PASSWD = "/etc/passwd"


def mounts_here() -> str:
    return Path("/proc/self/mountinfo").read_text()


class ReadFilesTests(SynchronousTestCase):
    """Files of layered root file systems."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).resolve()
        self.spot = self.top / "spot"
        self.layers = [self.top / name for name in ("upper", "middle", "base")]
        for path in (self.spot, self.top / "work", *self.layers):
            path.mkdir(parents=True)
        self.before = mounts_here()

    def overlay(self) -> Mount:
        upper, *lower = map(str, self.layers)
        options = (
            "lowerdir=" + ":".join(lower),
            f"upperdir={upper}",
            f"workdir={self.top / 'work'}",
        )
        return Mount("overlay", "overlay", options)

    def read(self, *mounts: Mount, path: str = PASSWD) -> bytes:
        content = read_files(mounts, [path], str(self.spot))[0]
        self.assertEqual(mounts_here(), self.before)
        return content

    def put(self, layer: int, text: str, path: str = "etc/passwd") -> None:
        file = self.layers[layer] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def test_topmost_wins(self) -> None:
        """The topmost layer that has the file shows it, the upper one first."""
        self.put(2, "base")
        self.assertEqual(self.read(self.overlay()), b"base")
        self.put(1, "middle")
        self.assertEqual(self.read(self.overlay()), b"middle")
        self.put(0, "upper")
        self.assertEqual(self.read(self.overlay()), b"upper")

    def test_whiteout(self) -> None:
        """A file that a layer takes away is not there."""
        self.put(2, "base")
        (self.layers[1] / "etc").mkdir()
        os.mknod(self.layers[1] / "etc/passwd", 0o020000, os.makedev(0, 0))
        self.assertEqual(self.read(self.overlay()), b"")

    def test_bind(self) -> None:
        """A single directory is read as it is."""
        self.put(2, "base")
        self.assertEqual(self.read(Mount("bind", str(self.layers[2]), ("rbind", "ro"))), b"base")

    def test_links_stay_inside(self) -> None:
        """Symbolic links lead to files of the root file system, never to the host's."""
        secret = self.top / "secret"
        secret.write_text("host")
        (self.layers[2] / "etc").mkdir()
        (self.layers[2] / "etc/passwd").symlink_to(secret)
        self.assertEqual(self.read(self.overlay()), b"")
        (self.layers[2] / "etc/passwd").unlink()
        (self.layers[2] / "etc/passwd").symlink_to("../../../../real")
        self.put(2, "inside", "real")
        self.assertEqual(self.read(self.overlay()), b"inside")

    def test_no_regular_file(self) -> None:
        """A fifo, a device or a directory of that name is empty, and nothing hangs."""
        (self.layers[2] / "etc").mkdir()
        os.mkfifo(self.layers[2] / "etc/passwd")
        self.assertEqual(self.read(self.overlay()), b"")
        self.put(1, "x", "etc/passwd/below")
        self.assertEqual(self.read(self.overlay()), b"")

    def test_too_large(self) -> None:
        """A file over the limit is refused."""
        self.put(2, "")
        os.truncate(self.layers[2] / "etc/passwd", LIMIT + 1)
        with self.assertRaises(ResourceExhausted):
            self.read(self.overlay())

    def test_many_layers(self) -> None:
        """A hundred layers below a long path fit."""
        names = [self.top / f"a-long-name-that-all-have/{n}/fs" for n in range(100)]
        for name in names:
            name.mkdir(parents=True)
        self.put(2, "base")
        lower = ":".join(map(str, [*names, self.layers[2]]))
        self.assertEqual(self.read(Mount("overlay", "overlay", (f"lowerdir={lower}",))), b"base")

    def test_leaves_nothing(self) -> None:
        """Neither a thread nor a descriptor stays."""
        self.put(2, "base")
        self.read(self.overlay())
        threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            self.read(self.overlay())
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(len(os.listdir("/proc/self/fd")), fds)

    def test_process(self) -> None:
        """A process's own view is read through its root."""
        files = read_process_files(os.getpid(), [PASSWD, "/nothing/here"])
        self.assertEqual(files, [Path(PASSWD).read_bytes(), b""])
