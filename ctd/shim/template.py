"""The template: a process that has everything imported, and forks shims.

Run as ``python -I -S .../ctd/shim/template.py``, without site-packages: requests
on standard input, answers on standard output, log lines on standard error.  It
ends when its standard input ends, by no signal but SIGKILL.  design/shim-protocol.md has the words.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ctd.protocols.shim import (
    INTERNAL,
    INVALID_ARGUMENT,
    IO,
    UNIMPLEMENTED,
    Failure,
    FieldError,
    Lines,
    decode,
    encode,
    is_run,
)
from ctd.shim import shim, surroundings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TEXTS = ("run", "namespace", "container", "directory", "records", "runtime", "runtime_root")
_PATHS = ("directory", "records", "runtime", "runtime_root")


class Template:
    """Forks; several shims may be about to listen at the same time."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._beginning: dict[int, Any] = {}

    def run(self) -> None:
        """Work until standard input ends."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._beginning:
                    self._begun(fd)
                elif not self._requested():
                    return

    def _requested(self) -> bool:
        data = os.read(0, 1 << 16)
        for line in self._lines.feed(data):
            id = None
            try:
                message = decode(line)
                id = message.get("id")
                if message.get("method") != "fork":
                    raise Failure(UNIMPLEMENTED, f"there is no method {message.get('method')!r}")
                self._fork(id, checked(message.get("params")))
            except Failure as failure:
                _answer(id, error=failure.words())
            except FieldError as error:
                _answer(
                    id, error=Failure(INVALID_ARGUMENT, error.reason, field=error.field).words()
                )
            except (OSError, ValueError) as error:
                _answer(id, error=Failure(INTERNAL, str(error)).words())
        return bool(data)

    def _fork(self, id: Any, params: dict[str, Any]) -> None:
        # Only what is in the run's directory is made: a run that was destroyed stays so.
        os.stat(params["records"])
        with contextlib.suppress(FileExistsError):
            os.mkdir(f"{params['directory']}/{IO}", 0o700)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            child = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if not child:
            _fork_again(params, writer)
        os.close(writer)
        os.waitpid(child, 0)
        self._beginning[reader] = id
        self._poll.register(reader, select.POLLIN)

    def _begun(self, fd: int) -> None:
        id = self._beginning.pop(fd)
        line = os.read(fd, 1 << 16)  # a line this short is written at once
        self._poll.unregister(fd)
        os.close(fd)
        answer = decode(line) if line else Failure(INTERNAL, "the shim died").words()
        if "pid" in answer:
            _answer(id, result=answer)
        else:
            _answer(id, error=answer)


def _fork_again(params: dict[str, Any], writer: int) -> None:
    """In the child: fork once more and leave, so that the shim is nobody's child."""
    status = 1
    try:
        if not os.fork():
            shim.main(params, writer)
        status = 0
    finally:
        os._exit(status)


def checked(params: object) -> dict[str, Any]:
    """The parameters of ``fork``.  :raise FieldError: one cannot be used."""
    if not isinstance(params, dict):
        raise FieldError("params", "not an object")
    for name in _TEXTS:
        if not isinstance(params.get(name), str):
            raise FieldError(name, "not a string")
        if name in _PATHS and not params[name].startswith("/"):
            raise FieldError(name, "not an absolute path")
    if not is_run(params["run"]):
        raise FieldError("run", "not 12 hex digits")
    return params


def _answer(id: Any, **words: dict[str, Any]) -> None:
    line = encode({"id": id, **words})
    while line:
        line = line[os.write(1, line) :]


def main() -> None:
    """Be the template."""
    surroundings.prepare()
    gc.collect()
    gc.freeze()
    Template().run()


if __name__ == "__main__":
    main()
