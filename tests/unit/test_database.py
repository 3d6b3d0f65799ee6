"""The metadata database on a real file, with a real thread."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, gatherResults
from twisted.trial.unittest import TestCase

from ctd.database import (
    Database,
    DatabaseClosed,
    DatabaseTooNew,
    NewEvent,
    Schema,
    Transaction,
    connect,
    migrate,
)

FIRST = "CREATE TABLE things (name TEXT PRIMARY KEY, size INTEGER);"
SECOND = "ALTER TABLE things ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';"


class RememberingSink:
    """A sink that writes events into a table and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def write(self, tx: Transaction, event: NewEvent) -> int:
        return tx.insert("INSERT INTO log (topic) VALUES (?)", (event.topic,))

    def committed(self, seq: int) -> None:
        self.told.append(seq)


LOG = Schema("log", ("CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT);",))


class DatabaseTests(TestCase):
    """Transactions."""

    async def database(self, *schemas: Schema, sink: RememberingSink | None = None) -> Database:
        self.path = Path(self.mktemp())
        database = Database(reactor, self.path, schemas or (Schema("a", (FIRST,)), LOG), sink)
        await database.open()
        return database

    async def test_commit(self) -> None:
        """What a function wrote is there for the next one and after reopening."""
        database = await self.database()
        await database.transact(lambda tx: tx.execute("INSERT INTO things VALUES ('a', 1)"))
        rows = await database.transact(lambda tx: tx.all("SELECT name, size FROM things"))
        self.assertEqual([tuple(r) for r in rows], [("a", 1)])
        await database.close()
        self.assertEqual(connect(self.path).execute("SELECT size FROM things").fetchone()[0], 1)

    async def test_rollback(self) -> None:
        """A function that raises changes nothing, and its neighbours in the batch stand."""
        database = await self.database()

        def fail(tx: Transaction) -> None:
            tx.execute("INSERT INTO things VALUES ('bad', 1)")
            raise ValueError("no")

        good = [
            database.transact(lambda tx, n=n: tx.execute("INSERT INTO things VALUES (?, 0)", (n,)))
            for n in ("a", "b")
        ]
        bad = database.transact(fail)
        good.append(database.transact(lambda tx: tx.execute("INSERT INTO things VALUES ('c', 0)")))
        await gatherResults(good)
        with self.assertRaises(ValueError):
            await bad
        rows = await database.transact(lambda tx: tx.all("SELECT name FROM things ORDER BY 1"))
        self.assertEqual([r[0] for r in rows], ["a", "b", "c"])
        await database.close()

    async def test_events(self) -> None:
        """Events are written with the change, told after it, and vanish with a rollback."""
        sink = RememberingSink()
        database = await self.database(sink=sink)

        def change(tx: Transaction) -> None:
            tx.emit("thing.made", "a", namespace="n")

        def fail(tx: Transaction) -> None:
            tx.emit("thing.lost", "a", namespace="n")
            raise ValueError("no")

        await database.transact(change)
        with self.assertRaises(ValueError):
            await database.transact(fail)
        await database.transact(change)
        rows = await database.transact(lambda tx: tx.all("SELECT seq, topic FROM log"))
        self.assertEqual([tuple(r) for r in rows], [(1, "thing.made"), (2, "thing.made")])
        self.assertEqual(sink.told, [1, 2])
        await database.close()

    async def test_close_finishes(self) -> None:
        """Closing waits for what was asked for, and refuses what comes later."""
        database = await self.database()
        pending = database.transact(lambda tx: tx.execute("INSERT INTO things VALUES ('a', 1)"))
        await database.close()
        self.assertEqual(self.successResultOf(pending), 1)
        self.failureResultOf(database.transact(lambda tx: None), DatabaseClosed)

    async def test_cancel(self) -> None:
        """Cancelling only stops waiting."""
        database = await self.database()
        pending = database.transact(lambda tx: tx.execute("INSERT INTO things VALUES ('a', 1)"))
        pending.cancel()
        self.failureResultOf(pending, CancelledError)
        rows = await database.transact(lambda tx: tx.all("SELECT * FROM things"))
        self.assertEqual(len(rows), 1)
        await database.close()

    async def test_damaged(self) -> None:
        """A file that is no database fails to open."""
        path = Path(self.mktemp())
        path.write_bytes(b"nonsense" * 1000)
        database = Database(reactor, path, (LOG,))
        with self.assertRaises(sqlite3.DatabaseError):
            await database.open()


class MigrateTests(TestCase):
    """Schema versions."""

    def test_steps(self) -> None:
        """A database of an older version gets only the steps it has not had."""
        path = Path(self.mktemp())
        connection = connect(path)
        migrate(connection, path, [Schema("a", (FIRST,))])
        connection.execute("INSERT INTO things VALUES ('x', 1)")
        migrate(connection, path, [Schema("a", (FIRST, SECOND))])
        migrate(connection, path, [Schema("a", (FIRST, SECOND))])
        self.assertEqual(
            tuple(connection.execute("SELECT * FROM things").fetchone()), ("x", 1, "red")
        )

    def test_too_new(self) -> None:
        """A database of a newer version is refused and left as it is."""
        path = Path(self.mktemp())
        connection = connect(path)
        migrate(connection, path, [Schema("a", (FIRST, SECOND))])
        with self.assertRaises(DatabaseTooNew) as caught:
            migrate(connection, path, [Schema("a", (FIRST,))])
        self.assertEqual((caught.exception.found, caught.exception.known), (2, 1))

    def test_step_is_atomic(self) -> None:
        """A step that fails half-way leaves the version before it."""
        path = Path(self.mktemp())
        connection = connect(path)
        broken = "CREATE TABLE other (x); CREATE TABLE things (x);"
        migrate(connection, path, [Schema("a", (FIRST,))])
        with self.assertRaises(sqlite3.OperationalError):
            migrate(connection, path, [Schema("a", (FIRST, broken))])
        tables = {r[0] for r in connection.execute("SELECT name FROM sqlite_master")}
        self.assertNotIn("other", tables)
        migrate(connection, path, [Schema("a", (FIRST, SECOND))])
