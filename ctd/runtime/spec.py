"""OCI runtime configurations (runtime-spec 1.0.2, config.md) from requests.  Pure functions.

The defaults are containerd's: few capabilities, no new privileges, the
kernel's doors in ``/proc`` and ``/sys`` masked or read-only, no devices but
the harmless ones.  No resource limits (rlimits) are set: a daemon without
CAP_SYS_RESOURCE could not raise them, so a container has the daemon's.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ctd.errors import InvalidArgument
from ctd.model import ProcessDefaults, User
from ctd.protocols import shim as words
from ctd.runtime import capabilities
from ctd.runtime.host import Device, Host
from ctd.runtime.interfaces import ContainerRequest, ExecRequest
from ctd.runtime.limits import linux_resources
from ctd.runtime.mounts import (
    default_mounts,
    host_file,
    merged,
    rootfs_propagation,
    user_mounts,
)

OCI_VERSION = "1.0.2"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM = "xterm"

#: The most bytes of an OCI process object: it goes to the shim in one line, with a little more.
PROCESS_LIMIT = words.MAX_LINE - (64 << 10)

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

#: Numbers of the character devices that may be opened: null, zero, full, random, urandom,
#: tty, console, ptmx, and the terminals of devpts.
_OPEN_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))

#: Of a container's process object, what is not for the processes executed later.
_FIRST_ONLY = ("args", "commandLine", "consoleSize", "terminal")


def cgroups_path(run: str) -> str:
    """The cgroup of a run, below the root of each hierarchy."""
    return f"/ctd/{run}"


def container_spec(
    request: ContainerRequest,
    defaults: ProcessDefaults,
    user: User,
    run: str,
    host: Host = Host(),  # noqa: B008
) -> dict[str, Any]:
    """A whole ``config.json``; the root file system is ``rootfs`` in the bundle.

    The request has passed :func:`ctd.runtime.checks.check_container`.

    :param defaults: what the image says; empty without one.
    :param user: whom ``request.user``, or else ``defaults.user``, stands for.
    :raise InvalidArgument: there is no command, or the image's configuration or a
        capability cannot be used.
    """
    wanted = user_mounts(request.mounts)
    mounts = default_mounts(request.privileged)
    if request.netns == "host":
        mounts += map(host_file, host.resolver_files)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(request, defaults, user, host),
        "root": {"path": words.ROOTFS, "readonly": request.read_only},
        "hostname": hostname(request),
        "mounts": merged(mounts, wanted),
        "annotations": dict(request.annotations),
        "linux": {
            "cgroupsPath": cgroups_path(run),
            "namespaces": _namespaces(request.netns, host),
            "resources": {
                "devices": _device_rules(request.privileged),
                **linux_resources(request.resources),
            },
            "maskedPaths": [] if request.privileged else list(MASKED_PATHS),
            "readonlyPaths": [] if request.privileged else list(READONLY_PATHS),
        },
    }
    if request.privileged:
        spec["linux"]["devices"] = [_device(device) for device in host.devices]
    propagation = rootfs_propagation(wanted)
    if propagation is not None:
        spec["linux"]["rootfsPropagation"] = propagation
    return spec


def exec_process(
    base: Mapping[str, Any],
    request: ExecRequest,
    user: User | None,
    host: Host = Host(),  # noqa: B008
) -> dict[str, Any]:
    """The OCI ``process`` object of another process in a container.

    What the request leaves out is as in *base*, the container's own; so are the
    limits on privileges always.  Another user has a ``HOME`` of its own.

    :param user: whom ``request.user`` stands for; None if it is None.
    :raise InvalidArgument: there is no command, it is all too large, or a
        capability cannot be used.
    """
    if not request.args or not request.args[0]:
        raise InvalidArgument("args", "the executable is missing, and must be given")
    process = {name: value for name, value in base.items() if name not in _FIRST_ONLY}
    was = dict(base.get("user") or {"uid": 0, "gid": 0})
    own: list[str] = []
    if user is not None:
        process["user"] = {**was, **_user(user)}
        if user.uid != was.get("uid", 0):
            own.append(f"HOME={user.home or '/'}")
    preset = [f"TERM={TERM}"] if request.terminal else []
    process["args"] = list(request.args)
    process["env"] = environment(preset, base.get("env") or (), own, request.env)
    process["cwd"] = request.cwd or base.get("cwd") or "/"
    process["terminal"] = request.terminal
    if request.capabilities is not None:
        had = (base.get("capabilities") or {}).get("bounding") or ()
        process["capabilities"] = _capabilities(
            capabilities.tweak(had, request.capabilities, host.capabilities)
        )
    if len(json.dumps(process)) > PROCESS_LIMIT:
        raise InvalidArgument(
            "args", f"args and env are together over {PROCESS_LIMIT} bytes: pass less, or a file"
        )
    return process


def environment(*layers: Iterable[str]) -> list[str]:
    """``NAME=value`` strings, a later one in place of an earlier one of that name."""
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            name, equals, value = entry.partition("=")
            if name and equals:
                merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def command(request: ContainerRequest, defaults: ProcessDefaults) -> list[str]:
    """What is run: the request's or the image's entrypoint, then the request's or image's command.

    A new entrypoint makes nothing of the image's command; ``[""]`` is none, as in Docker.

    :raise InvalidArgument: that is nothing.
    """
    entrypoint = defaults.entrypoint if request.entrypoint is None else request.entrypoint
    if entrypoint == ("",):
        entrypoint = ()
    if request.args is not None:
        args = request.args
    elif request.entrypoint is None:
        args = defaults.args[len(defaults.entrypoint) :]
    else:
        args = ()
    whole = [*entrypoint, *args]
    if not whole:
        what = "the image has no command" if request.image else "there is no image to have one"
        raise InvalidArgument("args", f"there is no command to run: {what}, so args must be given")
    if not whole[0]:
        raise InvalidArgument("args", "the executable's name is empty")
    return whole


def hostname(request: ContainerRequest) -> str:
    """The request's, or one made of the container's id."""
    if request.hostname is not None:
        return request.hostname
    return re.sub(r"[^A-Za-z0-9.-]", "-", request.id)[:63].rstrip("-.")


def _process(
    request: ContainerRequest, defaults: ProcessDefaults, user: User, host: Host
) -> dict[str, Any]:
    preset = [f"PATH={PATH}", f"HOSTNAME={hostname(request)}", f"HOME={user.home or '/'}"]
    if request.terminal:
        preset.append(f"TERM={TERM}")
    args = command(request, defaults)
    env = environment(preset, defaults.env, request.env)
    cwd = request.cwd or "/" + posixpath.normpath("/" + defaults.cwd).lstrip("/")
    for text in (*args, *env, cwd):
        if "\0" in text:
            raise InvalidArgument(
                "image" if request.image else "args", "its command, Env or WorkingDir holds a NUL"
            )
    base = host.capabilities if request.privileged else capabilities.DEFAULT
    return {
        "terminal": request.terminal,
        "user": _user(user),
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": _capabilities(
            capabilities.tweak(base, request.capabilities, host.capabilities)
        ),
        "noNewPrivileges": not request.privileged,
        # Not the daemon's own protection from the OOM killer.
        "oomScoreAdj": max(0, host.oom_score_adj),
    }


def _user(user: User) -> dict[str, Any]:
    # The group is among the additional ones too: a process that drops those must
    # not lose what is denied to the group (CVE-2023-25173).
    groups = dict.fromkeys((user.gid, *user.additional_gids))
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(groups)}


def _capabilities(names: Iterable[str]) -> dict[str, list[str]]:
    names = list(names)
    return {
        "bounding": names,
        "effective": names,
        "permitted": names,
        "inheritable": [],
        "ambient": [],
    }


def _namespaces(netns: str, host: Host) -> list[dict[str, str]]:
    namespaces = [{"type": name} for name in ("pid", "ipc", "uts", "mount")]
    if netns == "new":
        namespaces.append({"type": "network"})
    elif netns != "host":
        namespaces.append({"type": "network", "path": netns})
    if host.unified:
        namespaces.append({"type": "cgroup"})
    return namespaces


def _device_rules(privileged: bool) -> list[dict[str, Any]]:
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    # Nodes can be made, and not opened.
    rules += ({"allow": True, "type": type, "access": "m"} for type in ("c", "b"))
    for major, minor in _OPEN_DEVICES:
        rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else {**rule, "minor": minor})
    return rules


def _device(device: Device) -> dict[str, Any]:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }
