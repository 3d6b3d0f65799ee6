"""JSON-RPC 2.0, one object a line: lines to requests, and answers to lines.

It knows no transport and no methods.  For scripts, ``jsonrpc`` may be left out,
and a request without ``id`` is answered, with ``"id": null``.  Batches are not
taken: calls on a connection run concurrently anyway.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import attrs
import msgspec
from msgspec import Meta, Raw

from ctd.errors import CtdError, ResourceExhausted
from ctd.protocols.lines import LINE_LIMIT
from ctd.protocols.params import clip, explain

#: What names a call: 64 bits, or at most 256 characters.
Id = (
    Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    | Annotated[str, Meta(max_length=256)]
    | None
)

#: The JSON-RPC code of each kind of error; never changed, only added to.
CODES = {
    "invalid_argument": -32602,
    "internal": -32603,
    "not_found": -32001,
    "already_exists": -32002,
    "failed_precondition": -32003,
    "aborted": -32004,
    "unavailable": -32005,
    "resource_exhausted": -32006,
    "permission_denied": -32007,
    "unauthenticated": -32008,
    "unimplemented": -32009,
    "cancelled": -32010,
    "deadline_exceeded": -32011,
    "data_loss": -32012,
}


@attrs.define(auto_exc=True)
class ParseError(CtdError):
    """A line is not JSON."""

    code: ClassVar[int] = -32700
    kind = "invalid_argument"
    reason: str

    def __str__(self) -> str:
        return f"not JSON: {self.reason}"


@attrs.define(auto_exc=True)
class InvalidRequest(CtdError):
    """A line is JSON, but no request."""

    code: ClassVar[int] = -32600
    kind = "invalid_argument"
    reason: str

    def __str__(self) -> str:
        return f"not a request: {self.reason}"


@attrs.define(auto_exc=True)
class MethodNotFound(CtdError):
    """There is no such method.  :ivar hint: the nearest one, for people."""

    code: ClassVar[int] = -32601
    kind = "unimplemented"
    method: str
    hint: str = ""

    def __str__(self) -> str:
        return f"there is no method {self.method!r}{self.hint}"


@attrs.define(auto_exc=True)
class Cancelled(CtdError):
    """The call was cancelled; what it had half made was undone or will be collected."""

    kind = "cancelled"

    def __str__(self) -> str:
        return "the call was cancelled"


@attrs.define(auto_exc=True)
class Internal(CtdError):
    """A defect in ctd.  :ivar incident: what to look for in the daemon's log."""

    incident: str
    exception: str

    def __str__(self) -> str:
        return f"internal error ({self.exception}); the daemon's log has it as {self.incident}"


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    method: str
    id: Id = None
    params: Raw = Raw(b"")
    jsonrpc: Literal["2.0"] = "2.0"


class _Named(msgspec.Struct):
    id: Id = None


@attrs.frozen
class Request:
    """A call.  :ivar params: their JSON text, empty if there are none."""

    id: int | str | None
    method: str
    params: bytes


@attrs.frozen
class Refusal:
    """A line that is no call, to be answered with *error* under *id* (None if it has none)."""

    id: int | str | None
    error: CtdError


_envelope = msgspec.json.Decoder(_Envelope)
_named = msgspec.json.Decoder(_Named)
_encoder = msgspec.json.Encoder(enc_hook=str)


def parse(line: bytes) -> Request | Refusal:
    """What a line asks for.  Never raises: any bytes give one or the other."""
    try:
        envelope = _envelope.decode(line)
    except msgspec.ValidationError as error:
        if line.lstrip()[:1] == b"[":
            return Refusal(None, InvalidRequest("batches are not taken; send one request a line"))
        field, reason = explain(error, _Envelope)
        return Refusal(_salvaged(line), InvalidRequest(f"{field} {reason}"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(None, ParseError(clip(str(error))))
    return Request(envelope.id, envelope.method, bytes(envelope.params))


def _salvaged(line: bytes) -> int | str | None:
    try:
        return _named.decode(line).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def result(id: int | str | None, value: Any) -> bytes:
    """The line that answers call *id* with *value*.

    :raise ResourceExhausted: it would be over :data:`LINE_LIMIT`.
    """
    line = _encoder.encode({"jsonrpc": "2.0", "id": id, "result": value})
    if len(line) > LINE_LIMIT:
        raise ResourceExhausted("size of the reply in bytes", LINE_LIMIT)
    return line + b"\n"


def failure(id: int | str | None, error: CtdError) -> bytes:
    """The line that answers call *id* with *error*."""
    line = _encoder.encode({"jsonrpc": "2.0", "id": id, "error": _encodable(described(error))})
    if len(line) > LINE_LIMIT:
        return failure(id, ResourceExhausted("size of the error in bytes", LINE_LIMIT))
    return line + b"\n"


def described(error: CtdError) -> dict[str, Any]:
    """*error* as JSON-RPC's ``code``, ``message`` and ``data``."""
    code = getattr(error, "code", None)
    return {
        "code": code if isinstance(code, int) else CODES[error.kind],
        "message": str(error),
        "data": {"kind": error.kind, "error": type(error).__name__, **error.fields},
    }


def _encodable(value: Any) -> Any:
    """*value* without what UTF-8 and 64 bits cannot hold: names in errors may be any bytes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {str(k): _encodable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(v) for v in value]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value
    return _encodable(str(value))


def notification(method: str, params: dict[str, Any]) -> bytes:
    """The line that tells something about a call that is under way."""
    return bytes(_encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})) + b"\n"
