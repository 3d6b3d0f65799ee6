"""What runtime offers: containers and their processes; and what it needs from others.

A *container* is a record, a root file system, a bundle and processes; its
first process is called ``init``, the others come by *exec*.  Each time a
container is brought to life is a *run* with an id of its own, and each run has
one *shim*.  A *bundle* is a directory an OCI runtime works on (runtime-spec,
bundle.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs
from zope.interface import Attribute, Interface

from ctd.model import Mount, ProcessDefaults, User

#: The name of a container's first process.
INIT = "init"


class Status(StrEnum):
    """What the protocol says of a container.  ``created`` has a waiting first process."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class ExitReason(StrEnum):
    """Why a process is no more."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OOM = "oom"
    RUNTIME_FAILURE = "runtime_failure"
    LOST = "lost"


@attrs.frozen
class Stdio:
    """Where a process's standard streams go.

    Each is ``null``, ``attach``, ``fifo:///path[?unread=block|drop]`` or
    ``file:///path[?format=raw|json|cri&max_size=BYTES&max_files=N]``.
    """

    stdin: str = "null"
    stdout: str = "null"
    stderr: str = "null"


@attrs.frozen
class UserMount:
    """A mount a client asks for, as in an OCI configuration (runtime-spec, config.md, "Mounts")."""

    destination: str
    type: str = "bind"
    source: str = ""
    options: tuple[str, ...] = ()


@attrs.frozen
class Resources:
    """Limits on a container.  None: no limit.

    :ivar memory: bytes.
    :ivar cpus: CPUs, 0.5 is half of one.
    :ivar pids: processes and threads.
    """

    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    pids: int | None = None


@attrs.frozen
class ContainerRequest:
    """What ``containers.create`` asks for.  Exactly one of image, rootfs and bundle is given.

    :ivar rootfs: a directory to be used as it is.
    :ivar bundle: an OCI bundle; its config.json is used as it is.
    :ivar args: instead of the image's command; the image's entrypoint stays
        unless ``entrypoint`` is given.
    :ivar netns: ``new``, ``host`` or the path of a network namespace.
    :ivar capabilities: names to add (``NET_ADMIN``, ``+NET_ADMIN``) or to take away (``-KILL``).
    """

    namespace: str
    id: str
    image: str | None = None
    rootfs: str | None = None
    bundle: str | None = None
    args: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    hostname: str | None = None
    terminal: bool = False
    mounts: tuple[UserMount, ...] = ()
    netns: str = "new"
    resources: Resources = Resources()
    read_only: bool = False
    capabilities: tuple[str, ...] = ()
    privileged: bool = False
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    runtime: str | None = None
    snapshotter: str | None = None
    stdio: Stdio = Stdio()


@attrs.frozen
class ExecRequest:
    """What ``processes.exec`` asks for; what is None is as for the container's first process."""

    namespace: str
    container: str
    id: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    terminal: bool = False
    capabilities: tuple[str, ...] | None = None
    stdio: Stdio = Stdio()


@attrs.frozen
class Exit:
    """How a process ended.

    :ivar exit_status: 0 to 255; 128 + the signal's number if a signal ended it;
        255 if it is not known (``lost``).
    :ivar exited_at: RFC 3339, UTC.
    :ivar started_at: when it had been started, as exit records on disk tell; None:
        never, or this is not such a record.
    """

    exit_status: int
    exit_reason: str
    exited_at: str
    started_at: str | None = None


@attrs.frozen
class Container:
    """A container's record, as the protocol shows it.  Times are RFC 3339 UTC, or None."""

    id: str
    namespace: str
    image: str | None
    status: str
    pid: int | None
    exit_status: int | None
    exit_reason: str | None
    created_at: str
    started_at: str | None
    exited_at: str | None
    bundle: str
    netns: str | None
    labels: Mapping[str, str]
    runtime: str
    snapshotter: str | None
    stdio: Stdio
    args: tuple[str, ...]
    terminal: bool = False


