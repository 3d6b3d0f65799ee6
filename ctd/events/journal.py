"""The journal: events in the metadata database, followed from memory's edge or from disk.

The writing side runs inside other parts' transactions
(:class:`ctd.database.EventSink`).  A follower is a loop that reads pages after
the last ``seq`` it gave and, at the end, waits for the next commit; it holds
one page, so a slow one costs nothing and can miss nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ctd.database import Database, NewEvent, Schema, Transaction
from ctd.events.interfaces import Event, IJournal, Page, Selection, Trimmed
from ctd.model import rfc3339

SCHEMA = Schema(
    "events",
    (
        """
        CREATE TABLE events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            at TEXT NOT NULL,
            namespace TEXT NOT NULL,
            topic TEXT NOT NULL,
            subject TEXT NOT NULL,
            data TEXT NOT NULL
        );
        """,
    ),
)

#: The most events one page holds.
PAGE = 1000

#: How many events are kept, and after how many new ones the rest is trimmed.
KEEP = 100_000
TRIM_EVERY = 1_000

EVERYTHING = Selection()


@implementer(IJournal)
class Journal:
    """The journal of one daemon.

    :param now: the wall clock.
    :param keep: how many events are kept; older ones are trimmed from time to time.

    :meth:`use` tells it its database, which was made with it as its sink.
    """

    def __init__(self, now: Callable[[], datetime], keep: int = KEEP) -> None:
        self._now = now
        self._keep = keep
        self._database: Database | None = None
        self._waiting: list[Deferred[None]] = []

    def use(self, database: Database) -> None:
        """Read from *database*."""
        self._database = database

    def write(self, tx: Transaction, event: NewEvent) -> int:
        """See :class:`ctd.database.EventSink`."""
        seq = tx.insert(
            "INSERT INTO events (at, namespace, topic, subject, data) VALUES (?, ?, ?, ?, ?)",
            (
                rfc3339(self._now()),
                event.namespace,
                event.topic,
                event.subject,
                json.dumps(event.data, separators=(",", ":")),
            ),
        )
        if seq % TRIM_EVERY == 0:
            tx.execute("DELETE FROM events WHERE seq <= ?", (seq - self._keep,))
        return seq

    def committed(self, seq: int) -> None:
        """See :class:`ctd.database.EventSink`."""
        waiting, self._waiting = self._waiting, []
        for follower in waiting:
            if not follower.called:
                follower.callback(None)

    async def last(self) -> int:
        """See :class:`IJournal`."""
        assert self._database is not None
        return await self._database.transact(_last)

    async def list(
        self, since: int = 0, limit: int = 100, selection: Selection = EVERYTHING
    ) -> Page:
        """See :class:`IJournal`."""
        assert self._database is not None
        page, _ = await self._database.transact(
            lambda tx: _page(tx, since, max(1, min(limit, PAGE)), selection)
        )
        return page

    async def follow(
        self, since: int | None = None, selection: Selection = EVERYTHING
    ) -> AsyncIterator[Event | Trimmed]:
        """See :class:`IJournal`."""
        assert self._database is not None
        cursor = await self.last() if since is None else since
        while True:
            news: Deferred[None] = Deferred(lambda _: None)
            self._waiting.append(news)
            at = cursor
            page, seen = await self._database.transact(
                lambda tx, at=at: _page(tx, at, 256, selection)  # type: ignore[misc]
            )
            if page.trimmed is not None:
                yield page.trimmed
            for event in page.items:
                yield event
            cursor = max(cursor, seen)
            if page.next is None and not news.called:
                await news


def _last(tx: Transaction) -> int:
    row = tx.one("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    return row[0] if row else 0


def _page(tx: Transaction, since: int, limit: int, selection: Selection) -> tuple[Page, int]:
    """A page, and the ``seq`` up to which everything selected has now been given."""
    last = _last(tx)
    oldest_row = tx.one("SELECT min(seq) FROM events")
    oldest = oldest_row[0] if oldest_row and oldest_row[0] is not None else last + 1
    trimmed = Trimmed(since, oldest) if since + 1 < oldest else None
    where: list[str] = ["seq > ?"]
    parameters: list[Any] = [since]
    if selection.namespace is not None:
        where.append("namespace IN (?, '')")
        parameters.append(selection.namespace)
    if selection.topics:
        where.append("(" + " OR ".join("topic GLOB ?" for _ in selection.topics) + ")")
        parameters += [_glob(topic) for topic in selection.topics]
    rows = tx.all(
        f"SELECT * FROM events WHERE {' AND '.join(where)} ORDER BY seq LIMIT ?",
        [*parameters, limit + 1],
    )
    more = len(rows) > limit
    items = [
        Event(r["seq"], r["at"], r["namespace"], r["topic"], r["subject"], json.loads(r["data"]))
        for r in rows[:limit]
    ]
    return Page(items, items[-1].seq if more else None, trimmed), items[-1].seq if more else last


def _glob(topic: str) -> str:
    """*topic* as a GLOB pattern in which only a final ``*`` is special."""
    literal, star = (topic[:-1], "*") if topic.endswith("*") else (topic, "")
    return "".join(f"[{c}]" if c in "*?[" else c for c in literal) + star
