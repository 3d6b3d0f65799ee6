"""processes.*"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from ctd.protocols.call import Call
from ctd.protocols.control.containers import StdioResult
from ctd.protocols.control.results import Done, ListParams, Page, Result, Time, paged, shaped
from ctd.protocols.control.shapes import (
    EXIT_EXAMPLE,
    AbsolutePath,
    Args,
    Env,
    Exit,
    Identifier,
    Stdio,
    User,
    env_value,
    new_id,
    stdio_value,
)
from ctd.protocols.control.signals import Signal, number_of
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params
from ctd.runtime.interfaces import INIT, ExecRequest, IProcesses
from ctd.runtime.interfaces import Process as ProcessValue

_EXAMPLE = {
    "id": "sh",
    "container": "web",
    "namespace": "default",
    "status": "running",
    "pid": 4720,
    "exit_status": None,
    "exit_reason": None,
    "started_at": "2026-01-02T03:04:06.000000Z",
    "exited_at": None,
    "args": ["sh", "-c", "date"],
    "terminal": False,
    "stdio": {"stdin": "null", "stdout": "attach", "stderr": "null"},
    "attach": "/run/ctd/shims/0123456789ab/io/sh.sock",
}
_WHICH = {"container": "web", "id": "sh"}


class Process(Result, frozen=True, kw_only=True):
    """A process of a container; `init` is the first one."""

    id: str
    container: str
    namespace: str
    status: Annotated[str, Meta(description="created, running, paused or stopped.")]
    pid: Annotated[int | None, Meta(description="On the host.")]
    exit_status: int | None
    exit_reason: str | None
    started_at: Time | None
    exited_at: Time | None
    args: list[str]
    terminal: bool
    stdio: StdioResult
    attach: Annotated[
        str | None, Meta(description="The unix socket of its stdio, if any of it is `attach`.")
    ]


class ProcessPage(Page, frozen=True, kw_only=True):
    """Some processes, by id."""

    items: list[Process]


class ExecParams(Params, frozen=True, kw_only=True):
    """A process to run; what is left out is as for the container's first process."""

    container: Identifier
    args: Args
    id: Annotated[Identifier | None, Meta(description="Null: one is made up.")] = None
    env: Annotated[Env, Meta(description="In addition to the container's.")] = []
    cwd: AbsolutePath | None = None
    user: User = None
    terminal: bool = False
    capabilities: Annotated[
        list[str] | None, Meta(description="`NET_ADMIN` or `+NET_ADMIN` adds, `-KILL` takes away.")
    ] = None
    stdio: Stdio = Stdio()


class ProcessParams(Params, frozen=True, kw_only=True):
    """Which process."""

    container: Identifier
    id: Identifier = INIT


class ExecutedParams(Params, frozen=True, kw_only=True):
    """Which process, other than `init`."""

    container: Identifier
    id: Identifier


class ProcessListParams(ListParams, frozen=True, kw_only=True):
    """Of which container."""

    container: Identifier


class ProcessKillParams(ProcessParams, frozen=True, kw_only=True):
    """Which process, and what to send it."""

    signal: Signal = "SIGTERM"


class Processes:
    """The methods of processes.

    :param ids: makes an id for a process that was given none.
    """

    def __init__(self, processes: IProcesses, ids: Callable[[], str] = new_id) -> None:
        self._processes = processes
        self._ids = ids

    @method(
        "processes.exec",
        errors=(
            "not_found",
            "already_exists",
            "failed_precondition",
            "aborted",
        ),
        examples=(
            Example(
                {
                    "container": "web",
                    "id": "sh",
                    "args": ["sh", "-c", "date"],
                    "stdio": {"stdout": "attach"},
                },
                _EXAMPLE,
            ),
        ),
    )
    async def exec(self, call: Call, params: ExecParams) -> Process:
        """Run another process in a running container; it has started when this is answered."""
        request = ExecRequest(
            namespace=params.namespace,
            container=params.container,
            id=params.id if params.id is not None else self._ids(),
            args=tuple(params.args),
            env=env_value(params.env),
            cwd=params.cwd,
            user=params.user,
            terminal=params.terminal,
            capabilities=None if params.capabilities is None else tuple(params.capabilities),
            stdio=stdio_value(params.stdio),
        )
        return shaped(await self._processes.exec(request), Process)

    @method(
        "processes.list",
        errors=("not_found",),
        examples=(Example({"container": "web"}, {"items": [_EXAMPLE], "next": None}),),
    )
    async def list(self, call: Call, params: ProcessListParams) -> ProcessPage:
        """The processes of a container, `init` among them."""
        found = await self._processes.list(params.namespace, params.container)
        items, next = paged(found, params, _key, lambda p: shaped(p, Process))
        return ProcessPage(items=items, next=next)

    @method("processes.get", errors=("not_found",), examples=(Example(_WHICH, _EXAMPLE),))
    async def get(self, call: Call, params: ProcessParams) -> Process:
        """A process."""
        found = await self._processes.get(params.namespace, params.container, params.id)
        return shaped(found, Process)

    @method("processes.wait", errors=("not_found",), examples=(Example(_WHICH, EXIT_EXAMPLE),))
    async def wait(self, call: Call, params: ProcessParams) -> Exit:
        """How a process ended, waiting for that if need be; any number may ask."""
        exit = await self._processes.wait(params.namespace, params.container, params.id)
        return shaped(exit, Exit)

    @method(
        "processes.kill",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example({**_WHICH, "signal": 15}, {}),),
    )
    async def kill(self, call: Call, params: ProcessKillParams) -> Done:
        """Send a signal to a process."""
        signal = number_of(params.signal)
        await self._processes.kill(params.namespace, params.container, params.id, signal)
        return Done()

    @method(
        "processes.close_stdin",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example(_WHICH, {}),),
    )
    async def close_stdin(self, call: Call, params: ProcessParams) -> Done:
        """Let a process read the end of its standard input.  Can be repeated."""
        await self._processes.close_stdin(params.namespace, params.container, params.id)
        return Done()

    @method(
        "processes.delete",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example(_WHICH, {}),),
    )
    async def delete(self, call: Call, params: ExecutedParams) -> Done:
        """Forget a process that has ended; `init` goes with its container only."""
        await self._processes.delete(params.namespace, params.container, params.id)
        return Done()


def _key(process: ProcessValue) -> tuple[str, ...]:
    return ("" if process.id == INIT else process.id,)
