"""All shims of a daemon: forked, attached to, and ended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from ctd.errors import Unavailable
from ctd.runtime import remains
from ctd.runtime.errors import ShimGone
from ctd.runtime.interfaces import (
    Exit,
    IShim,
    IShimListener,
    IShims,
    ProcessState,
    ShimSpec,
)
from ctd.runtime.places import Places
from ctd.runtime.shim_process import ANSWER_SECONDS, ShimProcess
from ctd.runtime.template import Template, TemplateDied
from ctd.runtime.transport import ProcessTransport
from ctd.threads import IWorkers

#: How often a fork is tried again when the template is killed under it.
ATTEMPTS = 3

#: The pause before that, in seconds.
PAUSE = 0.05


@implementer(IShims, IShimListener)
class Shims:
    """See :class:`ctd.runtime.interfaces.IShims`."""

    _log = Logger()

    def __init__(self, reactor: Any, template: Template, places: Places, workers: IWorkers) -> None:
        self._reactor = reactor
        self._template = template
        self._places = places
        self._workers = workers
        self._listener: IShimListener | None = None
        self._shims: dict[str, ShimProcess] = {}

    def listen(self, listener: IShimListener) -> None:
        """See :class:`IShims`."""
        self._listener = listener

    async def fork(self, spec: ShimSpec) -> IShim:
        """See :class:`IShims`."""
        params = {
            "run": spec.run,
            "namespace": spec.namespace,
            "container": spec.container,
            "directory": str(self._places.shim(spec.run)),
            "records": str(self._places.records(spec.run)),
            "runtime": spec.runtime,
            "runtime_root": str(self._places.runtime_root),
        }
        for attempt in range(1, ATTEMPTS + 1):
            try:
                pid, start_time = await self._template.fork(params)
                break
            except (TemplateDied, Unavailable) as error:
                # The template died: it may have forked before.  Then there is a shim, or one
                # is on its way and has the run for itself, so that a second one is refused.
                if (shim := await self._forked_unheard(spec.run)) is not None:
                    return shim
                if attempt == ATTEMPTS:
                    raise
                self._log.warn("{error}; trying again", error=error)
                await deferLater(self._reactor, PAUSE, lambda: None)
        return await self._open(spec.run, spec.runtime, pid, start_time)

    async def _forked_unheard(self, run: str) -> IShim | None:
        try:
            return await self.attach(run)
        except ShimGone:
            return None

    async def attach(self, run: str) -> IShim:
        """See :class:`IShims`."""
        if (shim := self._shims.get(run)) is not None:
            return shim
        description = await self._workers.run(remains.describe, self._places, run)
        if description is None:
            raise ShimGone(run, "there is none")
        return await self._open(run, description.runtime, description.pid, description.start_time)

    async def _open(self, run: str, runtime: str, pid: int, start_time: int) -> IShim:
        try:
            dirfd = os.open(self._places.shim(run), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ShimGone(run, "its directory is gone") from None
        except OSError as error:
            raise Unavailable(f"shim {run}", str(error)) from None
        shim = ShimProcess(self._reactor, run, runtime, dirfd, self, os.close)
        try:
            ProcessTransport(self._reactor, pid, start_time, shim)
        except OSError as error:
            os.close(dirfd)
            if isinstance(error, ProcessLookupError):
                raise ShimGone(run, "it has died") from None
            raise Unavailable(f"shim {run}", str(error)) from None
        self._shims[run] = shim
        try:
            await shim.greet(ANSWER_SECONDS)
        except BaseException:
            self._forget(run)
            raise
        return shim

    def _forget(self, run: str) -> None:
        shim = self._shims.pop(run, None)
        if shim is not None:
            shim.abandon()

    # IShimListener, from each of them.

    def exited(self, run: str, process: str, exit: Exit) -> None:
        """Pass it on."""
        if run in self._shims and self._listener is not None:
            self._listener.exited(run, process, exit)

    def reconnected(self, run: str, states: Sequence[ProcessState]) -> None:
        """Pass it on."""
        if run in self._shims and self._listener is not None:
            self._listener.reconnected(run, states)

    def died(self, run: str) -> None:
        """Pass it on."""
        if self._shims.pop(run, None) is not None and self._listener is not None:
            self._listener.died(run)

    async def found(self) -> Sequence[str]:
        """See :class:`IShims`."""
        return await self._workers.run(remains.found, self._places)

    async def records(self, run: str) -> Mapping[str, Exit]:
        """See :class:`IShims`."""
        return await self._workers.run(remains.exits, self._places, run)

    async def end(self, run: str, runtime: str | None) -> None:
        """See :class:`IShims`."""
        self._forget(run)
        await self._workers.run(remains.end, self._places, run, runtime)

    async def destroy(self, run: str, runtime: str | None = None) -> None:
        """See :class:`IShims`."""
        self._forget(run)
        await self._workers.run(remains.destroy, self._places, run, runtime)

    def close(self) -> None:
        """Hang up on every shim; they live on."""
        for run in list(self._shims):
            self._forget(run)
