"""Pull: resolve, then for each layer fetch and unpack at the same time, all layers together.

The order of what becomes true is what keeps a cut harmless: blobs and layer
snapshots are committed only verified, documents are stored with the blobs they
need, and the name (given by the caller, :mod:`ctd.images.service`) comes last.
Until it does, a hold keeps the garbage collector away.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred

from ctd.concurrency import shielded, together
from ctd.errors import FailedPrecondition, NotFound, ResourceExhausted
from ctd.fetch.documents import parse
from ctd.fetch.interfaces import Document, Index, IRegistry, Manifest
from ctd.fetch.platforms import choose
from ctd.fetch.reference import Reference
from ctd.images.documents import ImageConfig, MalformedConfig, chain_ids
from ctd.images.download import Downloads
from ctd.images.progress import LayerProgress, Progress
from ctd.model import Descriptor, MediaType, Platform
from ctd.storage.interfaces import (
    READ_LIMIT,
    SHARED,
    IContentStore,
    IGarbageCollector,
    IUnpacker,
    Layer,
    Resource,
    UnpackProgress,
)

#: Kinds of errors after which the same pull may succeed: what has come is kept for it.
_PASSING = {"unavailable", "aborted", "deadline_exceeded"}


@attrs.frozen
class Pulled:
    """What a pull brought: all of it is stored, verified and unpacked.

    :ivar chain_id: the topmost layer's, or empty for an image without layers.
    :ivar size: of all its content, in bytes.
    """

    target: Descriptor
    manifest: Descriptor
    config: Descriptor
    chain_id: str
    size: int


class Puller:
    """Pulls images and unpacks those that are here."""

    def __init__(
        self,
        registry: IRegistry,
        content: IContentStore,
        unpacker: IUnpacker,
        collector: IGarbageCollector,
        downloads: Downloads,
    ) -> None:
        self._registry = registry
        self._content = content
        self._unpacker = unpacker
        self._collector = collector
        self._downloads = downloads

    async def pull(
        self,
        reference: Reference,
        platform: Platform,
        snapshotter: str,
        progress: Progress,
        holds: list[Callable[[], None]],
        plain_http: bool | None = None,
    ) -> Pulled:
        """Bring *reference* here for *platform*.

        :param plain_http: see :class:`ctd.fetch.interfaces.IRegistry`.
        :param holds: gets what releases the holds, for the caller to call when
            the image has its name, or when all has failed.
        """
        target = await self._registry.resolve(reference, plain_http)
        document = parse(target.descriptor, target.body)
        index, manifest_document = None, target
        if isinstance(document, Index):
            index = document
            chosen = choose(document, platform)
            manifest_document = await self._registry.manifest(reference, chosen, plain_http)
            document = parse(manifest_document.descriptor, manifest_document.body)
        if not isinstance(document, Manifest):
            raise NotFound("manifest in an index of indexes", str(reference))
        self._hold(holds, target.descriptor, document.descriptor, document.config, *document.layers)
        await self._downloads.fetch(reference, document.config, lambda _: None, plain_http)
        config = await self._config(document)
        chain = chain_ids(config.diff_ids)
        self._hold_layers(holds, snapshotter, chain)
        await self._store(manifest_document, (document.config, *document.layers))
        if index is not None:
            await self._store(target, index.manifests)
        layers = _layers(document, config, chain)
        states = progress.layers(document.layers)
        downloading = [self._download(reference, state, progress, plain_http) for state in states]
        try:
            await together(downloading + self._unpacking(snapshotter, layers, states, progress))
        except Exception as error:
            passing = isinstance(error, CancelledError) or getattr(error, "kind", "") in _PASSING
            await shielded(self._downloads.forget(document.layers, empty=passing))
            raise
        progress.phase("done")
        documents = {d.digest: d.size for d in (target.descriptor, document.descriptor)}
        blobs = {d.digest: d.size for d in (document.config, *document.layers)}
        return Pulled(
            target.descriptor,
            document.descriptor,
            document.config,
            chain[-1] if chain else "",
            sum(documents.values()) + sum(blobs.values()),
        )

    async def unpack(
        self, manifest: Descriptor, snapshotter: str, holds: list[Callable[[], None]]
    ) -> str:
        """Unpack an image whose content is here, and give its topmost chain ID.

        :param holds: as for :meth:`pull`.
        :raise NotFound: some of its content is not here.
        """
        body = await self._content.read(manifest.digest)
        document = parse(manifest, body)
        if not isinstance(document, Manifest):
            raise FailedPrecondition("manifest", str(manifest.digest), "it is an index")
        config = await self._config(document)
        chain = chain_ids(config.diff_ids)
        self._hold_layers(holds, snapshotter, chain)
        layers = _layers(document, config, chain)
        for layer in layers:
            await self._content.info(layer.blob.digest)
        progress = Progress()
        states = progress.layers(document.layers)
        await together(self._unpacking(snapshotter, layers, states, progress))
        return chain[-1] if chain else ""

    def _hold(self, holds: list[Callable[[], None]], *descriptors: Descriptor) -> None:
        holds.append(
            self._collector.hold([Resource("content", str(d.digest)) for d in descriptors])
        )

    def _hold_layers(
        self, holds: list[Callable[[], None]], snapshotter: str, chain: Sequence[str]
    ) -> None:
        kind = f"snapshot/{snapshotter}"
        holds.append(self._collector.hold([Resource(kind, f"{SHARED}/{c}") for c in chain]))

    async def _config(self, manifest: Manifest) -> ImageConfig:
        if manifest.config.size > READ_LIMIT:
            raise ResourceExhausted("size of the image configuration in bytes", READ_LIMIT)
        body = await self._content.read(manifest.config.digest)
        config = ImageConfig.parse(manifest.config.digest, body)
        if len(config.diff_ids) != len(manifest.layers):
            counts = f"{len(config.diff_ids)} diff IDs for {len(manifest.layers)} layers"
            raise MalformedConfig(str(manifest.config.digest), counts)
        return config

    async def _store(self, document: Document, children: Sequence[Descriptor]) -> None:
        await self._content.put(document.descriptor, document.body, [c.digest for c in children])

    async def _download(
        self,
        reference: Reference,
        layer: LayerProgress,
        progress: Progress,
        plain_http: bool | None,
    ) -> None:
        def arrived(offset: int) -> None:
            progress.downloaded(layer, offset)

        await self._downloads.fetch(reference, layer.descriptor, arrived, plain_http)

    def _unpacking(
        self,
        snapshotter: str,
        layers: Sequence[Layer],
        states: Sequence[LayerProgress],
        progress: Progress,
    ) -> list[Coroutine[Any, Any, None]]:
        """One coroutine a layer; each hands its chain ID to the next one's."""
        done: list[Deferred[str | None]] = [Deferred() for _ in layers]
        below: Deferred[str | None] = Deferred()
        below.callback(None)

        async def one(
            layer: Layer,
            state: LayerProgress,
            parent: Deferred[str | None],
            mine: Deferred[str | None],
        ) -> None:
            def read(how_far: UnpackProgress) -> None:
                progress.unpacked(state, how_far.read)

            source = self._content.source(layer.blob)
            chain_id = await self._unpacker.unpack(snapshotter, layer, parent, source, read)
            progress.unpacked(state, 0, done=True)
            mine.callback(chain_id)

        work = []
        for layer, state, mine in zip(layers, states, done, strict=True):
            work.append(one(layer, state, below, mine))
            below = mine
        return work


def _layers(manifest: Manifest, config: ImageConfig, chain: Sequence[str]) -> list[Layer]:
    for layer in manifest.layers:
        if layer.media_type not in MediaType.LAYERS:
            raise FailedPrecondition(
                "layer", str(layer.digest), f"ctd cannot unpack {layer.media_type!r}"
            )
    return [
        Layer(blob, diff_id, chain_id)
        for blob, diff_id, chain_id in zip(manifest.layers, config.diff_ids, chain, strict=True)
    ]