@attrs.frozen
class Process:
    """A process's record.  :ivar attach: its attach socket's path, if it has one."""

    id: str
    container: str
    namespace: str
    status: str
    pid: int | None
    exit_status: int | None
    exit_reason: str | None
    started_at: str | None
    exited_at: str | None
    args: tuple[str, ...]
    terminal: bool
    stdio: Stdio
    attach: str | None = None


class IContainers(Interface):
    """Containers, by namespace and id.  Every call is safe against every other at any moment."""

    async def create(request: ContainerRequest) -> Container:
        """Make a container whose first process waits to be started.

        On an error nothing is left.

        :raise AlreadyExists: the id is taken.
        :raise InvalidArgument: a field of the request cannot be used.
        :raise NotFound: there is no such image.
        :raise CommandNotFound: the executable is not in the root file system.
        :raise RuntimeFailure: the OCI runtime refused; ``reason`` is its own message.
        """

    async def start(namespace: str, id: str) -> Container:
        """Let the first process go.

        :raise FailedPrecondition: it is not ``created``.
        """

    async def get(namespace: str, id: str) -> Container:
        """Its record.  :raise NotFound: no such container."""

    async def list(namespace: str | None = None) -> Sequence[Container]:
        """All, or one namespace's, by creation."""

    async def wait(namespace: str, id: str) -> Exit:
        """How its first process ended, waiting for that if need be.

        Asked before the start it waits as well.  Any number may wait; the
        answer stays until the container is deleted.

        :raise NotFound: no such container, or it is deleted without ever having run.
        """

    async def kill(namespace: str, id: str, signal: int = 15, all: bool = False) -> None:
        """Send a signal to the first process, or to *all*.

        :raise FailedPrecondition: it does not run.
        """

    async def delete(namespace: str, id: str, force: bool = False) -> None:
        """Remove a container with all that was made for it.

        :raise FailedPrecondition: it runs, and *force* was not given.
        """


class IProcesses(Interface):
    """The processes of containers.  ``init`` is one of them."""

    async def exec(request: ExecRequest) -> Process:
        """Run another process in a running container; it has started when this answers.

        :raise NotFound: no such container.
        :raise FailedPrecondition: the container does not run.
        :raise AlreadyExists: the container has a process of that id.
        :raise CommandNotFound: no such executable, or it cannot be executed.
        :raise RuntimeFailure: the OCI runtime refused.
        """

    async def get(namespace: str, container: str, id: str) -> Process:
        """Its record.  :raise NotFound: no such process."""

    async def list(namespace: str, container: str) -> Sequence[Process]:
        """All of a container's.  :raise NotFound: no such container."""

    async def wait(namespace: str, container: str, id: str) -> Exit:
        """How it ended, waiting for that if need be."""

    async def kill(namespace: str, container: str, id: str, signal: int = 15) -> None:
        """Send a signal.  :raise FailedPrecondition: it does not run."""

    async def close_stdin(namespace: str, container: str, id: str) -> None:
        """Let the process read an end of file.  Can be repeated."""

    async def delete(namespace: str, container: str, id: str) -> None:
        """Forget a process that has ended.  :raise FailedPrecondition: it runs, or is ``init``."""


@attrs.frozen
class Rootfs:
    """A root file system made for a container.

    :ivar image: the image's full name; ``digest``: its manifest's.
    """

    mounts: tuple[Mount, ...]
    defaults: ProcessDefaults
    image: str
    digest: str
    snapshotter: str


class IRootfsSource(Interface):
    """Where containers' root file systems come from; implemented by images/."""

    async def prepare(namespace: str, key: str, image: str, snapshotter: str | None) -> Rootfs:
        """Make a writable root file system from *image*; *key* names it from now on.

        :raise NotFound: the image is not here.
        :raise AlreadyExists: *key* is taken.
        """

    async def user(mounts: Sequence[Mount], user: str, pid: int | None = None) -> User:
        """Look ``user[:group]`` up in the root file system's own passwd and group files.

        Nothing is mounted where anyone else could see it.

        :param pid: of a process that runs in it, if there is one: its view is read then.

        :raise InvalidArgument: there is no such user or group.
        """

    async def release(namespace: str, key: str, snapshotter: str) -> None:
        """Remove what :meth:`prepare` made.  Not having it is no error: can be repeated."""


