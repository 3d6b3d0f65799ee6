"""Options of run, create and exec, and the parameters they become."""

from __future__ import annotations

import os
import re

from ctd.cli.errors import CommandFailed, InvalidOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Any

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def container_options(parser: argparse.ArgumentParser) -> None:
    """What describes a new container."""
    add = parser.add_argument
    add("--name", help="the container's id; default: 12 random hex digits")
    process_options(parser)
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro]", help="bind a path")
    add(
        "--mount",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="type=bind,src=PATH,dst=PATH[,ro] or type=tmpfs,dst=PATH[,tmpfs-size=64m]",
    )
    add("--net", default="none", metavar="none|host|PATH", help="default: none, an empty one")
    add("--memory", metavar="SIZE", help="limit, like 512m")
    add("--cpus", metavar="N", help="limit, like 1.5")
    add("--pids", type=int, metavar="N", help="limit on processes and threads")
    add("--read-only", action="store_true", help="mount the root file system read-only")
    add("--runtime", help="an OCI runtime, by name or path")
    add("--snapshotter", help="where the root file system is made: overlayfs, native")
    add("-l", "--label", action="append", default=[], metavar="K[=V]")
    add("--entrypoint", help="instead of the image's; empty for none")
    add("--hostname")
    add("--privileged", action="store_true", help="all capabilities and devices")
    add("--cap-add", action="append", default=[], metavar="CAP")
    add("--cap-drop", action="append", default=[], metavar="CAP")
    command_words(parser, "IMAGE")


def process_options(parser: argparse.ArgumentParser) -> None:
    """What describes a process in a container."""
    add = parser.add_argument
    add("-e", "--env", action="append", default=[], metavar="K[=V]", help="V defaults to $K")
    add("--env-file", action="append", default=[], metavar="FILE", help="K=V lines")
    add("-u", "--user", metavar="USER[:GROUP]", help="names or numbers")
    add("-w", "--workdir", metavar="DIR")
    add("-t", "--tty", action="store_true", help="give it a terminal")


def command_words(parser: argparse.ArgumentParser, what: str) -> None:
    """Take *what* and the command after it, which is not looked into for options."""
    import argparse

    # One argument, not two: between two argparse would swallow a "--" of the command's.
    parser.usage = f"{parser.prog} [OPTION...] {what} [CMD [ARG...]]"
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(split=lambda words: first_word(parser, words, what))


def first_word(
    parser: argparse.ArgumentParser, words: list[str], what: str
) -> tuple[str, list[str]]:
    """The word that is *what*, and those after it; without one the usage is wrong."""
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        parser.error(f"{what} is missing")
    return words[0], words[1:]


