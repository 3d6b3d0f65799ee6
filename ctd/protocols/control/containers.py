"""containers.*"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from ctd.errors import InvalidArgument
from ctd.protocols.call import Call
from ctd.protocols.control.results import Done, ListParams, Page, Result, Time, paged, shaped
from ctd.protocols.control.shapes import (
    EXIT_EXAMPLE,
    AbsolutePath,
    Env,
    Exit,
    Identifier,
    Stdio,
    Stream,
    User,
    env_value,
    new_id,
    stdio_value,
)
from ctd.protocols.control.signals import Signal, number_of
from ctd.protocols.methods import Example, method
from ctd.protocols.params import Params
from ctd.runtime.interfaces import Container as ContainerValue
from ctd.runtime.interfaces import ContainerRequest, IContainers
from ctd.runtime.interfaces import Resources as ResourcesValue
from ctd.runtime.interfaces import UserMount as UserMountValue

_CREATED = {
    "id": "web",
    "namespace": "default",
    "image": "docker.io/library/alpine:latest",
    "status": "created",
    "pid": 4712,
    "exit_status": None,
    "exit_reason": None,
    "created_at": "2026-01-02T03:04:05.678901Z",
    "started_at": None,
    "exited_at": None,
    "bundle": "/run/ctd/shims/0123456789ab/bundle",
    "netns": None,
    "labels": {},
    "runtime": "runc",
    "snapshotter": "overlayfs",
    "stdio": {"stdin": "null", "stdout": "file:///var/log/web.log", "stderr": "null"},
    "args": ["sleep", "60"],
    "terminal": False,
}
_RUNNING = {**_CREATED, "status": "running", "started_at": "2026-01-02T03:04:06.000000Z"}


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A mount inside the container (OCI runtime-spec, config.md, "Mounts")."""

    destination: AbsolutePath
    type: str = "bind"
    source: str = ""
    options: list[str] = []


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits; null: none."""

    memory: Annotated[int | None, Meta(description="In bytes.")] = None
    memory_swap: Annotated[int | None, Meta(description="Memory and swap together.")] = None
    cpus: Annotated[float | None, Meta(description="0.5 is half of one.")] = None
    cpu_shares: int | None = None
    cpuset_cpus: Annotated[str | None, Meta(description="`0-2,7`.")] = None
    pids: Annotated[int | None, Meta(description="Processes and threads.")] = None


class StdioResult(Result, frozen=True, kw_only=True):
    """Where standard streams go."""

    stdin: Stream
    stdout: Stream
    stderr: Stream


class Container(Result, frozen=True, kw_only=True):
    """A container."""

    id: str
    namespace: str
    image: str | None
    status: Annotated[str, Meta(description="created, running, paused or stopped.")]
    pid: Annotated[int | None, Meta(description="Of its first process, on the host.")]
    exit_status: int | None
    exit_reason: str | None
    created_at: Time
    started_at: Time | None
    exited_at: Time | None
    bundle: str
    netns: Annotated[
        str | None, Meta(description="The path of its network namespace; null: the host's.")
    ]
    labels: dict[str, str]
    runtime: str
    snapshotter: str | None
    stdio: StdioResult
    args: list[str]
    terminal: bool


class ContainerPage(Page, frozen=True, kw_only=True):
    """Some containers, by creation."""

    items: list[Container]


class CreateParams(Params, frozen=True, kw_only=True):
    """A container to make.  Exactly one of image, rootfs and bundle is given."""

    id: Annotated[Identifier | None, Meta(description="Null: one is made up.")] = None
    image: Annotated[str | None, Meta(description="An image that is here.")] = None
    rootfs: Annotated[AbsolutePath | None, Meta(description="A directory, used as it is.")] = None
    bundle: Annotated[AbsolutePath | None, Meta(description="An OCI bundle.")] = None
    args: Annotated[
        list[str] | None, Meta(description="Instead of the image's command; its entrypoint stays.")
    ] = None
    entrypoint: Annotated[list[str] | None, Meta(description="Instead of the image's.")] = None
    env: Env = []
    cwd: AbsolutePath | None = None
    user: User = None
    hostname: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    terminal: bool = False
    mounts: list[Mount] = []
    netns: Annotated[
        str,
        Meta(
            pattern="^(new|host|/.+)(?!\n)$",
            max_length=4096,
            description="`new`, `host` or the path of a network namespace to join.",
        ),
    ] = "new"
    resources: Resources = Resources()
    read_only: Annotated[bool, Meta(description="The root file system.")] = False
    capabilities: Annotated[
        list[str], Meta(description="`NET_ADMIN` or `+NET_ADMIN` adds, `-KILL` takes away.")
    ] = []
    privileged: bool = False
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    runtime: Annotated[
        str | None, Meta(description="An OCI runtime's name or path; null: the default one.")
    ] = None
    snapshotter: Annotated[str | None, Meta(description="Null: the default one.")] = None
    stdio: Stdio = Stdio()


class ContainerParams(Params, frozen=True, kw_only=True):
    """Which container."""

    id: Identifier


class ContainerListParams(ListParams, frozen=True, kw_only=True):
    """Which containers."""

    all_namespaces: bool = False


class KillParams(ContainerParams, frozen=True, kw_only=True):
    """Which container, and what to send it."""

    signal: Signal = "SIGTERM"
    all: Annotated[bool, Meta(description="To all its processes, not to the first alone.")] = False


class DeleteParams(ContainerParams, frozen=True, kw_only=True):
    """Which container."""

    force: Annotated[bool, Meta(description="Kill it first, if it runs.")] = False


class Containers:
    """The methods of containers.

    :param ids: makes an id for a container that was given none.
    """

    def __init__(self, containers: IContainers, ids: Callable[[], str] = new_id) -> None:
        self._containers = containers
        self._ids = ids

    @method(
        "containers.create",
        errors=(
            "not_found",
            "already_exists",
            "failed_precondition",
            "unavailable",
            "resource_exhausted",
            "aborted",
        ),
        examples=(
            Example(
                {
                    "id": "web",
                    "image": "alpine",
                    "args": ["sleep", "60"],
                    "stdio": {"stdout": "file:///var/log/web.log"},
                },
                _CREATED,
            ),
        ),
    )
    async def create(self, call: Call, params: CreateParams) -> Container:
        """Make a container; its first process waits for `containers.start`.

        Until then its namespaces can be populated: the network's, above all.
        On an error nothing is left.
        """
        return shaped(await self._containers.create(_request(params, self._ids)), Container)

    @method(
        "containers.start",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example({"id": "web"}, _RUNNING),),
    )
    async def start(self, call: Call, params: ContainerParams) -> Container:
        """Let the first process of a created container go."""
        return shaped(await self._containers.start(params.namespace, params.id), Container)

    @method("containers.get", errors=("not_found",), examples=(Example({"id": "web"}, _RUNNING),))
    async def get(self, call: Call, params: ContainerParams) -> Container:
        """A container."""
        return shaped(await self._containers.get(params.namespace, params.id), Container)

    @method(
        "containers.list",
        examples=(Example({"limit": 10}, {"items": [_RUNNING], "next": None}),),
    )
    async def list(self, call: Call, params: ContainerListParams) -> ContainerPage:
        """The containers of a namespace, running or not, by creation."""
        found = await self._containers.list(None if params.all_namespaces else params.namespace)
        items, next = paged(found, params, _key, lambda c: shaped(c, Container))
        return ContainerPage(items=items, next=next)

    @method(
        "containers.wait", errors=("not_found",), examples=(Example({"id": "web"}, EXIT_EXAMPLE),)
    )
    async def wait(self, call: Call, params: ContainerParams) -> Exit:
        """How a container's first process ended, waiting for that if need be.

        It may be asked by any number, before the start, and again after the end.
        """
        return shaped(await self._containers.wait(params.namespace, params.id), Exit)

    @method(
        "containers.kill",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example({"id": "web", "signal": "KILL"}, {}),),
    )
    async def kill(self, call: Call, params: KillParams) -> Done:
        """Send a signal to a container's first process, or to all of them."""
        signal = number_of(params.signal)
        await self._containers.kill(params.namespace, params.id, signal, params.all)
        return Done()

    @method(
        "containers.delete",
        errors=("not_found", "failed_precondition", "aborted"),
        examples=(Example({"id": "web", "force": True}, {}),),
    )
    async def delete(self, call: Call, params: DeleteParams) -> Done:
        """Remove a container with all that was made for it."""
        await self._containers.delete(params.namespace, params.id, params.force)
        return Done()


