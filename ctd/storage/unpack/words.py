"""What the daemon and its unpack worker say to each other: JSON, one object a line.

Down (standard input): ``{"job": N, "begin": {...}}``, ``{"job": N, "data":
{"fd", "size", "complete"}}`` as an answer to ``want``, ``{"job": N, "parent":
[PATH, ...]}``, ``{"job": N, "cancel": true}``.

Up (standard output): ``want`` OFFSET, ``progress`` [READ, ENTRIES], ``applied``
{diff_id, entries}, ``done`` true, ``failed`` {error, ...}, and last of all
``ended`` with how the job's process ended.

Several processes write to the same pipe: a line of at most :data:`LINE` bytes
is written whole (pipe(7), PIPE_BUF).
"""

from __future__ import annotations

import json
import os
from typing import Any

LINE = 4096

#: What a job can fail with; the rest of ``failed`` is its fields.
MALFORMED, TOO_LARGE, NEEDS_PARENT, FULL_DISK, BROKEN = (
    "malformed", "too_large", "needs_parent", "full_disk", "broken",
)  # fmt: skip

#: The most bytes of a name or reason that is passed on, as JSON has them.
_TEXT = 1200


def say(fd: int, **message: Any) -> None:
    """Write a message."""
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    assert len(line) <= LINE
    while line:
        line = line[os.write(fd, line) :]


def text(value: bytes | str) -> str:
    """A name or reason, short enough for a message whatever is in it."""
    shown = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
    if len(json.dumps(shown)) <= _TEXT:
        return shown
    shown = shown[:_TEXT]
    while len(json.dumps(shown)) > _TEXT:
        shown = shown[: len(shown) * 3 // 4]
    return shown + "..."
