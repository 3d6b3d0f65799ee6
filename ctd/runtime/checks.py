"""What must be true of a request before anything is done for it.  Pure.

The control protocol has looked at shapes already; a Python caller has nobody
else to do it, and images, spec and shim rely on what is checked here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import attrs

from ctd.errors import InvalidArgument
from ctd.protocols import shim as words
from ctd.runtime import capabilities
from ctd.runtime.interfaces import ContainerRequest, ExecRequest, Resources, Stdio, UserMount
from ctd.runtime.mounts import user_mounts

#: The longest id: with what surrounds it, it names files and sockets.
ID_LENGTH = 76
#: The most bytes of one argument or variable (MAX_ARG_STRLEN), and of all together.
STRING_LIMIT = (128 << 10) - 1
STRINGS_LIMIT = 1 << 20
PATH_LIMIT = 4095
#: The most bytes of a label's name and value, as in containerd; and of all labels.
LABEL_LIMIT = 4096
#: The same of an annotation.
ANNOTATION_LIMIT = 64 << 10
MAP_LIMIT = 1 << 20
MOUNTS = 1000
CAPABILITIES = 100
#: Less memory is not enough to start a container, in bytes: Docker's limit.
LEAST_MEMORY = 6 << 20
LARGEST = (1 << 63) - 1

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_CPUSET = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

#: What a bundle's own config.json says.
_IN_CONFIG = (
    "args",
    "entrypoint",
    "env",
    "cwd",
    "user",
    "hostname",
    "mounts",
    "netns",
    "resources",
    "read_only",
    "capabilities",
    "privileged",
    "annotations",
)


def check_container(request: ContainerRequest) -> None:
    """Whether a container can be asked for like this.

    :raise InvalidArgument: it cannot; what is wrong, and what would be right.
    """
    _id("namespace", request.namespace)
    _id("id", request.id)
    _origin(request)
    _process(request)
    if request.entrypoint is not None:
        _strings("entrypoint", request.entrypoint)
    if request.hostname is not None:
        _hostname(request.hostname)
    if request.netns not in ("new", "host"):
        _path("netns", request.netns, "new, host or an absolute path")
    _mounts(request.mounts)
    check_resources(request.resources)
    _map("labels", request.labels, LABEL_LIMIT)
    _map("annotations", request.annotations, ANNOTATION_LIMIT)
    for field in ("runtime", "snapshotter"):
        value = getattr(request, field)
        if value is not None:
            _text(field, value, PATH_LIMIT)
            _filled(field, value)


def check_exec(request: ExecRequest) -> None:
    """Whether another process can be asked for like this.

    :raise InvalidArgument: it cannot.
    """
    _id("namespace", request.namespace)
    _id("container", request.container)
    _id("id", request.id)
    _process(request)
    if not request.args or not request.args[0]:
        raise InvalidArgument("args", "the executable is missing, and must be given")


def check_resources(limits: Resources) -> None:
    """Whether a container can have these limits.

    :raise InvalidArgument: it cannot.
    """
    memory, swap = limits.memory, limits.memory_swap
    _number("resources.memory", memory, LEAST_MEMORY, LARGEST)
    _number("resources.memory_swap", swap, LEAST_MEMORY, LARGEST)
    if swap is not None and (memory is None or swap < memory):
        raise InvalidArgument(
            "resources.memory_swap",
            "is memory and swap together: give memory too, and not more than this",
        )
    _number("resources.cpus", limits.cpus, 0.01, 100_000)
    _number("resources.cpu_shares", limits.cpu_shares, 2, 262_144)
    _number("resources.pids", limits.pids, 1, 1 << 22)
    if limits.cpuset_cpus is not None and not _CPUSET.fullmatch(limits.cpuset_cpus):
        raise InvalidArgument(
            "resources.cpuset_cpus", f"{limits.cpuset_cpus[:40]!r} is no list like 0-2,7"
        )


def _origin(request: ContainerRequest) -> None:
    given = [n for n in ("image", "rootfs", "bundle") if getattr(request, n) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "none of them"
        raise InvalidArgument(
            "image", f"give exactly one of image, rootfs, bundle; there is {what}"
        )
    (field,) = given
    if field == "image":
        _text("image", request.image or "", PATH_LIMIT)
        _filled("image", request.image or "")
    else:
        _path(field, getattr(request, field))
    if field == "bundle":
        default = ContainerRequest(request.namespace, request.id)
        for name in _IN_CONFIG:
            if getattr(request, name) != getattr(default, name):
                raise InvalidArgument(
                    name, "is not used with a bundle: leave it out, and say it in config.json"
                )


def _process(request: ContainerRequest | ExecRequest) -> None:
    if request.args is not None:
        _strings("args", request.args)
    _strings("env", request.env)
    for number, entry in enumerate(request.env):
        if entry.find("=") < 1:
            raise InvalidArgument(f"env[{number}]", f"{entry[:40]!r} is not NAME=value")
    if request.cwd is not None:
        _path("cwd", request.cwd)
    if request.user is not None:
        _text("user", request.user, 256)
    if len(request.capabilities or ()) > CAPABILITIES:
        raise InvalidArgument("capabilities", f"there are more than {CAPABILITIES}")
    capabilities.parse(request.capabilities or ())
    _stdio(request.stdio)


def _mounts(mounts: Sequence[UserMount]) -> None:
    if len(mounts) > MOUNTS:
        raise InvalidArgument("mounts", f"there are more than {MOUNTS}")
    for number, mount in enumerate(mounts):
        field = f"mounts[{number}]"
        _text(f"{field}.destination", mount.destination, PATH_LIMIT)
        _text(f"{field}.source", mount.source, PATH_LIMIT)
        if not _TYPE.fullmatch(mount.type):
            raise InvalidArgument(
                f"{field}.type", f"{mount.type[:40]!r} is not bind, tmpfs or a file system's type"
            )
        _strings(f"{field}.options", mount.options)
        for at, option in enumerate(mount.options):
            _filled(f"{field}.options[{at}]", option)
    user_mounts(mounts)


def _stdio(stdio: Stdio) -> None:
    for name, uri in attrs.asdict(stdio).items():
        _text(f"stdio.{name}", uri, PATH_LIMIT)
        try:
            words.stream(uri, name)
        except words.FieldError as error:
            raise InvalidArgument(f"stdio.{name}", error.reason) from None


def _id(field: str, value: str) -> None:
    if len(value) > ID_LENGTH or not _ID.fullmatch(value):
        raise InvalidArgument(
            field,
            f"{value[:80]!r}: write 1 to {ID_LENGTH} letters, digits, '_', '.' and '-',"
            " a letter or digit first",
        )


def _hostname(value: str) -> None:
    if len(value) > 64 or not _HOSTNAME.fullmatch(value):
        raise InvalidArgument(
            "hostname",
            f"{value[:80]!r}: write 1 to 64 letters, digits, '-' and '.', a letter or digit first"
            " and last",
        )


def _path(field: str, value: str, what: str = "an absolute path") -> None:
    _text(field, value, PATH_LIMIT)
    if not value.startswith("/"):
        raise InvalidArgument(field, f"{value[:200]!r} is not {what}")


def _filled(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(field, "is empty: fill it in, or leave it out")


def _text(field: str, value: str, limit: int) -> int:
    """The size of *value* in bytes."""
    if "\0" in value:
        raise InvalidArgument(field, "must not hold a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(field, "is not Unicode text: it has a surrogate") from None
    if size > limit:
        raise InvalidArgument(field, f"has {size} bytes; at most {limit} can be used")
    return size


def _strings(field: str, values: Sequence[str]) -> None:
    size = sum(
        _text(f"{field}[{number}]", value, STRING_LIMIT) + 1 for number, value in enumerate(values)
    )
    if size > STRINGS_LIMIT:
        raise InvalidArgument(field, f"has {size} bytes; at most {STRINGS_LIMIT} can be used")


def _map(field: str, values: Mapping[str, str], limit: int) -> None:
    total = 0
    for name, value in values.items():
        if not name:
            raise InvalidArgument(field, "has an empty name: every one needs a name")
        where = f"{field}.{name[:40]}"
        size = _text(where, name, limit) + _text(where, value, limit)
        if size > limit:
            raise InvalidArgument(where, f"has {size} bytes with its name; at most {limit} can be")
        total += size
    if total > MAP_LIMIT:
        raise InvalidArgument(field, f"have {total} bytes; at most {MAP_LIMIT} can be used")


def _number(field: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise InvalidArgument(
            field, f"{value!r}: give {least} to {most}, or leave it out for no limit"
        )
