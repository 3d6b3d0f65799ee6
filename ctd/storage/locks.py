"""A lock a key: those who want the same thing wait for one another, the others do not."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import DeferredLock

K = TypeVar("K", bound=Hashable)


@attrs.define(eq=False)
class _Turn(Generic[K]):
    locks: Locks[K]
    key: K

    async def __aenter__(self) -> None:
        lock = self.locks.held.setdefault(self.key, DeferredLock())
        await lock.acquire()

    async def __aexit__(self, *exception: object) -> None:
        lock = self.locks.held[self.key]
        if not lock.waiting:
            del self.locks.held[self.key]
        lock.release()


class Locks(Generic[K]):
    """Locks by key; a key nobody uses takes no room."""

    def __init__(self) -> None:
        self.held: dict[K, DeferredLock] = {}

    def __call__(self, key: K) -> _Turn[K]:
        """An asynchronous context manager: inside it *key* is the caller's alone."""
        return _Turn(self, key)
