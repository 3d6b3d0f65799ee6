"""namespaces.*"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from msgspec import Meta

from ctd.images.interfaces import IImages
from ctd.protocols.call import Call
from ctd.protocols.control.results import ListParams, Page, Result, paged
from ctd.protocols.methods import Example, method
from ctd.runtime.interfaces import IContainers


class NamespaceResult(Result, frozen=True, kw_only=True):
    """A namespace: names of images and containers that do not meet those of others."""

    name: str
    containers: Annotated[int, Meta(description="How many it has.")]
    images: Annotated[int, Meta(description="How many it has.")]


class NamespacePage(Page, frozen=True, kw_only=True):
    """Some namespaces, by name."""

    items: list[NamespaceResult]


class Namespaces:
    """The methods of namespaces.  A namespace is there as soon as something is in it."""

    def __init__(self, containers: IContainers, images: IImages) -> None:
        self._containers = containers
        self._images = images

    @method(
        "namespaces.list",
        examples=(
            Example(
                {}, {"items": [{"name": "default", "containers": 2, "images": 1}], "next": None}
            ),
        ),
    )
    async def list(self, call: Call, params: ListParams) -> NamespacePage:
        """The namespaces that hold anything, and `default`."""
        containers = Counter(c.namespace for c in await self._containers.list(None))
        images = Counter(i.namespace for i in await self._images.list(None))
        items, next = paged(
            {"default", *containers, *images},
            params,
            lambda name: (name,),
            lambda name: NamespaceResult(
                name=name, containers=containers[name], images=images[name]
            ),
        )
        return NamespacePage(items=items, next=next)
