"""From the parts' frozen values to what goes over the wire, and pages of it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ctd.errors import InvalidArgument
from ctd.model import plain
from ctd.protocols.params import Params

#: The most bytes of items in one page, so that it fits a line whatever the items are.
PAGE_BYTES = 2 << 20

Time = Annotated[str, Meta(description="RFC 3339, UTC.", extra_json_schema={"format": "date-time"})]
DigestText = Annotated[
    str,
    Meta(
        description="`sha256:<hex>` or `sha512:<hex>`.",
        max_length=135,
        examples=["sha256:" + 64 * "0"],
    ),
]
Limit = Annotated[int, Meta(ge=1, le=1000, description="The most items of a page.")]
Cursor = Annotated[
    str | None, Meta(description="`next` of the page before; null for the first page.")
]
Next = Annotated[
    str | None, Meta(description="Give it as `cursor` to get the next page; null at the end.")
]

R = TypeVar("R")
V = TypeVar("V")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The base of results."""


class Done(Result, frozen=True, kw_only=True):
    """Nothing but success."""


class ListParams(Params, frozen=True, kw_only=True):
    """A page of a namespace's things."""

    limit: Limit = 1000
    cursor: Cursor = None


class Page(Result, frozen=True, kw_only=True):
    """The base of pages."""

    next: Next = None


def shaped(value: Any, type: type[R]) -> R:
    """A frozen value as a result struct: fields of the same names."""
    return msgspec.convert(plain(value), type)


def paged(
    values: Iterable[V],
    params: ListParams,
    key: Callable[[V], tuple[str, ...]],
    shape: Callable[[V], R],
) -> tuple[list[R], str | None]:
    """The page that *params* ask for, and the cursor of the next one.

    :param key: what orders the values and tells them apart; pages are taken by
        it, so that what comes and goes meanwhile neither hides nor doubles others.
    :raise InvalidArgument: the cursor is not one.
    """
    after = None if params.cursor is None else _uncursor(params.cursor)
    items: list[R] = []
    size = 0
    last: tuple[str, ...] | None = None
    for at, value in sorted(((key(v), v) for v in values), key=lambda pair: pair[0]):
        if after is not None and at <= after:
            continue
        item = shape(value)
        size += len(msgspec.json.encode(item))
        if last is not None and (len(items) == params.limit or size > PAGE_BYTES):
            return items, _cursor(last)
        items.append(item)
        last = at
    return items, None


def _cursor(key: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode()


def _uncursor(text: str) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(
            base64.b64decode(text.encode(), b"-_", validate=True), type=tuple[str, ...]
        )
    except (msgspec.DecodeError, UnicodeError, binascii.Error, RecursionError):
        raise InvalidArgument("cursor", "is not the `next` of a page") from None
