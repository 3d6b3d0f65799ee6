"""The line splitter."""

from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.protocols.lines import LineSplitter, LineTooLong

LIMIT = 8


def split(pieces: list[bytes], limit: int = LIMIT) -> list[bytes | LineTooLong]:
    splitter = LineSplitter(limit)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + splitter.end()


class LineSplitterTests(SynchronousTestCase):
    """Bytes into lines."""

    def test_lines(self) -> None:
        """Lines come without newlines; blank ones do not come; the last needs no newline."""
        self.assertEqual(split([b"a\n\n \t\r\nbc\r\nd"]), [b"a", b"bc\r", b"d"])

    def test_limit(self) -> None:
        """A line of just the limit passes; one byte more and it is reported, and others pass."""
        self.assertEqual(
            split([b"12345678\n123456789\nnext\n"]), [b"12345678", LineTooLong(8), b"next"]
        )

    def test_reported_early(self) -> None:
        """A line is reported as soon as it is too long, once, and never again at its end."""
        splitter = LineSplitter(LIMIT)
        self.assertEqual(splitter.feed(b"123456789"), [LineTooLong(8)])
        self.assertEqual(splitter.feed(b"0" * 100), [])
        self.assertEqual(splitter.feed(b"\nok\n"), [b"ok"])
        self.assertEqual(splitter.feed(b"123456789"), [LineTooLong(8)])
        self.assertEqual(splitter.end(), [])

    def test_time_is_linear(self) -> None:
        """A megabyte that comes byte by byte takes about as long a byte as a short line."""
        splitter = LineSplitter(1 << 20)
        before = time.process_time()
        for _ in range(1 << 20):
            splitter.feed(b"x")
        self.assertEqual(
            [len(line) for line in splitter.end() if isinstance(line, bytes)], [1 << 20]
        )
        self.assertLess(time.process_time() - before, 10)

    @given(
        st.lists(st.binary(max_size=12), max_size=8).map(b"\n".join),
        st.lists(st.integers(0, 120), max_size=12),
    )
    def test_split_anywhere(self, data: bytes, cuts: list[int]) -> None:
        """However the bytes are cut, the same lines come out."""
        edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
        pieces = [data[a:b] for a, b in pairwise(edges)]
        expected: list[bytes | LineTooLong] = [
            LineTooLong(LIMIT) if len(line) > LIMIT else line
            for line in data.split(b"\n")
            if len(line) > LIMIT or line.strip()
        ]
        self.assertEqual(split(pieces), expected)
        self.assertEqual(split([data[i : i + 1] for i in range(len(data))]), expected)
