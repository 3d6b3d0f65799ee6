"""The shared words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import KINDS, CtdError, InvalidArgument, NotFound
from ctd.model import Descriptor, Digest, Platform, plain, rfc3339


class DigestTests(SynchronousTestCase):
    """Digests."""

    @given(st.binary(), st.sampled_from(["sha256", "sha512"]))
    def test_round_trip(self, data: bytes, algorithm: str) -> None:
        """What a digest is written as is read as the same digest."""
        digest = Digest.of(data, algorithm)
        self.assertEqual(Digest.parse(str(digest)), digest)

    def test_refused(self) -> None:
        """Unknown algorithms, wrong lengths, upper case and paths are refused by field."""
        for text in (
            "",
            "sha256:",
            "md5:" + "0" * 32,
            "sha256:" + "A" * 64,
            "sha256:" + "0" * 63,
            "sha256:" + "0" * 64 + "\n",
            "sha256:../../etc/passwd",
        ):
            with self.assertRaises(InvalidArgument) as caught:
                Digest.parse(text, "blob")
            self.assertEqual(caught.exception.field, "blob")


class PlatformTests(SynchronousTestCase):
    """Platforms."""

    def test_names(self) -> None:
        """Kernel names become image names, and defaults of variants vanish."""
        for text, expected in (
            ("linux/x86_64", "linux/amd64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ):
            self.assertEqual(str(Platform.parse(text)), expected)

    def test_refused(self) -> None:
        """What is not of the form is refused."""
        for text in ("", "a/b/c/d", "linux//", "li nux/amd64"):
            with self.assertRaises(InvalidArgument):
                Platform.parse(text)


class PlainTests(SynchronousTestCase):
    """Values as JSON can carry them."""

    def test_nested(self) -> None:
        """Values inside values become mappings, lists and strings."""
        digest = Digest.of(b"")
        self.assertEqual(
            plain([Descriptor("t", digest, 3, Platform("linux", "amd64"))]),
            [
                {
                    "media_type": "t",
                    "digest": str(digest),
                    "size": 3,
                    "platform": "linux/amd64",
                    "annotations": {},
                }
            ],
        )

    def test_times(self) -> None:
        """Times are UTC whatever zone they are given in."""
        at = datetime(2026, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=1)))
        self.assertEqual(rfc3339(at), "2026-01-02T02:04:05.000006Z")
        self.assertEqual(plain(datetime(2026, 1, 2, tzinfo=UTC)), "2026-01-02T00:00:00.000000Z")


class ErrorTests(SynchronousTestCase):
    """Typed errors."""

    def test_fields(self) -> None:
        """An error's facts are its fields, and its text says them."""
        error = NotFound("image", "x")
        self.assertEqual(error.fields, {"what": "image", "name": "x"})
        self.assertEqual(str(error), "image 'x' not found")

    def test_kinds(self) -> None:
        """Every error class has one of the protocol's kinds; a client's has the daemon's."""
        import ctd.app  # noqa: F401 (brings in every part)
        from ctd.client.errors import RemoteError

        classes = [CtdError]
        for cls in classes:
            classes += [sub for sub in cls.__subclasses__() if sub is not RemoteError]
            self.assertIn(cls.kind, KINDS)
        self.assertGreater(len(classes), 20)
