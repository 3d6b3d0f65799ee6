"""What containers and processes have in common on the wire."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from ctd.errors import InvalidArgument
from ctd.protocols.control.results import Result, Time
from ctd.protocols.params import IDENTIFIER, clip
from ctd.runtime.interfaces import Stdio as StdioValue

Identifier = Annotated[str, Meta(pattern=IDENTIFIER, max_length=76)]
AbsolutePath = Annotated[str, Meta(pattern="^/", max_length=4096)]
Stream = Annotated[
    str,
    Meta(
        pattern="^(null|attach|(fifo|file):///.+)(?!\n)$",
        max_length=4096,
        description=(
            "`null`, `attach`, `fifo:///path[?unread=block|drop]` or"
            " `file:///path[?format=raw|json|cri&max_size=BYTES&max_files=N]`."
        ),
    ),
]
Args = Annotated[list[str], Meta(min_length=1, description="The executable and its arguments.")]
Env = Annotated[
    list[str] | dict[str, str],
    Meta(
        description="`NAME=value` strings, or an object of names and values.",
        examples=[["LANG=C.UTF-8"], {"LANG": "C.UTF-8"}],
    ),
]
User = Annotated[
    str | None, Meta(description="`user[:group]`, names (looked up in the container) or numbers.")
]


class Stdio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where standard streams go."""

    stdin: Stream = "null"
    stdout: Stream = "null"
    stderr: Stream = "null"


class Exit(Result, frozen=True, kw_only=True):
    """How a process ended."""

    exit_status: Annotated[
        int, Meta(description="0 to 255; 128 + the signal's number if a signal ended it.")
    ]
    exit_reason: Annotated[
        str, Meta(description="exited, signalled, oom, runtime_failure or lost.")
    ]
    exited_at: Time


EXIT_EXAMPLE = {
    "exit_status": 137,
    "exit_reason": "signalled",
    "exited_at": "2026-01-02T03:04:07.000000Z",
}


def stdio_value(stdio: Stdio) -> StdioValue:
    """*stdio* as the runtime takes it."""
    return StdioValue(stdio.stdin, stdio.stdout, stdio.stderr)


def env_value(env: list[str] | Mapping[str, str]) -> tuple[str, ...]:
    """An environment as ``NAME=value`` strings.

    :raise InvalidArgument: an entry has no name, or its name has a ``=``.
    """
    if isinstance(env, Mapping):
        for name in env:
            if not name or "=" in name:
                raise InvalidArgument("env", f"{clip(name, 40)!r} cannot be a variable's name")
        return tuple(f"{name}={value}" for name, value in env.items())
    for number, entry in enumerate(env):
        if entry.find("=") < 1:
            raise InvalidArgument(f"env[{number}]", f"{clip(entry, 40)!r} is not NAME=value")
    return tuple(env)


def new_id() -> str:
    """An id for what the client gave none: 12 hex digits."""
    return secrets.token_hex(6)
