"""Typed parameters: decoding them, and saying precisely what is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ctd.errors import InvalidArgument, ResourceExhausted

# "$" alone would let a final newline pass in Python; "(?!\n)$" means the same to JSON Schema.
IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(?!\n)$"

Namespace = Annotated[
    str, Meta(pattern=IDENTIFIER, max_length=76, description="Whose names are meant.")
]

_AT = re.compile(r"^(?P<reason>.*?)(?: - at `(?P<path>\$[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(
    r"^Object (?:contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL
)
#: The most values in parameters: decoding more would hold the reactor up.
VALUES = 100_000

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STEP = re.compile(r"\.([^.\[]+)|(\[)[^\]]*\]")


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every method takes; each method's parameters are a subclass."""

    namespace: Namespace = "default"


P = TypeVar("P")


def decode(raw: bytes, type: type[P]) -> P:
    """*raw*, the JSON text of ``params``, as a *type*; nothing and null count as ``{}``.

    :raise InvalidArgument: it cannot be that; ``field`` is the path of what is
        wrong, and ``reason`` says what would be right.
    :raise ResourceExhausted: there may be over :data:`VALUES` values in it, by its commas.
    """
    raw = raw.strip()
    if raw in (b"", b"null"):
        raw = b"{}"
    if not raw.startswith(b"{"):
        raise InvalidArgument("params", "must be an object: parameters are given by name")
    if raw.count(b",") > VALUES:
        raise ResourceExhausted("values in the parameters", VALUES)
    try:
        value = msgspec.json.decode(raw, type=type)
    except msgspec.ValidationError as error:
        raise InvalidArgument(*explain(error, type)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument("params", clip(str(error))) from None
    if _NUL.search(raw):  # in a name, path or argument, no system call could take it
        raise InvalidArgument("params", "must not hold a NUL character")
    return value


def explain(error: msgspec.ValidationError, type: Any) -> tuple[str, str]:
    """Which field a validation error is about, and what is wrong with it."""
    match = _AT.match(str(error))
    assert match is not None
    reason = match["reason"]
    path = (match["path"] or "$")[1:].removeprefix(".")
    field = _FIELD.match(reason)
    if field is None:
        text = reason[:1].lower() + reason[1:].replace("`", "")
        return clip(path) or "params", clip(text)
    name = field["name"]
    where = clip(f"{path}.{name}" if path else name)
    if "missing" in reason[:20]:
        return where, "is missing, and must be given"
    return where, f"is not known{suggest(name, _fields(type, '.' + path))}"


def suggest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest of *known*, or a list of a few of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1) if len(name) <= 64 else []
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 40 else ""


def clip(text: str, size: int = 200) -> str:
    """*text*, cut to a length fit for a message."""
    return text if len(text) <= size else text[: size - 3] + "..."


def _fields(type: Any, path: str) -> list[str]:
    """The names of the fields of the object at *path* inside a *type*."""
    nodes = [msgspec.inspect.type_info(type)]
    for name, bracket in _STEP.findall(path):
        inner: list[Any] = []
        for node in _unions(nodes):
            if bracket:
                inner += [t for k in ("item_type", "value_type") if (t := getattr(node, k, None))]
            else:
                inner += [f.type for f in getattr(node, "fields", ()) if f.encode_name == name]
        nodes = inner
    return [f.encode_name for node in _unions(nodes) for f in getattr(node, "fields", ())]


def _unions(nodes: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for node in nodes:
        if isinstance(node, msgspec.inspect.Metadata):
            node = node.type
        flat += node.types if isinstance(node, msgspec.inspect.UnionType) else [node]
    return flat
