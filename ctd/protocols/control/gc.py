"""gc.*"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ctd.model import plain
from ctd.protocols.call import Call
from ctd.protocols.control.results import Result, shaped
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params
from ctd.storage.interfaces import IGarbageCollector

#: The most removed things that are named in the answer.
NAMED = 1000


class GcParams(Params, frozen=True, kw_only=True):
    """How."""

    dry_run: Annotated[bool, Meta(description="Say what would be removed, remove nothing.")] = False


class Removed(Result, frozen=True, kw_only=True):
    """A thing that nothing needed."""

    kind: Annotated[str, Meta(description="`content` or `snapshot/<snapshotter>`.")]
    key: str


class Collected(Result, frozen=True, kw_only=True):
    """What a collection did."""

    removed: Annotated[list[Removed], Meta(description=f"The first {NAMED} of them.")]
    removed_count: int
    kept: Annotated[int, Meta(description="How many things are needed.")]
    size: Annotated[int, Meta(description="Bytes of content given back.")]


class GarbageCollection:
    """The method of the garbage collector, which works on all namespaces together."""

    def __init__(self, collector: IGarbageCollector) -> None:
        self._collector = collector

    @method(
        "gc.run",
        examples=(
            Example(
                {"dry_run": True},
                {
                    "removed": [{"kind": "content", "key": "sha256:" + 64 * "a"}],
                    "removed_count": 1,
                    "kept": 12,
                    "size": 528,
                },
            ),
        ),
    )
    async def run(self, call: Call, params: GcParams) -> Collected:
        """Remove the content and the layers that no image, container or lease leads to."""
        done = await self._collector.collect(params.dry_run)
        facts = {
            "removed": plain(done.removed[:NAMED]),
            "removed_count": len(done.removed),
            "kept": done.kept,
            "size": done.size,
        }
        return shaped(facts, Collected)
