"""JSON-RPC without a transport."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import KINDS, CtdError, NotFound, ResourceExhausted
from ctd.protocols import jsonrpc
from ctd.protocols.jsonrpc import CODES, Refusal, Request, parse
from ctd.protocols.lines import LINE_LIMIT

_WORDS = st.sampled_from(["method", "id", "params", "jsonrpc"]) | st.text(max_size=5)


def refused(line: bytes) -> tuple[int | str | None, int, str]:
    refusal = parse(line)
    assert isinstance(refusal, Refusal), refusal
    return refusal.id, jsonrpc.described(refusal.error)["code"], str(refusal.error)


class ParseTests(SynchronousTestCase):
    """Lines to requests."""

    def test_request(self) -> None:
        """A whole request is read as JSON-RPC has it."""
        line = b'{"jsonrpc":"2.0","id":"a","method":"m","params":{"x": [1]}}'
        self.assertEqual(parse(line), Request("a", "m", b'{"x": [1]}'))

    def test_script(self) -> None:
        """A script may leave out jsonrpc, id and params."""
        self.assertEqual(parse(b' {"method":"m"}\r'), Request(None, "m", b""))

    def test_not_json(self) -> None:
        """What is not JSON is a parse error without an id."""
        for line in (
            b"GET / HTTP/1.1",
            b'{"id":1,"method":"m"',
            b'{"id":1,"method":"m"} {}',
            b'{"id":1,"method":"\xff"}',
            b'{"id":1,"method":"\\ud800"}',
            b'{"id":1,"method":"m","params":{]}',
            b'{"method":"m","params":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        ):
            id, code, _ = refused(line)
            self.assertEqual((id, code), (None, -32700), line[:40])

    def test_not_a_request(self) -> None:
        """JSON that is no request is refused under its id, with what is wrong."""
        for line, id, word in (
            (b'{"id":1}', 1, "method is missing"),
            (b'{"id":1,"method":2}', 1, "method expected str"),
            (b'{"id":"x","method":"m","parms":{}}', "x", "did you mean 'params'?"),
            (b'{"id":1,"method":"m","jsonrpc":"1.0"}', 1, "jsonrpc"),
            (b'{"id":1.5,"method":"m"}', None, "id"),
            (b'{"id":true,"method":"m"}', None, "id"),
            (b'{"id":[],"method":"m"}', None, "id"),
            (b'{"id":' + b"9" * 30 + b',"method":"m"}', None, "id"),
            (b'{"id":' + b"9" * 5000 + b',"method":"m"}', None, "id"),
            (b'{"id":"' + b"x" * 257 + b'","method":"m"}', None, "id"),
            (b'"text"', None, "object"),
            (b"null", None, "object"),
        ):
            got, code, message = refused(line)
            self.assertEqual((got, code), (id, -32600), line[:60])
            self.assertIn(word, message)

    def test_batch(self) -> None:
        """A batch is refused, with what to do instead."""
        for line in (b'[{"id":1,"method":"m"}]', b" []", b"[" * 1_000_000):
            id, code, message = refused(line)
            self.assertEqual((id, code), (None, -32600))
            self.assertIn("one request a line", message)

    @given(st.binary(max_size=200))
    def test_any_bytes(self, line: bytes) -> None:
        """Any bytes are a request or are refused, and the refusal can be sent."""
        parsed = parse(line)
        if isinstance(parsed, Refusal):
            json.loads(jsonrpc.failure(parsed.id, parsed.error))

    _json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=4),
        max_leaves=8,
    )

    @given(_json)
    def test_any_json(self, value: Any) -> None:
        """Any JSON is a request or is refused, and the refusal can be sent."""
        parsed = parse(json.dumps(value).encode())
        if isinstance(parsed, Refusal):
            json.loads(jsonrpc.failure(parsed.id, parsed.error))


@attrs.define(auto_exc=True)
class Odd(CtdError):
    """An error with fields that JSON cannot carry as they are."""

    kind: ClassVar[str] = "data_loss"
    name: str
    number: int
    things: list[object]


class AnswerTests(SynchronousTestCase):
    """Results and errors to lines."""

    def test_codes(self) -> None:
        """Each kind has a code of its own."""
        self.assertEqual(set(CODES), KINDS)
        self.assertEqual(len(set(CODES.values())), len(CODES))

    def test_result(self) -> None:
        """A result is one line, under the id given."""
        line = jsonrpc.result(None, {"a": "\n"})
        self.assertEqual(line.count(b"\n"), 1)
        self.assertEqual(json.loads(line), {"jsonrpc": "2.0", "id": None, "result": {"a": "\n"}})

    def test_error(self) -> None:
        """An error has its kind, its class and its fields as data."""
        error = json.loads(jsonrpc.failure(3, NotFound("image", "x")))["error"]
        self.assertEqual(error["code"], -32001)
        self.assertEqual(error["message"], "image 'x' not found")
        self.assertEqual(
            error["data"], {"kind": "not_found", "error": "NotFound", "what": "image", "name": "x"}
        )

    def test_odd_fields(self) -> None:
        """Names that are no text, huge numbers and other objects do not keep an error back."""
        error = Odd("bad\udcff", 1 << 80, [ValueError("x"), {"k": "\udcff"}, 1.5, None, True])
        data = json.loads(jsonrpc.failure(3, error))["error"]["data"]
        self.assertEqual(data["name"], "bad?")
        self.assertEqual(data["number"], str(1 << 80))
        self.assertEqual(data["things"], ["x", {"k": "?"}, 1.5, None, True])

    def test_too_large(self) -> None:
        """What would not fit a line is an error that says so."""
        with self.assertRaises(ResourceExhausted):
            jsonrpc.result(1, "x" * LINE_LIMIT)
        line = jsonrpc.failure(1, NotFound("x", "y" * LINE_LIMIT))
        self.assertEqual(json.loads(line)["error"]["data"]["kind"], "resource_exhausted")