def container_params(
    options: argparse.Namespace, name: str, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The parameters of ``containers.create``, without ``stdio``; only what was asked for.

    :raise InvalidOption: an option's value cannot be used.
    """
    image, command = options.split(options.words)
    params: dict[str, Any] = {
        "id": name,
        "image": image,
        **process_params(options, environ),
        "mounts": [*map(_volume, options.volume), *map(_mount, options.mount)],
        "netns": "new" if options.net == "none" else options.net,
        "resources": _resources(options),
        "read_only": options.read_only,
        "privileged": options.privileged,
        "capabilities": [
            *(_capability(one) for one in options.cap_add),
            *(f"-{_capability(one)}" for one in options.cap_drop),
        ],
        "labels": dict(_label(one) for one in options.label),
        "hostname": options.hostname,
        "runtime": options.runtime,
        "snapshotter": options.snapshotter,
    }
    if command:
        params["args"] = command
    kept = {key: value for key, value in params.items() if value not in (None, False, [], {})}
    if options.entrypoint is not None:
        kept["entrypoint"] = [options.entrypoint] if options.entrypoint else []
    return kept


def process_params(
    options: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The parameters that containers and execs have in common; None where nothing was asked."""
    env = [line for path in options.env_file for line in _env_file(path)]
    return {
        "env": [pair for one in [*env, *options.env] for pair in _variable(one, environ)],
        "user": options.user,
        "cwd": options.workdir,
        "terminal": options.tty,
    }


def parse_size(text: str, option: str) -> int:
    """Bytes from ``512m``, ``1.5g``, ``65536`` (powers of 1024).

    :raise InvalidOption: *text* is not that.
    """
    match = re.fullmatch(r"(\d+|\d*\.\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise InvalidOption(f"{option}: {text!r} is not a size like 512m or 1g")
    return int(float(match[1]) * _UNITS[match[2]])


def _resources(options: argparse.Namespace) -> dict[str, Any]:
    resources: dict[str, Any] = {}
    if options.memory is not None:
        resources["memory"] = parse_size(options.memory, "--memory")
    if options.cpus is not None:
        try:
            resources["cpus"] = float(options.cpus)
        except ValueError:
            raise InvalidOption(f"--cpus: {options.cpus!r} is not a number like 1.5") from None
    if options.pids is not None:
        resources["pids"] = options.pids
    return resources


def _volume(text: str) -> dict[str, Any]:
    source, *rest = text.split(":")
    if len(rest) not in (1, 2) or not source or not rest[0]:
        raise InvalidOption(f"--volume: {text!r} is not SRC:DST or SRC:DST:ro")
    modes = rest[1].split(",") if len(rest) == 2 else []
    if wrong := [mode for mode in modes if mode not in ("ro", "rw", "z", "Z")]:
        raise InvalidOption(f"--volume: {wrong[0]!r} is not ro or rw")
    if "/" not in source and source not in (".", ".."):
        raise InvalidOption(
            f"--volume: {source!r} is not a path", f"named volumes are not known; try ./{source}"
        )
    return _bind(source, rest[0], "ro" if "ro" in modes else "rw")


def _bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {
        "type": "bind",
        "source": os.path.abspath(source),
        "destination": destination,
        "options": ["rbind", *options],
    }


def _mount(text: str) -> dict[str, Any]:
    given: dict[str, str] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        key = {"source": "src", "destination": "dst", "target": "dst", "readonly": "ro"}.get(
            key, key
        )
        if key not in ("type", "src", "dst", "ro", "bind-propagation", "tmpfs-size", "tmpfs-mode"):
            raise InvalidOption(f"--mount: {key!r} is not an option of a mount")
        given[key] = value
    kind = given.pop("type", "bind")
    read_only = "ro" if given.pop("ro", "false").lower() in ("", "true", "1") else "rw"
    try:
        if kind == "bind":
            propagation = [given.pop("bind-propagation")] if "bind-propagation" in given else []
            mount = _bind(given.pop("src"), given.pop("dst"), read_only, *propagation)
        elif kind == "tmpfs":
            mount = {"type": "tmpfs", "source": "tmpfs", "destination": given.pop("dst")}
            mount["options"] = ["nosuid", "nodev", "noexec", read_only]
            if "tmpfs-size" in given:
                size = parse_size(given.pop("tmpfs-size"), "--mount tmpfs-size")
                mount["options"].append(f"size={size}")
            if "tmpfs-mode" in given:
                mount["options"].append(f"mode={given.pop('tmpfs-mode')}")
        else:
            raise InvalidOption(f"--mount: type {kind!r} is not bind or tmpfs")
    except KeyError as missing:
        raise InvalidOption(f"--mount: {text!r} lacks {missing.args[0]}=") from None
    if given:
        raise InvalidOption(f"--mount: a {kind} mount has no {next(iter(given))}")
    return mount


def _capability(text: str) -> str:
    return text.upper().removeprefix("CAP_")


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _variable(text: str, environ: Mapping[str, str]) -> Sequence[str]:
    name, has_value, _ = text.partition("=")
    if not name:
        raise InvalidOption(f"--env: {text!r} has no name")
    if has_value:
        return (text,)
    return (f"{name}={environ[name]}",) if name in environ else ()


def _env_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 (pathlib is slow to import)
            lines = [line.lstrip().rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"--env-file {path}: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]
