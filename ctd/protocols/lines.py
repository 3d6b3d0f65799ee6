"""Bytes into lines, with a bound: knows no transport and no JSON."""

from __future__ import annotations

import attrs

#: The most bytes of a line on the control socket, in both directions, without its newline.
LINE_LIMIT = 4 << 20


@attrs.frozen
class LineTooLong:
    """Stands where a line was that is over the limit; the line's bytes were dropped."""

    limit: int


class LineSplitter:
    """Splits a stream at newlines, in time linear in its length.

    It holds at most *limit* bytes.  A line over the limit is reported once, as
    soon as it is over; what follows it up to its newline is skipped.  Blank
    lines are left out.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._line = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | LineTooLong]:
        """The lines that *data* completes, without their newlines."""
        lines: list[bytes | LineTooLong] = []
        *complete, rest = data.split(b"\n")
        for piece in complete:
            self._take(piece, lines)
            self._complete(lines)
        self._take(rest, lines)
        return lines

    def end(self) -> list[bytes | LineTooLong]:
        """The last line, if the stream ended without a newline."""
        lines: list[bytes | LineTooLong] = []
        self._complete(lines)
        return lines

    def _take(self, piece: bytes, lines: list[bytes | LineTooLong]) -> None:
        if self._skipping:
            return
        if len(self._line) + len(piece) > self._limit:
            self._line.clear()
            self._skipping = True
            lines.append(LineTooLong(self._limit))
        else:
            self._line += piece

    def _complete(self, lines: list[bytes | LineTooLong]) -> None:
        if not self._skipping and self._line and not self._line.isspace():
            lines.append(bytes(self._line))
        self._line.clear()
        self._skipping = False
