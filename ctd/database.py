"""The metadata database: one SQLite file, one thread, transactions that also hold events.

Parts keep their records here without knowing one another: each brings a
:class:`Schema` of its own tables.  A state change and its event are one
transaction: :meth:`Transaction.emit` hands the event to the journal inside
the transaction that makes it true, and subscribers hear of it only after the
commit.

Callers that come while a commit is being made are committed together (one
``fsync`` for all), each inside a savepoint of its own, so that one that raises
takes nothing of the others with it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from ctd.errors import CtdError, ResourceExhausted

T = TypeVar("T")

#: The most callers in one commit: bounds how long the first of them waits.
BATCH = 256


@attrs.frozen
class Schema:
    """The tables of one part.

    :ivar part: whose they are.
    :ivar steps: SQL scripts; step *n* takes version *n* to *n* + 1.  Steps are
        only ever appended: the version of a database is how many it has had.
    """

    part: str
    steps: tuple[str, ...]


@attrs.frozen
class NewEvent:
    """An event before it has a ``seq``; see :mod:`ctd.events.interfaces`."""

    namespace: str
    topic: str
    subject: str
    data: dict[str, Any] = attrs.field(factory=dict)


@attrs.define(auto_exc=True)
class DatabaseTooNew(CtdError):
    """The database was written by a newer ctd.  Start that one, or give another root."""

    kind = "failed_precondition"
    path: str
    part: str
    found: int
    known: int


@attrs.define(auto_exc=True)
class DatabaseClosed(CtdError):
    """The daemon is stopping and takes no more changes."""

    kind = "unavailable"


class EventSink(Protocol):
    """Where events go; the journal is one."""

    def write(self, tx: Transaction, event: NewEvent) -> int:
        """Record *event* in *tx*, in the database's thread, and give its ``seq``."""

    def committed(self, seq: int) -> None:
        """Everything up to *seq* is durable; called in the reactor's thread."""


class Transaction:
    """What a function given to :meth:`Database.transact` works with; valid while it runs."""

    def __init__(self, connection: sqlite3.Connection, sink: EventSink | None) -> None:
        self._connection = connection
        self._sink = sink
        self.seq = 0

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run a statement that changes rows and give how many it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def insert(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run an INSERT and give the new row's id."""
        row = self._connection.execute(sql, parameters).lastrowid
        assert row is not None
        return row

    def all(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        return self._connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Row | None:
        """The first row of a query, or None."""
        row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once a row."""
        self._connection.executemany(sql, rows)

    def emit(
        self, topic: str, subject: str, data: dict[str, Any] | None = None, *, namespace: str
    ) -> None:
        """Record an event that becomes true with this transaction."""
        if self._sink is not None:
            self.seq = self._sink.write(self, NewEvent(namespace, topic, subject, data or {}))


def connect(path: Path | str) -> sqlite3.Connection:
    """Open the database as ctd uses it: WAL, every commit on disk, foreign keys held."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "busy_timeout = 10000",
        "cache_size = -8192",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def migrate(connection: sqlite3.Connection, path: Path | str, schemas: Iterable[Schema]) -> None:
    """Bring every part's tables up to date, each step in a transaction of its own.

    :raise DatabaseTooNew: a part's tables are newer than its schema here.
    """
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_versions"
        " (part TEXT PRIMARY KEY, version INTEGER NOT NULL)"
    )
    for schema in schemas:
        row = connection.execute(
            "SELECT version FROM schema_versions WHERE part = ?", (schema.part,)
        ).fetchone()
        version = row[0] if row else 0
        if version > len(schema.steps):
            raise DatabaseTooNew(str(path), schema.part, version, len(schema.steps))
        for number, script in enumerate(schema.steps[version:], version + 1):
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO schema_versions VALUES (?, ?)"
                    " ON CONFLICT (part) DO UPDATE SET version = excluded.version",
                    (schema.part, number),
                )
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _statements(script: str) -> Iterable[str]:
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""


@attrs.frozen(eq=False)
class _Job:
    function: Callable[[Transaction], Any]
    result: Deferred[Any]


class Database:
    """The metadata database behind an asynchronous face.

    :param reactor: to come back to its thread.
    :param path: the file, or ``:memory:``.
    :param sink: the journal.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        path: Path | str,
        schemas: Sequence[Schema],
        sink: EventSink | None = None,
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._schemas = schemas
        self._sink = sink
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = True

    async def open(self) -> None:
        """Open the file, bring its tables up to date, and begin to take work.

        :raise DatabaseTooNew: see :func:`migrate`.
        :raise sqlite3.DatabaseError: the file is damaged.
        """
        opened: Deferred[None] = Deferred()
        self._thread = threading.Thread(
            target=self._main, args=(opened,), name="ctd-database", daemon=True
        )
        self._thread.start()
        await opened
        self._closed = False

    async def close(self) -> None:
        """Finish what was asked for, then close the file."""
        if self._closed:
            return
        self._closed = True
        done: Deferred[None] = Deferred()
        self._queue.put(_Job(lambda tx: None, done))
        self._queue.put(None)
        await done
        assert self._thread is not None
        self._thread.join()

    def transact(self, function: Callable[[Transaction], T]) -> Deferred[T]:
        """Call *function* with a transaction, in the database's thread.

        The Deferred fires in the reactor's thread once the change is on disk;
        it fails, and nothing has changed, when *function* raises.  Cancelling
        it only stops waiting: the change may still be made.
        """
        result: Deferred[T] = Deferred(lambda _: None)
        if self._closed:
            result.errback(DatabaseClosed())
        else:
            self._queue.put(_Job(function, result))
        return result

    def _main(self, opened: Deferred[None]) -> None:
        try:
            connection = connect(self._path)
            migrate(connection, self._path, self._schemas)
        except BaseException:  # noqa: BLE001 (handed to the caller)
            self._reactor.callFromThread(opened.errback, Failure())
            return
        self._reactor.callFromThread(opened.callback, None)
        running = True
        while running:
            jobs = [self._queue.get()]
            while not self._queue.empty() and len(jobs) < BATCH:
                jobs.append(self._queue.get())
            running = None not in jobs
            self._commit(connection, [j for j in jobs if j is not None])
        connection.close()

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        tx = Transaction(connection, self._sink)
        done: list[tuple[_Job, Any]] = []
        changes = connection.total_changes
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                done.append((job, self._run(connection, tx, job)))
            connection.execute("COMMIT" if connection.total_changes != changes else "ROLLBACK")
        except sqlite3.Error as error:
            failure = Failure(_translated(error))
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            done, tx.seq = [(job, failure) for job in jobs], 0
        self._reactor.callFromThread(self._deliver, done, tx.seq)

    def _run(self, connection: sqlite3.Connection, tx: Transaction, job: _Job) -> Any:
        seq = tx.seq
        connection.execute("SAVEPOINT job")
        try:
            value = job.function(tx)
        except BaseException as error:
            if not connection.in_transaction:  # SQLite rolled all of it back: disk full, I/O
                raise
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            tx.seq = seq
            return Failure(_translated(error))
        connection.execute("RELEASE job")
        return value

    def _deliver(self, done: list[tuple[_Job, Any]], seq: int) -> None:
        if seq and self._sink is not None:
            self._sink.committed(seq)
        for job, value in done:
            if not job.result.called:
                job.result.callback(value)


def _translated(error: BaseException) -> BaseException:
    if (
        isinstance(error, sqlite3.OperationalError)
        and error.sqlite_errorcode == sqlite3.SQLITE_FULL
    ):
        return ResourceExhausted("space on disk for metadata.db")
    return error
