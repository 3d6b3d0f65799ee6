"""What storage is tested on: a database in the caller's thread, and power that can be cut."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from ctd.database import NewEvent, Transaction, connect, migrate
from ctd.storage.schema import SCHEMA

T = TypeVar("T")

#: What was cut off stays here: if it were collected its coroutines would go on.
_CUT: list[Deferred[Any]] = []


class Power:
    """Counts the steps of workers and database together, and ends everything at one of them.

    :ivar cut_at: the number of the step that is cut (from 1), or None.
    :ivar after: whether that step is still done, and only its end not heard of.
    :ivar fails: raised at that step instead of ending everything.
    :ivar visit: called before step ``visit_at``: somebody else who comes just then.
    """

    def __init__(
        self, cut_at: int | None = None, *, after: bool = False, fails: Exception | None = None
    ) -> None:
        self.steps = 0
        self.cut_at = cut_at
        self.after = after
        self.fails = fails
        self.visit_at: int | None = None
        self.visit: Callable[[], None] = lambda: None

    def step(self, work: Callable[[], T]) -> Deferred[T]:
        """Do *work*, if there is power."""
        self.steps += 1
        if self.steps == self.visit_at:
            self.visit()
        if self.fails is not None and self.steps == self.cut_at:
            if self.after:
                work()
            return fail(self.fails)
        if self.fails is None and self.cut_at is not None and self.steps >= self.cut_at:
            if self.after and self.steps == self.cut_at:
                work()
            never: Deferred[T] = Deferred()
            _CUT.append(never)
            return never
        try:
            return succeed(work())
        except Exception:  # noqa: BLE001 (for whoever waits)
            return fail(Failure())


class PoweredWorkers:
    """Workers in the caller's thread."""

    def __init__(self, power: Power) -> None:
        self.power = power

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await self.power.step(lambda: function(*args, **kwargs))


class HeldWorkers:
    """Workers that do nothing until they are told to.  :ivar waiting: what they were given."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        done: Deferred[T] = Deferred(lambda _: None)
        self.waiting.append((lambda: function(*args, **kwargs), done))
        return await done

    def work(self) -> None:
        """Do the oldest."""
        function, done = self.waiting.pop(0)
        try:
            result: Any = function()
        except Exception:  # noqa: BLE001 (for whoever waits)
            result = Failure()
        if not done.called:
            done.callback(result)

    def work_all(self) -> None:
        """Do all there is and comes."""
        while self.waiting:
            self.work()


class StagedDatabase:
    """The database without its thread; same transactions, same SQL.

    :ivar events: what was emitted and committed, oldest first.
    """

    def __init__(self, path: Path | str = ":memory:", power: Power | None = None) -> None:
        self.power = power or Power()
        self.connection = connect(path)
        self.connection.execute("PRAGMA synchronous = OFF")
        migrate(self.connection, path, [SCHEMA])
        self.events: list[NewEvent] = []
        self._new: list[NewEvent] = []

    def write(self, tx: Transaction, event: NewEvent) -> int:
        self._new.append(event)
        return len(self.events) + len(self._new)

    def committed(self, seq: int) -> None:
        pass

    def transact(self, function: Callable[[Transaction], T]) -> Deferred[T]:
        return self.power.step(lambda: self._transact(function))

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What a query gives."""
        return [dict(row) for row in self.connection.execute(sql)]

    def topics(self) -> list[tuple[str, str]]:
        """The topics and subjects of the events."""
        return [(e.topic, e.subject) for e in self.events]

    def _transact(self, function: Callable[[Transaction], T]) -> T:
        self._new = []
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            result = function(Transaction(self.connection, self))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        self.events += self._new
        return result


class WallClock:
    """A wall clock that stands still.  :ivar at: what it shows."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **by: float) -> None:
        self.at += timedelta(**by)
