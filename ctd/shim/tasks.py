"""Work that waits, as generators.

A task yields *waits*: functions that take a function to call with the outcome.
What is sent back into the task is that outcome.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeAlias, TypeVar

    T = TypeVar("T")
    Wait: TypeAlias = Callable[[Callable[[Any], None]], None]
    Task: TypeAlias = Generator[Wait, Any, T]


def run(task: Task[T], done: Callable[[T | None, Exception | None], None]) -> None:
    """Run *task* to its end, then call *done* with its result or what it raised."""

    def step(outcome: Any = None) -> None:
        try:
            wait = task.send(outcome)
        except StopIteration as stop:
            done(stop.value, None)
        except Exception as error:  # noqa: BLE001 (handed to who started the task)
            done(None, error)
        else:
            wait(step)

    step()


class Turns:
    """Lets tasks work one after the other, in the order they came, for each key."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Callable[[Any], None]]] = {}

    def take(self, key: str) -> Wait:
        """Wait for a turn; :meth:`give` is to be called when it is over."""

        def wait(resume: Callable[[Any], None]) -> None:
            if key in self._waiting:
                self._waiting[key].append(resume)
            else:
                self._waiting[key] = []
                resume(None)

        return wait

    def give(self, key: str) -> None:
        """End a turn."""
        waiting = self._waiting[key]
        if waiting:
            waiting.pop(0)(None)
        else:
            del self._waiting[key]
