"""Bundles (runtime-spec, bundle.md): directories with a configuration, made before a shim is.

Blocking: for worker threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ctd.errors import InvalidArgument
from ctd.protocols import shim as words
from ctd.runtime import cgroups
from ctd.runtime.places import Places

CONFIG = "config.json"

#: The most bytes of a configuration that a client brings.
CONFIG_LIMIT = 4 << 20


def write(places: Places, run: str, config: Mapping[str, Any]) -> None:
    """Make the directories and cgroups of *run*, with *config* in its bundle.  Can be repeated."""
    cgroups.make(run)
    bundle = places.bundle(run)
    for directory in (
        places.runtime_root,
        places.shim(run),
        bundle,
        bundle / words.ROOTFS,
        places.shim(run) / words.IO,
        places.records(run),
    ):
        directory.mkdir(0o700, parents=True, exist_ok=True)
    (bundle / CONFIG).write_bytes(msgspec.json.encode(config))


def read(directory: str) -> tuple[dict[str, Any], str]:
    """A client's bundle: its configuration, and the directory of its root file system.

    :raise InvalidArgument: it is no bundle.
    """
    path = Path(directory, CONFIG)
    try:
        with path.open("rb") as file:
            body = file.read(CONFIG_LIMIT + 1)
        if len(body) > CONFIG_LIMIT:
            raise InvalidArgument("bundle", f"{path} is over {CONFIG_LIMIT} bytes")
        config = msgspec.json.decode(body, type=dict[str, Any])
        root = config["root"]["path"]
        args = config["process"]["args"]
        if not isinstance(root, str) or not isinstance(args, list):
            raise TypeError
    except OSError as error:
        raise InvalidArgument("bundle", f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidArgument("bundle", f"{path}: {error}") from None
    except (KeyError, TypeError):
        raise InvalidArgument("bundle", f"{path} has no root.path or process.args") from None
    rootfs = Path(directory, root)
    if not rootfs.is_dir():
        raise InvalidArgument("bundle", f"its root.path {root!r} is no directory")
    return config, str(rootfs.resolve())


def check_rootfs(path: str) -> None:
    """Check a directory that a client wants for a root.  :raise InvalidArgument: it is none."""
    if not Path(path).is_dir():
        raise InvalidArgument("rootfs", f"{path!r} is no directory")
