"""``WWW-Authenticate``: how a server wants to be spoken to (RFC 9110, section 11)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

#: The most characters of a header that are read, and the most challenges.
_HEADER_LIMIT = 16 << 10
_CHALLENGES_LIMIT = 16

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+|(?=,)|$)")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_SPACE = re.compile(r"[ \t,]*")


@attrs.frozen
class Challenge:
    """One way to authenticate.

    :ivar scheme: in lower case: ``basic``, ``bearer`` ...
    :ivar parameters: by their names in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges in the values of a ``WWW-Authenticate`` header.

    What cannot be read ends its value; what came before it counts.
    """
    found: list[Challenge] = []
    for header in headers:
        found += _read(header[:_HEADER_LIMIT])
    return found[:_CHALLENGES_LIMIT]


def _read(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = _skip(header, 0)
    while at < len(header) and (scheme := _SCHEME.match(header, at)):
        at = scheme.end()
        parameters: dict[str, str] = {}
        if token68 := _TOKEN68.match(header, at):
            at = token68.end()
        while parameter := _PARAMETER.match(header, at):
            name, quoted, word = parameter.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else word
            parameters.setdefault(name.lower(), value)
            at = _skip(header, parameter.end())
        found.append(Challenge(scheme[1].lower(), parameters))
        at = _skip(header, at)
    return found


def _skip(header: str, at: int) -> int:
    matched = _SPACE.match(header, at)
    return matched.end() if matched else at
