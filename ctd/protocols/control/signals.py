"""Signals by name or number, as kill(1) takes them."""

from __future__ import annotations

import re
import signal
from typing import Annotated

from msgspec import Meta

from ctd.errors import InvalidArgument
from ctd.protocols.params import clip, suggest

Signal = Annotated[
    int | str,
    Meta(
        description="A name (`SIGTERM`, `TERM`, `RTMIN+3`) or a number.",
        examples=["SIGTERM", 15],
    ),
]

_RTMIN, _RTMAX = 34, 64  # as the C library numbers them for programs (signal(7))
_NAMES = {
    name.removeprefix("SIG"): number.value
    for name, number in signal.Signals.__members__.items()
    if not name.startswith("SIGRT")
}


def number_of(text: int | str, field: str = "signal") -> int:
    """The number of a signal, 1 to 64.  :raise InvalidArgument: there is no such signal."""
    if isinstance(text, int) or re.fullmatch(r"[0-9]{1,3}", text, re.ASCII):
        number = int(text)
        if not 1 <= number <= _RTMAX:
            raise InvalidArgument(field, f"{number} is no signal; they are 1 to {_RTMAX}")
        return number
    name = text.strip().upper().removeprefix("SIG")
    if name in _NAMES:
        return _NAMES[name]
    match = re.fullmatch(r"RT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", name, re.ASCII)
    if match:
        base = _RTMIN if match[1] == "MIN" else _RTMAX
        number = base + int((match[2] or "+") + (match[3] or "0"))
        if _RTMIN <= number <= _RTMAX:
            return number
    raise InvalidArgument(field, f"{clip(text, 40)!r} is no signal{suggest(name, _NAMES)}")
