"""Manifests and indexes, read from bytes that a registry sent.

OCI image-spec, ``manifest.md`` and ``image-index.md``; Docker's image manifest
version 2, schema 2.  What a document is must be clear: bytes that read both as
a manifest and as an index, or as something else than their media type says,
are refused (CVE-2021-41190).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ctd.errors import CtdError
from ctd.fetch.errors import MalformedDocument
from ctd.fetch.interfaces import Index, Manifest
from ctd.model import Descriptor, Digest, MediaType, Platform

#: The most layers of a manifest, and the most entries of an index.
LAYERS_LIMIT = 1000
ENTRIES_LIMIT = 4096

_SCHEMA_1 = "it is Docker's schema 1, which is obsolete: push it again with a current tool"
_SCHEMA_1_TYPE = "application/vnd.docker.distribution.manifest.v1+"
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*")


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str | None = None


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    """The fields of a manifest, an index and a schema 1 manifest, to see which it is."""

    schema_version: int = 0
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    fs_layers: Any = None


def parse(descriptor: Descriptor, body: bytes) -> Manifest | Index:
    """Read *body*, which is what *descriptor* points to.

    OCI's and Docker's media types of the same kind stand for each other.

    :raise MalformedDocument: it is neither, or not what its media type says.
    """
    kind = _kind(descriptor.media_type)
    if kind is None:
        raise _unreadable(descriptor.media_type)
    document = _decode(kind, body)
    if document.media_type and _kind(document.media_type) != kind:
        raise MalformedDocument(kind, f"it calls itself {document.media_type[:100]!r}")
    if _shape(document) != kind:
        raise MalformedDocument(kind, f"it has not the fields of {kind} alone")
    try:
        if kind == "index":
            return _index(descriptor, document)
        return _manifest(descriptor, document)
    except MalformedDocument:
        raise
    except CtdError as error:
        raise MalformedDocument(kind, str(error)) from None


def media_type(declared: str, body: bytes) -> str:
    """The media type of *body*: *declared* if that names one, else what the body says it is.

    :param declared: a Content-Type, or empty.
    :raise MalformedDocument: the body is no manifest or index either.
    """
    declared = declared.partition(";")[0].strip().lower()
    if _kind(declared) or declared.startswith(_SCHEMA_1_TYPE):
        return declared
    document = _decode("document", body)
    if document.media_type:
        return document.media_type
    return MediaType.OCI_INDEX if _shape(document) == "index" else MediaType.OCI_MANIFEST


def _kind(media_type: str) -> str | None:
    if media_type in MediaType.MANIFESTS:
        return "manifest"
    return "index" if media_type in MediaType.INDEXES else None


def _unreadable(media_type: str) -> MalformedDocument:
    if media_type.startswith(_SCHEMA_1_TYPE):
        return MalformedDocument("manifest", _SCHEMA_1)
    return MalformedDocument("document", f"ctd does not read {media_type[:100]!r}")


def _decode(what: str, body: bytes) -> _Document:
    try:
        document = msgspec.json.decode(body, type=_Document)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedDocument(what, str(error)) from None
    if document.schema_version == 1 or document.fs_layers is not None:
        raise MalformedDocument(what, _SCHEMA_1)
    if document.schema_version != 2:
        raise MalformedDocument(what, "its schemaVersion is not 2")
    return document


def _shape(document: _Document) -> str | None:
    """What a document is by its fields; None if it has those of both, or of neither."""
    config, layers = document.config is not None, document.layers is not None
    if document.manifests is None:
        return "manifest" if config and layers else None
    return None if config or layers else "index"


def _manifest(descriptor: Descriptor, document: _Document) -> Manifest:
    layers = document.layers or []
    if len(layers) > LAYERS_LIMIT:
        raise MalformedDocument("manifest", f"it has more than {LAYERS_LIMIT} layers")
    assert document.config is not None
    return Manifest(
        descriptor,
        _descriptor(document.config, "config"),
        tuple(_descriptor(raw, f"layers[{at}]") for at, raw in enumerate(layers)),
    )


def _index(descriptor: Descriptor, document: _Document) -> Index:
    entries = document.manifests or []
    if len(entries) > ENTRIES_LIMIT:
        raise MalformedDocument("index", f"it has more than {ENTRIES_LIMIT} manifests")
    return Index(
        descriptor,
        tuple(_descriptor(raw, f"manifests[{at}]") for at, raw in enumerate(entries)),
    )


def _descriptor(raw: _Descriptor, where: str) -> Descriptor:
    if not 0 <= raw.size < 1 << 63:
        raise MalformedDocument(where, f"{raw.size} is no size in bytes")
    if len(raw.media_type) > 255 or not _MEDIA_TYPE.fullmatch(raw.media_type):
        raise MalformedDocument(where, f"{raw.media_type[:100]!r} is no media type")
    return Descriptor(
        raw.media_type,
        Digest.parse(raw.digest, f"{where}.digest"),
        raw.size,
        _platform(raw.platform, where) if raw.platform is not None else None,
        raw.annotations or {},
    )


def _platform(raw: _Platform, where: str) -> Platform | None:
    words = [raw.os, raw.architecture, raw.variant or ""]
    if not any(words):
        return None
    if not all(_WORD.fullmatch(word) for word in words if word):
        raise MalformedDocument(f"{where}.platform", "its words are not of A-Z a-z 0-9 _ . -")
    return Platform(*(word.lower() for word in words)).normalised()
