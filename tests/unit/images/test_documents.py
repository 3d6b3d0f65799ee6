"""Image configurations and chain IDs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.images.documents import ImageConfig, MalformedConfig, chain_ids
from ctd.model import Digest

D = Digest.of(b"")


class ImageConfigTests(SynchronousTestCase):
    """Reading a configuration."""

    def test_defaults(self) -> None:
        """Entrypoint and command are joined; what is missing has the usual defaults."""
        body = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {
                    "Entrypoint": ["/e"],
                    "Cmd": ["c", "d"],
                    "Env": ["A=b"],
                    "User": "web",
                    "StopSignal": "SIGINT",
                    "ExposedPorts": {"80/tcp": {}},
                },
                "rootfs": {"type": "layers", "diff_ids": [str(D)]},
            }
        ).encode()
        config = ImageConfig.parse(D, body)
        self.assertEqual(config.diff_ids, (D,))
        self.assertEqual(config.defaults.args, ("/e", "c", "d"))
        self.assertEqual(config.defaults.entrypoint, ("/e",))
        self.assertEqual(config.defaults.cwd, "/")
        self.assertEqual(config.defaults.stop_signal, "SIGINT")

    def test_nulls(self) -> None:
        """Fields that are null are as if they were not there."""
        body = b'{"rootfs":{"diff_ids":[]},"config":{"Cmd":null,"Env":null,"Entrypoint":null}}'
        self.assertEqual(ImageConfig.parse(D, body).defaults.args, ())

    def test_malformed(self) -> None:
        """What is no configuration is a typed error."""
        for body in (
            b"",
            b"[]",
            b"{}",
            b'{"rootfs": 1}',
            b'{"rootfs": {"diff_ids": ["md5:00"]}}',
            b'{"rootfs": {"diff_ids": [7]}}',
            b"\xff",
            b"[" * 100_000,
        ):
            with self.assertRaises(MalformedConfig):
                ImageConfig.parse(D, body)

    @given(st.binary(max_size=300))
    def test_any_bytes(self, body: bytes) -> None:
        """Any bytes are a configuration or MalformedConfig."""
        try:
            ImageConfig.parse(D, body)
        except MalformedConfig:
            pass


class ChainIDTests(SynchronousTestCase):
    """Chain IDs."""

    def test_chain(self) -> None:
        """The first is the diff ID; each next one hashes the one below and its diff ID."""
        a, b = Digest.of(b"a"), Digest.of(b"b")
        below, above = chain_ids([a, b])
        self.assertEqual(below, str(a))
        self.assertEqual(above, str(Digest.of(f"{a} {b}".encode())))
        self.assertEqual(chain_ids([]), [])
