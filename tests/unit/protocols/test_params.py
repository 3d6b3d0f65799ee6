"""Typed parameters, and what is said of wrong ones."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import InvalidArgument, ResourceExhausted
from ctd.protocols.control.containers import CreateParams
from ctd.protocols.control.signals import number_of
from ctd.protocols.params import VALUES, Params, decode


class DecodeTests(SynchronousTestCase):
    """What comes in, as typed values."""

    def wrong(self, params: bytes, type: type[Any] = CreateParams) -> tuple[str, str]:
        with self.assertRaises(InvalidArgument) as caught:
            decode(params, type)
        return caught.exception.field, caught.exception.reason

    def test_nothing(self) -> None:
        """Left out, null and {} are the same."""
        for raw in (b"", b"null", b" {} "):
            self.assertEqual(decode(raw, Params), Params(namespace="default"))

    def test_by_position(self) -> None:
        """An array is refused with what to do."""
        self.assertIn("by name", self.wrong(b"[1]")[1])

    def test_paths(self) -> None:
        """The field is named as the caller wrote it, however deep, with what would be right."""
        for raw, field, reason in (
            (b'{"imagge":"x"}', "imagge", "did you mean 'image'?"),
            (b'{"zzz":"x"}', "zzz", "is not known"),
            (b'{"mounts":[{"source":"/"}]}', "mounts[0].destination", "must be given"),
            (b'{"mounts":[{"destination":"/","sorce":1}]}', "mounts[0].sorce", "'source'"),
            (b'{"mounts":[{"destination":"x"}]}', "mounts[0].destination", "'^/'"),
            (b'{"stdio":{"stdot":"null"}}', "stdio.stdot", "'stdout'"),
            (b'{"resources":{"memry":1}}', "resources.memry", "'memory'"),
            (b'{"resources":{"memory":"1g"}}', "resources.memory", "int"),
            (b'{"env":[1]}', "env[0]", "str"),
            (b'{"env":{"a":1}}', "env[...]", "str"),
            (b'{"namespace":"a/b"}', "namespace", "regex"),
            (b'{"namespace":"a\\n"}', "namespace", "regex"),
            (b'{"id":"../x"}', "id", "regex"),
            (b'{"id":""}', "id", "regex"),
            (b'{"netns":"none"}', "netns", "regex"),
            (b'{"stdio":{"stdout":"http://x"}}', "stdio.stdout", "regex"),
            (b'{"args":[1]}', "args[0]", "str"),
            (b'{"image":"a\\u0000b"}', "params", "NUL"),
            (b'{"args":["x","\\u0000"]}', "params", "NUL"),
            (b'{"labels":{"\\u0000":""}}', "params", "NUL"),
            (b'{"mounts":[{"destination":"/\\u0000"}]}', "params", "NUL"),
        ):
            got = self.wrong(raw)
            self.assertEqual(got[0], field, raw)
            self.assertIn(reason, got[1])

    def test_escaped_backslash(self) -> None:
        """The text backslash u0000 is not a NUL."""
        params = decode(rb'{"image":"x\\u0000"}', CreateParams)
        self.assertEqual(params.image, "x\\u0000")
        self.assertIn("NUL", self.wrong(rb'{"image":"x\\\u0000"}')[1])

    def test_too_many(self) -> None:
        """A line full of tiny values is refused before it costs time; one large value is not."""
        with self.assertRaises(ResourceExhausted):
            decode(b'{"args":[' + b'"",' * (VALUES + 1) + b'""]}', CreateParams)
        params = decode(b'{"image":"' + b"x" * 4_000_000 + b'"}', CreateParams)
        self.assertEqual(len(params.image or ""), 4_000_000)

    def test_long_names(self) -> None:
        """An unknown field of a megabyte is refused at once, with a short message."""
        before = time.process_time()
        field, reason = self.wrong(b'{"' + b"x" * 1_000_000 + b'":1}')
        self.assertLess(len(field) + len(reason), 2000)
        self.assertLess(time.process_time() - before, 1)

    def test_bombs(self) -> None:
        """Depth, huge numbers and broken text are errors like others."""
        for raw in (
            b'{"labels":' + b'{"a":' * 100_000,
            b'{"resources":{"cpus":1e999}}',
            b'{"resources":{"memory":' + b"9" * 5000 + b"}}",
            b'{"image":"\xff"}',
            b'{"image":"\\ud800"}',
            b'{"image"',
        ):
            self.wrong(raw)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(CreateParams.__struct_fields__), inner, max_size=5
                )
            ),
            max_leaves=6,
        )
    )
    def test_anything(self, value: Any) -> None:
        """Anything is either parameters or InvalidArgument."""
        try:
            decode(msgspec.json.encode(value), CreateParams)
        except InvalidArgument as error:
            self.assertTrue(error.field)
            self.assertTrue(error.reason)


class SignalTests(SynchronousTestCase):
    """Signals as kill(1) takes them."""

    def test_signals(self) -> None:
        """Names with and without SIG, in any case, numbers, numbers as text, real-time ones."""
        for text, number in (
            ("SIGTERM", 15),
            ("term", 15),
            ("Kill", 9),
            (15, 15),
            ("15", 15),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("RTMAX", 64),
            ("RTMAX-30", 34),
            (64, 64),
            ("CHLD", 17),
        ):
            self.assertEqual(number_of(text), number, text)

    def test_no_signals(self) -> None:
        """What is no signal is refused; a near name is suggested."""
        for text in (
            0,
            65,
            -9,
            "0",
            "-9",
            "999",
            "SIGTREM",
            "RTMAX+1",
            "RTMIN-1",
            "RTMIN+31",
            "",
            "x" * 1000,
            "SIG",
        ):
            with self.assertRaises(InvalidArgument):
                number_of(text)
        with self.assertRaises(InvalidArgument) as caught:
            number_of("SIGTREM")
        self.assertIn("'TERM'", caught.exception.reason)
