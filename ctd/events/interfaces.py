"""What events offers: a durable journal of what happened, in the order it became true."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
from zope.interface import Interface

from ctd.database import NewEvent, Transaction


@attrs.frozen
class Event:
    """Something that happened.

    :ivar seq: strictly increasing, never used twice.
    :ivar at: RFC 3339, UTC.
    :ivar topic: ``container.exited`` ...
    :ivar subject: the id of what it happened to; for processes ``container/process``.
    """

    seq: int
    at: str
    namespace: str
    topic: str
    subject: str
    data: dict[str, Any]


@attrs.frozen
class Trimmed:
    """Told to a follower once, first, if events after its ``since`` are no longer kept.

    :ivar oldest: the oldest ``seq`` still kept.
    """

    since: int
    oldest: int


@attrs.frozen
class Page:
    """Some events.  :ivar next: the ``since`` of the next page, or None at the end."""

    items: Sequence[Event]
    next: int | None
    trimmed: Trimmed | None = None


@attrs.frozen
class Selection:
    """Which events: of one namespace (None: all) and some topics (empty: all).

    A topic may end in ``*``: ``container.*``.
    """

    namespace: str | None = None
    topics: tuple[str, ...] = ()


class IJournal(Interface):
    """The journal.  Its writing side is the database's :class:`ctd.database.EventSink`."""

    def write(tx: Transaction, event: NewEvent) -> int:
        """See :class:`ctd.database.EventSink`."""

    def committed(seq: int) -> None:
        """See :class:`ctd.database.EventSink`."""

    async def last() -> int:
        """The newest ``seq`` there has ever been, 0 if none."""

    async def list(since: int = 0, limit: int = 100, selection: Selection = ...) -> Page:
        """Events with ``seq`` > *since*, oldest first, at most *limit* (at most 1000)."""

    def follow(
        since: int | None = None, selection: Selection = ...
    ) -> AsyncIterator[Event | Trimmed]:
        """Every event after *since* (None: from now on), then each new one as it is committed.

        Each is given once, in order.  A follower that is slow costs nothing:
        it reads on from the database where it is.
        """
