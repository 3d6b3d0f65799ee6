"""The choice among an index's manifests."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ctd.fetch.errors import NoSuchPlatform
from ctd.fetch.interfaces import Index
from ctd.fetch.platforms import choose
from ctd.model import Descriptor, Digest, MediaType, Platform
from tests.unit.fetch.stage import MANIFEST


def entry(
    platform: str | None, media_type: str = MediaType.OCI_MANIFEST, **more: str
) -> Descriptor:
    """An entry that is told from others by its digest."""
    words = platform.split("/") if platform is not None else None
    digest = Digest.of(f"{platform}{media_type}{more}".encode())
    return Descriptor(media_type, digest, 1, Platform(*words) if words else None, more)


def chosen(wanted: str, *entries: Descriptor) -> str:
    descriptor = choose(Index(MANIFEST, entries), Platform.parse(wanted))
    return str(descriptor.platform)


ATTESTATION = entry("unknown/unknown")


class ChooseTests(SynchronousTestCase):
    """What fits a platform, and what fits it best."""

    def check(self, wanted: str, there: str, result: str | None) -> None:
        entries = [entry(one) for one in there.split()]
        if result is None:
            with self.assertRaises(NoSuchPlatform):
                chosen(wanted, *entries)
        else:
            self.assertEqual(chosen(wanted, *entries), result)

    def test_exact(self) -> None:
        """The platform itself is taken, wherever it stands."""
        self.check("linux/amd64", "linux/arm64 windows/amd64 linux/amd64", "linux/amd64")
        self.check("amd64", "linux/386 linux/amd64", "linux/amd64")
        self.check("linux/arm64", "linux/arm64/v8", "linux/arm64/v8")
        self.check("linux/x86_64", "linux/amd64", "linux/amd64")

    def test_arm(self) -> None:
        """An arm processor takes the newest that it runs, and none that is newer."""
        self.check("linux/arm/v7", "linux/arm/v5 linux/arm/v6 linux/arm/v7", "linux/arm/v7")
        self.check("linux/arm/v7", "linux/arm/v5 linux/arm/v6", "linux/arm/v6")
        self.check("linux/arm", "linux/arm/v6", "linux/arm/v6")
        self.check("linux/arm/v7", "linux/arm", "linux/arm")
        self.check("linux/arm/v6", "linux/arm/v7", None)
        self.check("linux/arm/v6", "linux/arm/v5", "linux/arm/v5")
        self.check("linux/arm/v8", "linux/arm/v7", "linux/arm/v7")
        self.check("linux/arm64", "linux/arm/v7", None)

    def test_levels(self) -> None:
        """Levels of amd64 and unknown variants fall back to what is below them."""
        self.check("linux/amd64/v3", "linux/amd64 linux/amd64/v2", "linux/amd64/v2")
        self.check("linux/amd64/v2", "linux/amd64", "linux/amd64")
        self.check("linux/amd64", "linux/amd64/v2", None)
        self.check("linux/arm64/v9", "linux/arm64", "linux/arm64")
        self.check("linux/riscv64/x", "linux/riscv64", "linux/riscv64")

    def test_first_of_equals(self) -> None:
        """Of several that fit equally the first is taken."""
        one, two = entry("linux/amd64", a="1"), entry("linux/amd64", a="2")
        self.assertIs(choose(Index(MANIFEST, (one, two)), Platform("linux", "amd64")), one)

    def test_no_images(self) -> None:
        """Attestations, signatures and other things in an index are not images."""
        for other in (
            ATTESTATION,
            entry("linux/amd64", "application/vnd.example+json"),
            entry("linux/amd64", **{"vnd.docker.reference.type": "attestation-manifest"}),
        ):
            with self.assertRaises(NoSuchPlatform) as caught:
                chosen("linux/amd64", other)
            self.assertEqual(caught.exception.available, [])

    def test_without_platform(self) -> None:
        """The one entry that says nothing is taken if no other fits; of two neither is."""
        silent = entry(None)
        arm = entry("linux/arm64")
        self.assertEqual(chosen("linux/amd64", ATTESTATION, silent, arm), "None")
        self.assertEqual(chosen("linux/arm64", silent, arm), "linux/arm64")
        with self.assertRaises(NoSuchPlatform):
            chosen("linux/amd64", silent, entry(None, a="2"))

    def test_available(self) -> None:
        """The error says what there is, each once."""
        with self.assertRaises(NoSuchPlatform) as caught:
            chosen("linux/s390x", entry("linux/amd64"), entry("linux/amd64"), entry("linux/arm/v6"))
        self.assertEqual(
            caught.exception.fields,
            {"platform": "linux/s390x", "available": ["linux/amd64", "linux/arm/v6"]},
        )
