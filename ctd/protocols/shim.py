"""The words of the shim protocol (design/shim-protocol.md), for both of its sides.

Standard library only, and little of that: every shim carries it.
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: The versions of the protocol that this side speaks; the newest is :data:`VERSION`.
VERSIONS = (1,)
VERSION = 1

#: The most bytes of a line in either direction, without its newline.
MAX_LINE = 1 << 20

#: The name of a container's first process.
INIT = "init"

#: In a run's directory below the state directory.
SHIM_FILE = "shim.json"
SOCKET = "shim.sock"
LOG = "shim.log"
BUNDLE = "bundle"
IO = "io"
#: In the bundle.
ROOTFS = "rootfs"
RUNTIME_LOG = "runtime.log"

#: Error kinds.
RUNTIME_FAILURE = "runtime_failure"
COMMAND_NOT_FOUND = "command_not_found"
COMMAND_NOT_EXECUTABLE = "command_not_executable"
FAILED_PRECONDITION = "failed_precondition"
NOT_FOUND = "not_found"
INVALID_ARGUMENT = "invalid_argument"
UNIMPLEMENTED = "unimplemented"
INTERNAL = "internal"

#: Process statuses.
CREATED = "created"
RUNNING = "running"
STOPPED = "stopped"

#: Exit reasons that a shim gives.
EXITED = "exited"
SIGNALLED = "signalled"
OOM = "oom"

_RUN = re.compile(r"[0-9a-f]{12}")
_PROCESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,75}")
_EXIT_FILE = re.compile(r"exit-(" + _PROCESS.pattern + r")\.json")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")


class Failure(Exception):
    """An error reply: a kind, a message, and the kind's fields."""

    def __init__(self, kind: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fields = fields

    def words(self) -> dict[str, Any]:
        """The ``error`` of a reply."""
        return {"kind": self.kind, "message": self.message, **self.fields}

    @classmethod
    def read(cls, words: Mapping[str, Any]) -> Failure:
        """A failure from the ``error`` of a reply."""
        fields = {str(name): value for name, value in words.items()}
        kind = str(fields.pop("kind", INTERNAL))
        message = str(fields.pop("message", ""))
        failure = cls(kind, message)
        failure.fields = fields
        return failure


class FieldError(ValueError):
    """A value that cannot be used.  :ivar field: whose.  :ivar reason: why, for people."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as a line, with its newline.  :raise ValueError: it is over :data:`MAX_LINE`."""
    line = json.dumps(message, separators=(",", ":")).encode()
    if len(line) > MAX_LINE:
        raise ValueError(f"a message of {len(line)} bytes is over {MAX_LINE}")
    return line + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """A message from a line.  :raise ValueError: it is no JSON object."""
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


class Lines:
    """Splits a stream at newlines; holds at most *limit* bytes.  Blank lines are left out."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that *data* completes.

        :raise ValueError: a line is over the limit: nothing after it can be trusted.
        """
        *complete, rest = data.split(b"\n")
        lines = []
        for piece in complete:
            self._take(piece)
            if self._rest.strip():
                lines.append(bytes(self._rest))
            self._rest.clear()
        self._take(rest)
        return lines

    def _take(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > self._limit:
            raise ValueError(f"a line is over {self._limit} bytes")
        self._rest += piece


def is_run(run: str) -> bool:
    """Whether *run* is a run id: 12 hex digits."""
    return _RUN.fullmatch(run) is not None


def is_process(process: str) -> bool:
    """Whether *process* can be the id of a process, and so a part of file names."""
    return _PROCESS.fullmatch(process) is not None


def exit_file(process: str) -> str:
    """The name of a process's exit record."""
    return f"exit-{process}.json"


def process_of(file_name: str) -> str | None:
    """Whose exit record a file is, or None if it is no such file."""
    match = _EXIT_FILE.fullmatch(file_name)
    return match.group(1) if match else None


def attach_file(process: str) -> str:
    """The attach socket of a process, relative to the run's directory."""
    return f"{IO}/{process}.sock"


class Stream:
    """Where one standard stream goes, parsed from a URI by :func:`stream`.

    :ivar kind: ``null``, ``attach``, ``fifo`` or ``file``.
    :ivar path: of the fifo or file, absolute; empty otherwise.
    :ivar unread: of a fifo: ``block`` or ``drop``.
    :ivar format: of a file: ``raw``, ``json`` or ``cri``.
    :ivar max_size: of a file: rotate it before it grows over so many bytes; 0: never.
    :ivar max_files: of a file: how many there may be, with the one written to.
    """

    __slots__ = ("format", "kind", "max_files", "max_size", "path", "unread")

    def __init__(self, kind: str, path: str = "") -> None:
        self.kind = kind
        self.path = path
        self.unread = "block"
        self.format = "raw"
        self.max_size = 0
        self.max_files = 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"Stream({values})"


_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "fifo": {"unread": ("block", "drop")},
    "file": {"format": ("raw", "json", "cri")},
}
_NUMBERS: dict[str, dict[str, tuple[int, int]]] = {
    "file": {"max_size": (1, 1 << 62), "max_files": (1, 1000)}
}


def stream(uri: object, field: str = "stdout") -> Stream:
    """Parse ``null``, ``attach``, ``fifo:///path?...`` or ``file:///path?...``.

    :param field: ``stdin``, ``stdout`` or ``stderr``; a file cannot be ``stdin``.

    :raise FieldError: it cannot be used.
    """
    if not isinstance(uri, str):
        raise FieldError(field, "not a string")
    if uri in ("null", "attach"):
        return Stream(uri)
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("fifo", "file"):
        raise FieldError(field, f"{uri!r} is not null, attach, fifo:///PATH or file:///PATH")
    if scheme == "file" and field == "stdin":
        raise FieldError(field, "cannot be a file")
    path, _, query = rest.partition("?")
    path = _unescaped(path)
    if not path.startswith("/"):
        raise FieldError(field, f"the path of {uri!r} is not absolute")
    if "\0" in path or "#" in rest:
        raise FieldError(field, f"{uri!r} has a NUL byte or a fragment")
    parsed = Stream(scheme, path)
    for pair in query.split("&") if query else ():
        _set(parsed, field, *pair.partition("=")[::2])
    return parsed


def stdio(uris: Mapping[str, Any]) -> dict[str, Stream]:
    """Parse ``{stdin, stdout, stderr}``; one that is missing is ``null``.

    :raise FieldError: one cannot be used.
    """
    names = ("stdin", "stdout", "stderr")
    return {name: stream(uris.get(name, "null"), name) for name in names}


def escaped(path: str) -> str:
    """A path as it is written in a URI."""
    return re.sub(r"[%?#\s]", lambda match: f"%{ord(match.group()):02X}", path, flags=re.ASCII)


def _unescaped(text: str) -> str:
    octets = text.encode("utf-8", "surrogateescape").split(b"%")
    whole = octets[0]
    for piece in octets[1:]:
        if _ESCAPE.match("%" + piece[:2].decode("latin-1")):
            whole += bytes([int(piece[:2], 16)]) + piece[2:]
        else:
            whole += b"%" + piece
    return whole.decode("utf-8", "surrogateescape")


def _set(parsed: Stream, field: str, name: str, value: str) -> None:
    choices = _CHOICES.get(parsed.kind, {}).get(name)
    bounds = _NUMBERS.get(parsed.kind, {}).get(name)
    if choices is not None:
        if value not in choices:
            raise FieldError(field, f"{name} is {' or '.join(choices)}, not {value!r}")
        setattr(parsed, name, value)
    elif bounds is not None:
        if not re.fullmatch(r"[0-9]{1,19}", value) or not bounds[0] <= int(value) <= bounds[1]:
            raise FieldError(field, f"{name} is a number from {bounds[0]} on, not {value!r}")
        setattr(parsed, name, int(value))
    else:
        raise FieldError(field, f"a {parsed.kind} has no option {name!r}")
