"""The mounts of an OCI configuration: those every container has, and those a client asks for."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import Any

from ctd.errors import InvalidArgument
from ctd.runtime.interfaces import UserMount

_PROPAGATION = frozenset(
    prefix + word for prefix in ("", "r") for word in ("private", "slave", "shared", "unbindable")
)
_CLOSED = ("nosuid", "noexec", "nodev")


def _mount(destination: str, type: str, *options: str, source: str = "") -> dict[str, Any]:
    return {
        "destination": destination,
        "type": type,
        "source": source or type,
        "options": list(options),
    }


def default_mounts(privileged: bool) -> list[dict[str, Any]]:
    """What is mounted in every container; only a privileged one may write to ``/sys``."""
    access = "rw" if privileged else "ro"
    return [
        _mount("/proc", "proc", *_CLOSED),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666",
               "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", *_CLOSED, "mode=1777", "size=65536k", source="shm"),
        _mount("/dev/mqueue", "mqueue", *_CLOSED),
        _mount("/sys", "sysfs", *_CLOSED, access),
        _mount("/sys/fs/cgroup", "cgroup", *_CLOSED, "relatime", access),
        _mount("/run", "tmpfs", "nosuid", "nodev", "strictatime", "mode=755", "size=65536k"),
    ]  # fmt: skip


def host_file(path: str) -> dict[str, Any]:
    """A file of the host, to be read at the same path."""
    return _mount(path, "bind", "bind", "ro", "rprivate", source=path)


def destination(mount: UserMount, field: str) -> str:
    """Where *mount* goes, without a final slash.

    :raise InvalidArgument: not to an absolute path below the root, free of ``.`` and ``..``.
    """
    path = mount.destination
    if not path.startswith("/"):
        raise InvalidArgument(f"{field}.destination", f"{path[:200]!r} is not an absolute path")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidArgument(f"{field}.destination", "/ is the root file system: give rootfs")
    if clean != path.rstrip("/"):
        raise InvalidArgument(f"{field}.destination", f"{path[:200]!r}: write it as {clean[:200]}")
    return clean


def user_mounts(mounts: Sequence[UserMount]) -> list[dict[str, Any]]:
    """What a client asks for, parents before what lies below them.

    :raise InvalidArgument: a mount cannot be used, or two have one destination.
    """
    made: dict[str, dict[str, Any]] = {}
    for number, mount in enumerate(mounts):
        field = f"mounts[{number}]"
        target = destination(mount, field)
        if target in made:
            raise InvalidArgument(f"{field}.destination", f"{target} is mounted on twice")
        if mount.type in ("bind", "rbind"):
            if not mount.source.startswith("/"):
                raise InvalidArgument(
                    f"{field}.source", f"{mount.source[:200]!r} is not an absolute path"
                )
            made[target] = _mount(target, "bind", *_bind(mount), source=mount.source)
        elif mount.type == "tmpfs":
            made[target] = _mount(target, "tmpfs", *_tmpfs(mount), source=mount.source)
        else:
            made[target] = _mount(target, mount.type, *mount.options, source=mount.source)
    return sorted(made.values(), key=lambda mount: mount["destination"].count("/"))


def _bind(mount: UserMount) -> list[str]:
    options = list(mount.options)
    if "bind" not in options and "rbind" not in options:
        options.insert(0, "rbind")
    if not _PROPAGATION.intersection(options):
        options.append("rprivate")
    return options


def _tmpfs(mount: UserMount) -> list[str]:
    options = list(mount.options)
    closed = [o for o in _CLOSED if o not in options and o.removeprefix("no") not in options]
    return [*closed, *options]


def merged(
    defaults: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Both, in the order to be mounted; what is wanted stands in for the default there and below.

    Someone who binds the host's ``/dev`` gets its ``/dev/pts`` with it.
    """
    over = [mount["destination"] for mount in wanted]

    def stays(mount: dict[str, Any]) -> bool:
        return not any(f"{mount['destination']}/".startswith(f"{path}/") for path in over)

    return [*filter(stays, defaults), *wanted]


def rootfs_propagation(mounts: Sequence[dict[str, Any]]) -> str | None:
    """What the root mount must be for the mounts in it; None: the runtime's default does."""
    shared = any({"shared", "rshared"}.intersection(mount["options"]) for mount in mounts)
    return "rshared" if shared else None