@attrs.frozen
class ShimSpec:
    """What a new shim is told when it is forked.

    :ivar run: the run's id: 12 hex digits, also the name of its directories.
    :ivar runtime: the OCI runtime's path.
    """

    run: str
    namespace: str
    container: str
    runtime: str


@attrs.frozen
class ProcessState:
    """What a shim knows of one of its processes.

    :ivar status: ``created``, ``running`` or ``stopped``.
    """

    id: str
    status: str
    pid: int
    started_at: str | None = None
    exit: Exit | None = None


class IShim(Interface):
    """A live shim.  Every method can be repeated: what is done already is no error.

    :raise ShimGone: from every method: the shim has died, or the connection to it is lost.
    :raise RuntimeFailure: from those that run the OCI runtime.
    """

    run = Attribute("str")
    pid = Attribute("int")

    async def create(mounts: Sequence[Mount], stdio: Stdio, terminal: bool) -> ProcessState:
        """Mount the root file system and create the container from the run's bundle."""

    async def start() -> ProcessState:
        """Let the first process go."""

    async def exec(
        process: str, spec: Mapping[str, Any], stdio: Stdio, terminal: bool
    ) -> ProcessState:
        """Start another process; *spec* is an OCI ``process`` object."""

    async def kill(process: str, signal: int, all: bool = False) -> None:
        """Send a signal.  :raise FailedPrecondition: it does not run."""

    async def close_stdin(process: str) -> None:
        """Close the shim's end of the process's standard input."""

    async def state() -> Sequence[ProcessState]:
        """Every process it knows, ``init`` first."""

    async def delete(process: str) -> None:
        """Forget a stopped process; for ``init`` also delete the container at the OCI runtime."""

    async def shutdown() -> None:
        """Let the shim end itself; its ``init`` must be deleted or never created."""


class IShimListener(Interface):
    """Whom shims tell.  Called in the reactor's thread, for each shim in order."""

    def exited(run: str, process: str, exit: Exit) -> None:
        """A process has ended; its record is on disk.  May be told again after a reattach."""

    def reconnected(run: str, states: Sequence[ProcessState]) -> None:
        """A connection that was lost is there again; *states* are as they are now."""

    def died(run: str) -> None:
        """The shim itself is gone; told once for each shim that was forked or attached to."""


class IShims(Interface):
    """All shims of this daemon."""

    def listen(listener: IShimListener) -> None:
        """Tell *listener* what happens; called once, before anything is forked or attached."""

    async def fork(spec: ShimSpec) -> IShim:
        """Have the template fork a shim, and connect to it.

        Its directory holds the bundle already.

        :raise Unavailable: the template cannot be brought to fork.
        """

    async def attach(run: str) -> IShim:
        """Connect to a shim that a former daemon left.

        :raise ShimGone: there is none.
        :raise Unavailable: it lives but does not answer in time; it is left as it is.
        """

    async def found() -> Sequence[str]:
        """The runs that have a directory in the state or the root directory."""

    async def records(run: str) -> Mapping[str, Exit]:
        """The exits on disk, by process, whether or not the shim lives."""

    async def end(run: str, runtime: str | None) -> None:
        """End a run's shim and processes by all means; its exit records stay.  Can be repeated.

        Nothing more is told of it.
        """

    async def destroy(run: str, runtime: str | None = None) -> None:
        """End a run by all means and leave nothing of it.

        Kills the shim and the container, deletes the container at the OCI
        runtime, removes its cgroups and both directories.  Can be repeated.
        """
