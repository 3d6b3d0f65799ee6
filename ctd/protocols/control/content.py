"""content.*"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ctd.errors import InvalidArgument
from ctd.model import Digest
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
from ctd.storage.interfaces import IContentStore

#: The most bytes one content.read gives: in base64 they fit a line.
READ = 2 << 20

_DIGEST = "sha256:" + 64 * "a"
_BLOB = {
    "digest": _DIGEST,
    "size": 528,
    "created_at": "2026-01-02T03:04:05.678901Z",
    "labels": {},
}


class Blob(Result, frozen=True, kw_only=True):
    """A stored blob; it was verified when it was stored."""

    digest: DigestText
    size: Annotated[int, Meta(description="In bytes.")]
    created_at: Time
    labels: dict[str, str]


class BlobPage(Page, frozen=True, kw_only=True):
    """Some blobs, by digest."""

    items: list[Blob]


class Ingest(Result, frozen=True, kw_only=True):
    """A blob on its way."""

    ref: str
    offset: Annotated[int, Meta(description="Bytes on disk.")]
    total: Annotated[int, Meta(description="Bytes it will have.")]
    expected: DigestText
    started_at: Time


class IngestPage(Page, frozen=True, kw_only=True):
    """Some ingests, by ref."""

    items: list[Ingest]


class BlobParams(Params, frozen=True, kw_only=True):
    """Which blob."""

    digest: DigestText


class IngestParams(Params, frozen=True, kw_only=True):
    """Which ingest."""

    ref: Annotated[str, Meta(min_length=1, max_length=4096)]


class ReadParams(BlobParams, frozen=True, kw_only=True):
    """Which part of which blob."""

    offset: Annotated[int, Meta(ge=0)] = 0
    length: Annotated[int, Meta(ge=1, le=READ, description="The most bytes to give.")] = READ


class Part(Result, frozen=True, kw_only=True):
    """Some bytes of a blob."""

    data: Annotated[bytes, Meta(description="In base64.")]
    offset: Annotated[int, Meta(description="Where in the blob they begin.")]
    size: Annotated[int, Meta(description="Of the whole blob.")]
    eof: Annotated[bool, Meta(description="Whether they reach the blob's end.")]


class Content:
    """The methods of the content store.  Blobs belong to all namespaces together."""

    def __init__(self, content: IContentStore) -> None:
        self._content = content

    @method("content.list", examples=(Example({}, {"items": [_BLOB], "next": None}),))
    async def list(self, call: Call, params: ListParams) -> BlobPage:
        """Every blob, by digest."""
        items, next = paged(
            await self._content.list(),
            params,
            lambda b: (str(b.digest),),
            lambda b: shaped(b, Blob),
        )
        return BlobPage(items=items, next=next)

    @method("content.info", errors=("not_found",), examples=(Example({"digest": _DIGEST}, _BLOB),))
    async def info(self, call: Call, params: BlobParams) -> Blob:
        """A blob's record."""
        return shaped(await self._content.info(Digest.parse(params.digest)), Blob)

    @method(
        "content.read",
        errors=("not_found", "data_loss"),
        examples=(
            Example(
                {"digest": _DIGEST, "offset": 512, "length": 64},
                {"data": "eyJ9Cg==", "offset": 512, "size": 516, "eof": True},
            ),
        ),
    )
    async def read(self, call: Call, params: ReadParams) -> Part:
        """Some bytes of a blob, in base64; ask again from `offset` + their number for more."""
        digest = Digest.parse(params.digest)
        size = (await self._content.info(digest)).size
        if params.offset > size:
            raise InvalidArgument("offset", f"is past the blob's end, {size}")
        length = min(params.length, size - params.offset)
        data = await self._content.read(digest, params.offset, length) if length else b""
        return Part(
            data=data,
            offset=params.offset,
            size=size,
            eof=params.offset + len(data) >= size,
        )

    @method("content.delete", errors=("not_found",), examples=(Example({"digest": _DIGEST}, {}),))
    async def delete(self, call: Call, params: BlobParams) -> Done:
        """Remove a blob, whether anything needs it or not."""
        await self._content.delete(Digest.parse(params.digest))
        return Done()

    @method(
        "content.active",
        examples=(
            Example(
                {},
                {
                    "items": [
                        {
                            "ref": "layer-" + _DIGEST,
                            "offset": 1048576,
                            "total": 3621376,
                            "expected": _DIGEST,
                            "started_at": "2026-01-02T03:04:05.678901Z",
                        }
                    ],
                    "next": None,
                },
            ),
        ),
    )
    async def active(self, call: Call, params: ListParams) -> IngestPage:
        """Every blob that is on its way, or was when its writer stopped."""
        items, next = paged(
            await self._content.ingests(), params, lambda i: (i.ref,), lambda i: shaped(i, Ingest)
        )
        return IngestPage(items=items, next=next)

    @method(
        "content.abort",
        errors=("not_found", "aborted"),
        examples=(Example({"ref": "layer-" + _DIGEST}, {}),),
    )
    async def abort(self, call: Call, params: IngestParams) -> Done:
        """Forget a blob that is half there and that nobody writes."""
        await self._content.abort(params.ref)
        return Done()
