"""The words of the shim protocol: lines, URIs, names."""

from __future__ import annotations

import itertools
import unittest

from hypothesis import given
from hypothesis import strategies as st

from ctd.protocols.shim import (
    Failure,
    FieldError,
    Lines,
    Stream,
    decode,
    encode,
    escaped,
    exit_file,
    is_process,
    is_run,
    process_of,
    stdio,
    stream,
)


class LinesTests(unittest.TestCase):
    """Bytes into lines."""

    @given(st.lists(st.binary(max_size=9), max_size=9), st.lists(st.integers(0, 90), max_size=9))
    def test_pieces(self, lines: list[bytes], cuts: list[int]) -> None:
        """However the bytes are cut, the lines are the same, and blank ones are left out."""
        lines = [line.replace(b"\n", b"") for line in lines]
        data = b"".join(line + b"\n" for line in lines)
        places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        splitter = Lines(9)
        found: list[bytes] = []
        for start, end in itertools.pairwise(places):
            found += splitter.feed(data[start:end])
        self.assertEqual(found, [line for line in lines if line.strip()])

    def test_limit(self) -> None:
        """A line of the limit passes; one byte more is an error, before its end has come."""
        self.assertEqual(Lines(4).feed(b"1234\n"), [b"1234"])
        with self.assertRaises(ValueError):
            Lines(4).feed(b"12345")

    def test_messages(self) -> None:
        """A message comes back from its line; what is no object is refused."""
        message = {"id": 1, "path": "/\udcff"}
        self.assertEqual(decode(encode(message)), message)
        for line in (b"[]", b"nonsense", b"\xff", b"[" * 100000):
            with self.assertRaises(ValueError):
                decode(line)
        with self.assertRaises(ValueError):
            encode({"x": "x" * (1 << 20)})

    def test_failure(self) -> None:
        """An error comes back from its words, with its fields."""
        failure = Failure.read(Failure("runtime_failure", "no", operation="start").words())
        self.assertEqual(failure.words()["operation"], "start")
        self.assertEqual((failure.kind, str(failure)), ("runtime_failure", "no"))


class StreamTests(unittest.TestCase):
    """Where a standard stream goes."""

    def test_kinds(self) -> None:
        """Each kind is parsed with its options, and has defaults."""
        self.assertEqual(stream("null"), Stream("null"))
        self.assertEqual(stream("attach").kind, "attach")
        fifo = stream("fifo:///a%20b/c?unread=drop")
        self.assertEqual((fifo.kind, fifo.path, fifo.unread), ("fifo", "/a b/c", "drop"))
        self.assertEqual(stream("fifo:///x").unread, "block")
        file = stream("file:///x?format=cri&max_size=10&max_files=3")
        self.assertEqual((file.format, file.max_size, file.max_files), ("cri", 10, 3))
        self.assertEqual((stream("file:///x").format, stream("file:///x").max_size), ("raw", 0))

    def test_refused(self) -> None:
        """What cannot be used is named with its field and a reason."""
        for uri in (
            *(None, "", "x", "fifo://x", "fifo:/x", "http:///x", "fifo:///x?a=b", "file:///x%00"),
            *("fifo:///x?unread=no", "file:///x?max_size=0", "file:///x?max_size=-1"),
            *("file:///x?max_files=1001", "file:///x?format=xml", "file:///x?max_size=1e3"),
        ):
            with self.subTest(uri=uri), self.assertRaises(FieldError) as caught:
                stream(uri, "stderr")
            self.assertEqual(caught.exception.field, "stderr")
            self.assertTrue(caught.exception.reason)

    def test_stdin(self) -> None:
        """Standard input cannot be a file; what is not given is null."""
        with self.assertRaises(FieldError):
            stdio({"stdin": "file:///x"})
        self.assertEqual(stdio({})["stdout"], Stream("null"))

    @given(st.text(st.characters(exclude_characters="\0"), min_size=1))
    def test_escaped(self, path: str) -> None:
        """Any path can be written in a URI."""
        try:
            path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return
        self.assertEqual(stream(f"file://{escaped('/' + path)}").path, "/" + path)


class NameTests(unittest.TestCase):
    """Names that become parts of paths."""

    def test_processes(self) -> None:
        """A process's id is one harmless part of a path."""
        for good in ("init", "a", "A.b-c_1", "x" * 76):
            self.assertTrue(is_process(good))
            self.assertEqual(process_of(exit_file(good)), good)
        for bad in ("", ".", "..", "a/b", "-a", "a\n", "x" * 77, "é"):
            self.assertFalse(is_process(bad))
        for other in ("exit-.json", "exit-a.json.new", ".exit-a.json", "shim.json"):
            self.assertIsNone(process_of(other))

    def test_runs(self) -> None:
        """A run's id is 12 hex digits."""
        self.assertTrue(is_run("0123456789ab"))
        for bad in ("0123456789a", "0123456789abc", "0123456789AB", "0123456789a\n"):
            self.assertFalse(is_run(bad))