def _request(params: CreateParams, ids: Callable[[], str]) -> ContainerRequest:
    given = [n for n in ("image", "rootfs", "bundle") if getattr(params, n) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "none of them"
        raise InvalidArgument(
            "image", f"give exactly one of image, rootfs, bundle; there is {what}"
        )
    return ContainerRequest(
        namespace=params.namespace,
        id=params.id if params.id is not None else ids(),
        image=params.image,
        rootfs=params.rootfs,
        bundle=params.bundle,
        args=None if params.args is None else tuple(params.args),
        entrypoint=None if params.entrypoint is None else tuple(params.entrypoint),
        env=env_value(params.env),
        cwd=params.cwd,
        user=params.user,
        hostname=params.hostname,
        terminal=params.terminal,
        mounts=tuple(
            UserMountValue(m.destination, m.type, m.source, tuple(m.options)) for m in params.mounts
        ),
        netns=params.netns,
        resources=_resources(params.resources),
        read_only=params.read_only,
        capabilities=tuple(params.capabilities),
        privileged=params.privileged,
        labels=params.labels,
        annotations=params.annotations,
        runtime=params.runtime,
        snapshotter=params.snapshotter,
        stdio=stdio_value(params.stdio),
    )


def _resources(given: Resources) -> ResourcesValue:
    limits = msgspec.structs.asdict(given)
    for name, value in limits.items():
        if isinstance(value, int | float) and value <= 0:
            raise InvalidArgument(f"resources.{name}", "must be more than 0; leave it out for none")
    return ResourcesValue(**limits)


def _key(container: ContainerValue) -> tuple[str, ...]:
    return (container.created_at, container.namespace, container.id)
