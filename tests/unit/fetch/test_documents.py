"""Manifests and indexes that registries send, true and otherwise."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.fetch.documents import ENTRIES_LIMIT, LAYERS_LIMIT, media_type, parse
from ctd.fetch.errors import MalformedDocument
from ctd.fetch.interfaces import Index, Manifest
from ctd.model import Descriptor, Digest, MediaType, Platform
from tests.unit.fetch.stage import CONFIG, LAYER, MANIFEST, MANIFEST_BODY, document, raw


def read(kind: str, fields: Any) -> Manifest | Index:
    body = json.dumps(fields).encode()
    return parse(Descriptor(kind, Digest.of(body), len(body)), body)


GOOD = {"schemaVersion": 2, "config": raw(CONFIG), "layers": [raw(LAYER)]}


class ParseTests(SynchronousTestCase):
    """Documents read."""

    def test_manifest(self) -> None:
        """A manifest gives its configuration and its layers, base first."""
        self.assertEqual(parse(MANIFEST, MANIFEST_BODY), Manifest(MANIFEST, CONFIG, (LAYER,)))

    def test_families(self) -> None:
        """OCI's and Docker's names of a kind are the same, with or without one in the body."""
        for kind in MediaType.MANIFESTS:
            for inner in (*MediaType.MANIFESTS, ""):
                self.assertIsInstance(read(kind, {**GOOD, "mediaType": inner}), Manifest)
            self.assertIsInstance(read(kind, GOOD), Manifest)

    def test_index(self) -> None:
        """An index gives its entries with their platforms and annotations."""
        arm = {"os": "linux", "architecture": "arm", "variant": "7", "os.version": "1"}
        entry = {**raw(MANIFEST), "platform": arm, "annotations": {"a": "b"}}
        descriptor, body = document(
            MediaType.OCI_INDEX, manifests=[entry, raw(MANIFEST), {**raw(MANIFEST), "platform": {}}]
        )
        index = parse(descriptor, body)
        assert isinstance(index, Index)
        first, second, third = index.manifests
        self.assertEqual(first.platform, Platform("linux", "arm", "v7"))
        self.assertEqual(first.annotations, {"a": "b"})
        self.assertEqual((second, third), (MANIFEST, MANIFEST))

    def test_shape(self) -> None:
        """A document is what it is called, alone, or it is refused (CVE-2021-41190)."""
        index = {"schemaVersion": 2, "manifests": []}
        for kind, fields in (
            (MediaType.OCI_MANIFEST, index),
            (MediaType.OCI_INDEX, GOOD),
            (MediaType.OCI_MANIFEST, {**GOOD, **index}),
            (MediaType.OCI_INDEX, {**GOOD, **index}),
            (MediaType.OCI_INDEX, {**index, "layers": []}),
            (MediaType.OCI_INDEX, {**index, "mediaType": MediaType.OCI_MANIFEST}),
            (MediaType.OCI_MANIFEST, {**GOOD, "mediaType": MediaType.OCI_INDEX}),
            (MediaType.OCI_MANIFEST, {**GOOD, "mediaType": "a/b"}),
            (MediaType.OCI_MANIFEST, {"schemaVersion": 2}),
            (MediaType.OCI_MANIFEST, {"schemaVersion": 2, "layers": []}),
            (MediaType.OCI_CONFIG, GOOD),
            ("", GOOD),
        ):
            with self.assertRaises(MalformedDocument):
                read(kind, fields)

    def test_schema_1(self) -> None:
        """Docker's schema 1 is refused by its name, whatever shows it."""
        old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
        for kind, fields in (
            (old, {}),
            (MediaType.DOCKER_MANIFEST, {"schemaVersion": 1}),
            (MediaType.DOCKER_MANIFEST, {**GOOD, "fsLayers": []}),
        ):
            with self.assertRaises(MalformedDocument) as caught:
                read(kind, fields)
            self.assertIn("schema 1", caught.exception.reason)

    def test_bounds(self) -> None:
        """Too many layers or entries are refused."""
        read(MediaType.OCI_MANIFEST, {**GOOD, "layers": [raw(LAYER)] * LAYERS_LIMIT})
        for kind, fields in (
            (MediaType.OCI_MANIFEST, {**GOOD, "layers": [raw(LAYER)] * (LAYERS_LIMIT + 1)}),
            (
                MediaType.OCI_INDEX,
                {"schemaVersion": 2, "manifests": [raw(MANIFEST)] * (ENTRIES_LIMIT + 1)},
            ),
        ):
            with self.assertRaises(MalformedDocument) as caught:
                read(kind, fields)
            self.assertIn("more than", caught.exception.reason)

    def test_descriptors(self) -> None:
        """A descriptor with a bad size, digest, media type or platform is refused."""
        for bad in (
            {"size": -1},
            {"size": 1 << 63},
            {"size": 1 << 70},
            {"size": 1.5},
            {"size": "1"},
            {"size": None},
            {"digest": "md5:00"},
            {"digest": "sha256:" + "A" * 64},
            {"digest": "../../etc/passwd"},
            {"mediaType": ""},
            {"mediaType": "x"},
            {"mediaType": "a/b\n"},
            {"mediaType": "a/" + "b" * 300},
            {"annotations": {"a": 1}},
            {"platform": {"os": "\x1b[2J", "architecture": "amd64"}},
            {"platform": {"os": "a" * 65, "architecture": "amd64"}},
            {"platform": "linux/amd64"},
        ):
            with self.assertRaises(MalformedDocument):
                read(
                    MediaType.OCI_INDEX,
                    {"schemaVersion": 2, "manifests": [{**raw(MANIFEST), **bad}]},
                )
            with self.assertRaises(MalformedDocument):
                read(MediaType.OCI_MANIFEST, {**GOOD, "config": {**raw(CONFIG), **bad}})

    @given(st.binary(max_size=100))
    def test_any_bytes(self, body: bytes) -> None:
        """Bytes that are no document are malformed, and nothing worse."""
        for kind in (MediaType.OCI_MANIFEST, MediaType.OCI_INDEX):
            with self.assertRaises(MalformedDocument):
                parse(Descriptor(kind, Digest.of(body), len(body)), body)

    def test_deep(self) -> None:
        """Nesting without an end is malformed, and nothing worse."""
        body = b'{"schemaVersion": 2, "x": ' + b"[" * 200_000
        with self.assertRaises(MalformedDocument):
            parse(MANIFEST, body)


class MediaTypeTests(SynchronousTestCase):
    """What a document is when the registry does not say it."""

    def test_declared(self) -> None:
        """A media type that ctd knows is taken from the header, without parameters."""
        self.assertEqual(media_type(f"{MediaType.OCI_INDEX} ; x=y", b""), MediaType.OCI_INDEX)

    def test_undeclared(self) -> None:
        """Else the body says it, by its own field or by its shape."""
        self.assertEqual(media_type("", MANIFEST_BODY), MediaType.OCI_MANIFEST)
        for fields, kind in (
            (GOOD, MediaType.OCI_MANIFEST),
            ({**GOOD, "mediaType": MediaType.DOCKER_MANIFEST}, MediaType.DOCKER_MANIFEST),
            ({"schemaVersion": 2, "manifests": []}, MediaType.OCI_INDEX),
        ):
            self.assertEqual(media_type("text/plain", json.dumps(fields).encode()), kind)

    def test_neither(self) -> None:
        """A web page is no document."""
        with self.assertRaises(MalformedDocument):
            media_type("text/html", b"<html>")
