"""The journal on a real database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from ctd.database import Database
from ctd.events.interfaces import Event, IJournal, Selection, Trimmed
from ctd.events.journal import SCHEMA, TRIM_EVERY, Journal


class JournalTests(TestCase):
    """Writing, listing, following."""

    async def journal(self, keep: int = 100_000) -> tuple[Journal, Database]:
        journal = Journal(lambda: datetime(2026, 1, 2, tzinfo=UTC), keep)
        database = Database(reactor, Path(self.mktemp()), (SCHEMA,), journal)
        journal.use(database)
        await database.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(database.close()))
        return journal, database

    async def emit(self, database: Database, *topics: str, namespace: str = "n") -> None:
        await database.transact(
            lambda tx: [tx.emit(t, "s", {"a": 1}, namespace=namespace) for t in topics]
        )

    def follow(
        self, journal: Journal, seen: list[Event | Trimmed], **how: object
    ) -> Deferred[None]:
        async def run() -> None:
            async for event in journal.follow(**how):  # type: ignore[arg-type]
                seen.append(event)
                if self.wanted is not None and len(seen) >= self.count:
                    wanted, self.wanted = self.wanted, None
                    wanted.callback(None)

        following = Deferred.fromCoroutine(run())
        following.addErrback(lambda f: f.trap(CancelledError) and None)
        self.addCleanup(following.cancel)
        return following

    def expect(self, count: int) -> Deferred[None]:
        self.count = count
        self.wanted: Deferred[None] | None = Deferred()
        return self.wanted

    async def test_interface(self) -> None:
        """It is a journal."""
        journal, _ = await self.journal()
        verifyObject(IJournal, journal)

    async def test_list(self) -> None:
        """Pages hold events in order and say where the next begins."""
        journal, database = await self.journal()
        await self.emit(database, "a.x", "a.y", "b.x")
        page = await journal.list(limit=2)
        self.assertEqual([(e.seq, e.topic) for e in page.items], [(1, "a.x"), (2, "a.y")])
        self.assertEqual(page.items[0].at, "2026-01-02T00:00:00.000000Z")
        assert page.next is not None
        rest = await journal.list(page.next)
        self.assertEqual([e.topic for e in rest.items], ["b.x"])
        self.assertIsNone(rest.next)

    async def test_selection(self) -> None:
        """Only the namespace's own and the shared events, and the topics asked for, are given."""
        journal, database = await self.journal()
        await self.emit(database, "a.x", "a.[y]", "b.x")
        await self.emit(database, "a.z", namespace="other")
        await self.emit(database, "content.created", namespace="")
        page = await journal.list(selection=Selection("n", ("a.*",)))
        self.assertEqual([e.topic for e in page.items], ["a.x", "a.[y]"])
        page = await journal.list(selection=Selection("n", ("a.[y]", "content.created")))
        self.assertEqual([e.topic for e in page.items], ["a.[y]", "content.created"])

    async def test_follow(self) -> None:
        """A follower gets what was, then what comes, each once and in order."""
        journal, database = await self.journal()
        await self.emit(database, "one", "two")
        seen: list[Event | Trimmed] = []
        done = self.expect(5)
        self.follow(journal, seen, since=1)
        for topic in ("three", "four"):
            await self.emit(database, topic)
        await self.emit(database, "five", "six")
        await done
        self.assertEqual([e.seq for e in seen if isinstance(e, Event)], [2, 3, 4, 5, 6])

    async def test_follow_from_now(self) -> None:
        """Without since, only what comes later is given."""
        journal, database = await self.journal()
        await self.emit(database, "one")
        seen: list[Event | Trimmed] = []
        done = self.expect(1)
        self.follow(journal, seen)
        await journal.last()
        await self.emit(database, "two")
        await done
        self.assertEqual([e.topic for e in seen if isinstance(e, Event)], ["two"])

    async def test_follow_many(self) -> None:
        """More events than a page are all given."""
        journal, database = await self.journal()
        await self.emit(database, *["t"] * 700)
        seen: list[Event | Trimmed] = []
        done = self.expect(700)
        self.follow(journal, seen, since=0)
        await done
        self.assertEqual([e.seq for e in seen if isinstance(e, Event)], list(range(1, 701)))

    async def test_rare_topic(self) -> None:
        """A follower of a topic that never comes does not read the same pages for ever."""
        journal, database = await self.journal()
        await self.emit(database, *["t"] * 300)
        seen: list[Event | Trimmed] = []
        done = self.expect(1)
        self.follow(journal, seen, since=0, selection=Selection(None, ("rare",)))
        await journal.last()
        await self.emit(database, "rare")
        await done
        self.assertEqual([e.seq for e in seen if isinstance(e, Event)], [301])

    async def test_trimmed(self) -> None:
        """Where the journal is trimmed past since, the follower is told first, once."""
        journal, database = await self.journal(keep=10)
        await self.emit(database, *["t"] * TRIM_EVERY)
        seen: list[Event | Trimmed] = []
        done = self.expect(11)
        self.follow(journal, seen, since=3)
        await done
        self.assertEqual(seen[0], Trimmed(3, TRIM_EVERY - 9))
        self.assertEqual(
            [e.seq for e in seen[1:] if isinstance(e, Event)],
            list(range(TRIM_EVERY - 9, TRIM_EVERY + 1)),
        )
        page = await journal.list(since=3)
        self.assertEqual(page.trimmed, Trimmed(3, TRIM_EVERY - 9))

    async def test_seq_is_never_reused(self) -> None:
        """After everything is trimmed the numbers go on."""
        journal, database = await self.journal(keep=0)
        await self.emit(database, *["t"] * TRIM_EVERY)
        self.assertEqual(await journal.last(), TRIM_EVERY)
        await self.emit(database, "next")
        page = await journal.list(since=TRIM_EVERY)
        self.assertEqual([e.seq for e in page.items], [TRIM_EVERY + 1])

    async def test_rolled_back(self) -> None:
        """An event of a change that failed was never there, and leaves no gap."""
        journal, database = await self.journal()

        def fail(tx: object) -> None:
            tx.emit("bad", "s", namespace="n")  # type: ignore[attr-defined]
            raise ValueError("no")

        with self.assertRaises(ValueError):
            await database.transact(fail)
        await self.emit(database, "good")
        page = await journal.list()
        self.assertEqual([(e.seq, e.topic) for e in page.items], [(1, "good")])
