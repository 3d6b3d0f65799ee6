"""images.*"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ctd.images.interfaces import IImages, PullProgress
from ctd.images.interfaces import Image as ImageValue
from ctd.model import Platform, plain
from ctd.protocols.call import Call
from ctd.protocols.control.results import (
    DigestText,
    Done,
    ListParams,
    Page,
    Result,
    Time,
    paged,
    shaped,
)
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params

Reference = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="An image by name (`alpine`, `ghcr.io/a/b:1`) or `name@sha256:<hex>`.",
    ),
]
_EXAMPLE = {
    "name": "docker.io/library/alpine:latest",
    "namespace": "default",
    "target": {
        "media_type": "application/vnd.oci.image.index.v1+json",
        "digest": "sha256:" + 64 * "a",
        "size": 9218,
        "platform": None,
        "annotations": {},
    },
    "size": 3639808,
    "labels": {},
    "created_at": "2026-01-02T03:04:05.678901Z",
    "updated_at": "2026-01-02T03:04:05.678901Z",
}


class Descriptor(Result, frozen=True, kw_only=True):
    """A pointer to content (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: DigestText
    size: Annotated[int, Meta(description="In bytes.")]
    platform: str | None = None
    annotations: dict[str, str] = {}


class Image(Result, frozen=True, kw_only=True):
    """A named image."""

    name: Annotated[str, Meta(description="The full name.")]
    namespace: str
    target: Descriptor
    size: Annotated[int, Meta(description="Of its content here, in bytes.")]
    labels: dict[str, str]
    created_at: Time
    updated_at: Time


class ImagePage(Page, frozen=True, kw_only=True):
    """Some images, by name."""

    items: list[Image]


class ImageParams(Params, frozen=True, kw_only=True):
    """Which image."""

    ref: Reference


class ImageListParams(ListParams, frozen=True, kw_only=True):
    """Which images."""

    all_namespaces: bool = False


class PullParams(ImageParams, frozen=True, kw_only=True):
    """What to pull."""

    platform: Annotated[
        str | None, Meta(description="`os/architecture[/variant]`; null: this machine's.")
    ] = None
    snapshotter: Annotated[
        str | None, Meta(description="Where to unpack it; null: the default one.")
    ] = None
    plain_http: Annotated[
        bool | None,
        Meta(description="Whether to use HTTP without TLS; null: for loopback addresses only."),
    ] = None


class TagParams(Params, frozen=True, kw_only=True):
    """Which image, and its new name."""

    source: Reference
    target: Reference


class Config(Result, frozen=True, kw_only=True):
    """An image's configuration."""

    config: Annotated[dict[str, Any], Meta(description="As in OCI image-spec, config.md.")]


class Images:
    """The methods of images."""

    def __init__(self, images: IImages) -> None:
        self._images = images

    @method(
        "images.pull",
        errors=(
            "not_found",
            "unauthenticated",
            "unavailable",
            "data_loss",
            "resource_exhausted",
            "aborted",
        ),
        examples=(Example({"ref": "alpine"}, _EXAMPLE),),
    )
    async def pull(self, call: Call, params: PullParams) -> Image:
        """Fetch an image from its registry and unpack it.

        Meanwhile `progress` notifications tell `phase` (resolving,
        downloading, unpacking, done), the bytes `downloaded` and `unpacked` of
        `total`, and `layers`.  Any number may pull the same image at once: it
        is fetched once, and goes on while anybody waits for it.
        """

        def progress(at: PullProgress) -> None:
            call.progress(plain(at))

        platform = None if params.platform is None else Platform.parse(params.platform)
        image = await self._images.pull(
            params.namespace,
            params.ref,
            platform=platform,
            snapshotter=params.snapshotter,
            progress=progress,
            plain_http=params.plain_http,
        )
        return shaped(image, Image)

    @method("images.list", examples=(Example({}, {"items": [_EXAMPLE], "next": None}),))
    async def list(self, call: Call, params: ImageListParams) -> ImagePage:
        """The images of a namespace, by name."""
        images = await self._images.list(None if params.all_namespaces else params.namespace)
        items, next = paged(images, params, _key, lambda i: shaped(i, Image))
        return ImagePage(items=items, next=next)

    @method("images.get", errors=("not_found",), examples=(Example({"ref": "alpine"}, _EXAMPLE),))
    async def get(self, call: Call, params: ImageParams) -> Image:
        """An image by name or digest."""
        return shaped(await self._images.get(params.namespace, params.ref), Image)

    @method(
        "images.config",
        errors=("not_found", "data_loss"),
        examples=(
            Example({"ref": "alpine"}, {"config": {"os": "linux", "architecture": "amd64"}}),
        ),
    )
    async def config(self, call: Call, params: ImageParams) -> Config:
        """The configuration of an image, for this machine's platform."""
        config = await self._images.config(params.namespace, params.ref)
        return Config(config=plain(config))

    @method(
        "images.tag",
        errors=("not_found",),
        examples=(Example({"source": "alpine", "target": "localhost:5000/a:1"}, _EXAMPLE),),
    )
    async def tag(self, call: Call, params: TagParams) -> Image:
        """Give an image another name; an image that had that name loses it."""
        image = await self._images.tag(params.namespace, params.source, params.target)
        return shaped(image, Image)

    @method("images.delete", errors=("not_found",), examples=(Example({"ref": "alpine"}, {}),))
    async def delete(self, call: Call, params: ImageParams) -> Done:
        """Take a name away; content and layers that nothing else needs are collected."""
        await self._images.delete(params.namespace, params.ref)
        return Done()


def _key(image: ImageValue) -> tuple[str, ...]:
    return (image.name, image.namespace)
