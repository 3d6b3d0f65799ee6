"""Processes of containers: what :class:`ctd.runtime.interfaces.IProcesses` promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from zope.interface import implementer

from ctd.concurrency import shielded
from ctd.errors import CtdError, DeadlineExceeded, FailedPrecondition, NotFound
from ctd.model import User, rfc3339
from ctd.runtime import lifecycle, views
from ctd.runtime.checks import check_exec
from ctd.runtime.containers import live
from ctd.runtime.errors import ShimGone
from ctd.runtime.host import Host
from ctd.runtime.interfaces import INIT, ExecRequest, Exit, IProcesses, IRootfsSource, Process
from ctd.runtime.lifecycle import Creating, Gone, Running
from ctd.runtime.places import Places
from ctd.runtime.records import ProcessRecord
from ctd.runtime.spec import exec_process
from ctd.runtime.table import Entry, Table


@implementer(IProcesses)
class Processes:
    """The processes of one daemon's containers."""

    def __init__(
        self,
        table: Table,
        places: Places,
        rootfs: IRootfsSource,
        now: Callable[[], datetime],
        host: Host,
    ) -> None:
        self._table = table
        self._places = places
        self._rootfs = rootfs
        self._now = now
        self._host = host

    async def exec(self, request: ExecRequest) -> Process:
        """See :class:`IProcesses`."""
        check_exec(request)
        entry = self._table.find(request.namespace, request.container)
        lifecycle.container(entry.record.id, entry.record.state, lambda it: it.exec())
        user = await self._user(entry, request)
        spec = exec_process(entry.record.process, request, user, self._host)
        record = ProcessRecord(entry.run, request)
        await self._table.reserve_process(entry, record)
        try:
            await shielded(self._run(entry, record, spec))
        finally:
            entry.underway.discard(request.id)
        return self._shown(entry, request.id)

    async def _user(self, entry: Entry, request: ExecRequest) -> User | None:
        if request.user is None:
            return None
        state = entry.record.state
        assert isinstance(state, Running)
        try:
            return await self._rootfs.user((), request.user, state.pid)
        except OSError as error:  # its first process has just ended
            raise FailedPrecondition("container", request.container, str(error)) from None

    async def _run(self, entry: Entry, record: ProcessRecord, spec: Mapping[str, Any]) -> None:
        request = record.request
        try:
            state = await live(entry).exec(request.id, spec, request.stdio, request.terminal)
        except (ShimGone, DeadlineExceeded):
            # It may come to run or not: what the shim tells later, or its end, decides.
            raise
        except CtdError:
            await self._table.advance(entry, request.id, lambda it: it.abandoned())
            raise
        at = state.started_at or rfc3339(self._now())
        await self._table.advance(entry, request.id, lambda it: it.started(state.pid, at))

    def _shown(self, entry: Entry, id: str) -> Process:
        if id == INIT:
            return views.first_process(entry, self._places)
        record = entry.processes.get(id)
        if record is None:
            raise NotFound("process", f"{entry.record.id}/{id}")
        return views.process(entry, record, self._places)

    async def get(self, namespace: str, container: str, id: str) -> Process:
        """See :class:`IProcesses`."""
        entry, _ = self._table.process(namespace, container, id)
        return self._shown(entry, id)

    async def list(self, namespace: str, container: str) -> Sequence[Process]:
        """See :class:`IProcesses`."""
        entry = self._table.find(namespace, container)
        others = [
            views.process(entry, record, self._places)
            for record in entry.processes.values()
            if not isinstance(record.state, Creating)
        ]
        return [views.first_process(entry, self._places), *others]

    async def wait(self, namespace: str, container: str, id: str) -> Exit:
        """See :class:`IProcesses`."""
        entry, _ = self._table.process(namespace, container, id)
        return await self._table.wait(entry, id)

    async def kill(self, namespace: str, container: str, id: str, signal: int = 15) -> None:
        """See :class:`IProcesses`."""
        entry = self._signalled(namespace, container, id)
        await live(entry).kill(id, signal)

    async def close_stdin(self, namespace: str, container: str, id: str) -> None:
        """See :class:`IProcesses`."""
        entry = self._signalled(namespace, container, id)
        await live(entry).close_stdin(id)

    def _signalled(self, namespace: str, container: str, id: str) -> Entry:
        entry, state = self._table.process(namespace, container, id)
        if id == INIT:
            lifecycle.container(container, state, lambda it: it.signal())
        else:
            lifecycle.process(f"{container}/{id}", state, lambda it: it.signal())
        return entry

    async def delete(self, namespace: str, container: str, id: str) -> None:
        """See :class:`IProcesses`."""
        entry, state = self._table.process(namespace, container, id)
        name = f"{container}/{id}"
        if id == INIT:
            raise FailedPrecondition("process", name, "it goes with its container only")
        lifecycle.process(name, state, lambda it: it.delete())
        await shielded(self._delete(entry, id))

    async def _delete(self, entry: Entry, id: str) -> None:
        if entry.shim is not None:
            try:
                await entry.shim.delete(id)
            except NotFound:
                pass
        if not isinstance(entry.state(id), Gone):
            await self._table.advance(entry, id, lambda it: it.deleted())
