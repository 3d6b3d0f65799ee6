"""References: what people write, and what it is short for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import InvalidArgument
from ctd.fetch.reference import Reference, is_loopback
from ctd.model import Digest

D = f"sha256:{'a' * 64}"


class ParseTests(SynchronousTestCase):
    """Text turned into references."""

    def test_defaults(self) -> None:
        """What is left out is filled in as Docker does it."""
        for text, full in (
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/user/app:1", "docker.io/user/app:1"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("GHCR.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("reg:5000/app", "reg:5000/app:latest"),
            ("127.0.0.1:5000/a/b/c:x_Y.z-1", "127.0.0.1:5000/a/b/c:x_Y.z-1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[2001:db8::1]/app", "[2001:db8::1]/app:latest"),
            (f"alpine@{D}", f"docker.io/library/alpine@{D}"),
            (f"alpine:3@{D}", f"docker.io/library/alpine:3@{D}"),
            ("a/b-c__d.e_f--g", "docker.io/a/b-c__d.e_f--g:latest"),
            ("abc:5000", "docker.io/library/abc:5000"),
        ):
            self.assertEqual(str(Reference.parse(text)), full)

    def test_fields(self) -> None:
        """A reference has its parts as fields."""
        self.assertEqual(
            Reference.parse(f"[::1]:5000/a/b:1@{D}"),
            Reference("[::1]:5000", "a/b", "1", Digest.parse(D)),
        )
        self.assertIsNone(Reference.parse(f"alpine@{D}").tag)

    def test_target(self) -> None:
        """A registry is asked for the digest if there is one, else for the tag."""
        self.assertEqual(Reference.parse("a:1").target, "1")
        self.assertEqual(Reference.parse(f"a:1@{D}").target, D)

    def test_host(self) -> None:
        """Docker Hub's API is elsewhere than its name says; others are where they say."""
        self.assertEqual(Reference.parse("alpine").host, "registry-1.docker.io")
        self.assertEqual(Reference.parse("ghcr.io/a").host, "ghcr.io")

    def test_refused(self) -> None:
        """What is no reference is refused, with the field's name and what would be right."""
        for text, hint in (
            ("", "a reference is"),
            ("a" * 2000, "a reference is"),
            ("https://ghcr.io/a", "leave out the scheme"),
            ("Alpine", "in lower case: library/alpine"),
            ("ghcr.io/App/x", "in lower case: app/x"),
            ("a b", "words of"),
            ("a//b", "words of"),
            ("/a", "words of"),
            ("a/", "words of"),
            ("a_-b", "words of"),
            ("a/../b", "words of"),
            ("a:b:c", "words of"),
            ("ä", "words of"),
            ("a\n", "words of"),
            ("a:", "a tag is"),
            ("a:-x", "a tag is"),
            ("a:x\n", "a tag is"),
            ("a:" + "x" * 129, "a tag is"),
            ("a@", "is not sha256"),
            ("a@sha256:abc", "is not sha256"),
            (f"a@{D}@{D}", "is not sha256"),
            ("a.-b/c", "is no registry"),
            ("[::g]/x", "is no registry"),
            ("[:::]/x", "is no IPv6 address"),
            ("reg.example:0/x", "is no port"),
            ("reg.example:65536/x", "is no port"),
            ("user@reg.example/x", "is not sha256"),
            ("x/" + "a" * 254, "at most 255"),
            ("a" * 64, "like an image ID"),
        ):
            with self.assertRaises(InvalidArgument) as caught:
                Reference.parse(text, "target")
            self.assertEqual(caught.exception.field, "target")
            self.assertIn(hint, caught.exception.reason)
            self.assertLess(len(str(caught.exception)), 600)

    def test_longest(self) -> None:
        """Names and tags may have their full lengths."""
        text = f"reg.example/{'a' * 255}:{'x' * 128}"
        self.assertEqual(str(Reference.parse(text)), text)

    @given(st.text(max_size=60) | st.from_regex(r"[a-z.:/@\[\]_-]{1,40}", fullmatch=True))
    def test_full_names_are_their_own(self, text: str) -> None:
        """A full name stands for itself, and anything else is an InvalidArgument."""
        try:
            parsed = Reference.parse(text)
        except InvalidArgument:
            return
        self.assertEqual(Reference.parse(str(parsed)), parsed)


class LoopbackTests(SynchronousTestCase):
    """Which registries are this machine."""

    def test_which(self) -> None:
        """Only what is loopback by its very name."""
        for domain in ("localhost", "localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:5"):
            self.assertTrue(is_loopback(domain), domain)
        for domain in (
            "localhost.example",
            "128.0.0.1",
            "127.0.0.1.example",
            "0.0.0.0",
            "[::2]",
            "10.0.0.1",
            "127",
            "docker.io",
            "local host",
        ):
            self.assertFalse(is_loopback(domain), domain)
