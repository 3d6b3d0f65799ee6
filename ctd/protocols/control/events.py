"""events.*"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

from msgspec import Meta

from ctd.events.interfaces import Event as EventValue
from ctd.events.interfaces import IJournal, Selection, Trimmed
from ctd.model import plain
from ctd.protocols.call import Call
from ctd.protocols.control.results import Done, Result, Time, shaped
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params

Topics = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=128)]],
    Meta(max_length=64, description="`container.exited`, `container.*` ...; empty: all."),
]
Seq = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_EXAMPLE = {
    "seq": 42,
    "at": "2026-01-02T03:04:07.000000Z",
    "namespace": "default",
    "topic": "container.exited",
    "subject": "web",
    "data": {"exit_status": 0},
}


class Event(Result, frozen=True, kw_only=True):
    """Something that happened."""

    seq: Annotated[int, Meta(description="Strictly increasing, never used twice.")]
    at: Time
    namespace: str
    topic: str
    subject: Annotated[str, Meta(description="The id of what it happened to.")]
    data: dict[str, Any]


class Gap(Result, frozen=True, kw_only=True):
    """Events after `since` are no longer kept; those from `oldest` on are."""

    since: int
    oldest: int


class EventPage(Result, frozen=True, kw_only=True):
    """Some events, oldest first."""

    items: list[Event]
    next: Annotated[
        int | None,
        Meta(description="Give it as `cursor` to get the next page; null at the end."),
    ] = None
    trimmed: Gap | None = None


class SelectParams(Params, frozen=True, kw_only=True):
    """Which events."""

    topics: Topics = []
    all_namespaces: bool = False


class EventListParams(SelectParams, frozen=True, kw_only=True):
    """A page of events."""

    since: Annotated[Seq, Meta(description="The `seq` after which to begin.")] = 0
    limit: Annotated[int, Meta(ge=1, le=1000, description="The most events of a page.")] = 100
    cursor: Annotated[
        Seq | None, Meta(description="`next` of the page before; goes before `since`.")
    ] = None


class SubscribeParams(SelectParams, frozen=True, kw_only=True):
    """From where on."""

    since: Annotated[
        Seq | None, Meta(description="The last `seq` seen already; null: from now on.")
    ] = None


class Events:
    """The methods of the journal."""

    def __init__(self, journal: IJournal) -> None:
        self._journal = journal

    @method(
        "events.list",
        examples=(Example({"since": 41}, {"items": [_EXAMPLE], "next": None, "trimmed": None}),),
    )
    async def list(self, call: Call, params: EventListParams) -> EventPage:
        """Events that were, oldest first."""
        since = params.since if params.cursor is None else params.cursor
        page = await self._journal.list(since, params.limit, _selection(params))
        return shaped(page, EventPage)

    @method("events.subscribe")
    async def subscribe(self, call: Call, params: SubscribeParams) -> Done:
        """Send every event after `since`, then each new one, until the call is cancelled.

        They come as `event` notifications.  The first one has `{"call",
        "subscribed": {"since"}}`: from now on every event with a greater `seq`
        will be sent, once, in order.  The others have `{"call", "event"}`.
        Where the journal was trimmed past `since`, one with `{"call",
        "trimmed": {"since", "oldest"}}` comes before the first event.  A client
        that reads slowly misses nothing.
        """
        since = await self._journal.last() if params.since is None else params.since
        call.notify("event", {"subscribed": {"since": since}})
        following = cast(
            "AsyncGenerator[EventValue | Trimmed, None]",
            self._journal.follow(since, _selection(params)),
        )
        async with aclosing(following) as events:
            async for event in events:
                await call.drained()
                what = "trimmed" if isinstance(event, Trimmed) else "event"
                call.notify("event", {what: plain(event)})
        return Done()


def _selection(params: SelectParams) -> Selection:
    return Selection(None if params.all_namespaces else params.namespace, tuple(params.topics))
