"""What commands print: tables, JSON lines, sizes, ages and complaints."""

from __future__ import annotations

import json
import sys

from ctd.cli.errors import CommandFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from typing import Any


def complain(error: CommandFailed) -> None:
    """Tell what went wrong, on one line of standard error, and what to do on the next."""
    say(error.message)
    if error.hint:
        print(f"  ({error.hint})", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One line on standard error."""
    print(f"ctd: {' '.join(message.split())}", file=sys.stderr, flush=True)


def json_lines(items: Iterable[Any]) -> None:
    """One JSON object a line."""
    for item in items:
        print(json.dumps(item, ensure_ascii=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, three spaces apart."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("   ".join(cells).rstrip())


def optional(shown: bool) -> Callable[[str], tuple[str, ...]]:
    """What makes the cell of a column that is there only if it is *shown*."""
    return lambda cell: (cell,) if shown else ()


def size(number: float) -> str:
    """Bytes for people, in powers of a thousand as docker prints them: ``7.83MB``."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while number >= 1000 and (larger := next(units, None)):
        number, unit = number / 1000, larger
    return f"{number:.3g}{unit}" if number < 1000 else f"{number:.0f}{unit}"


def age(then: str, now: datetime) -> str:
    """How long ago an RFC 3339 time was: ``3 minutes``."""
    from datetime import datetime

    seconds = max(0, int((now - datetime.fromisoformat(then)).total_seconds()))
    for limit, length, unit in _AGES:
        if seconds < limit:
            count = seconds // length
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds // 31_536_000} years"


#: Up to so many seconds, in units of so many seconds.
_AGES = (
    (120, 1, "second"),
    (7200, 60, "minute"),
    (172_800, 3600, "hour"),
    (1_209_600, 86_400, "day"),
    (5_184_000, 604_800, "week"),
    (63_072_000, 2_592_000, "month"),
)


def shortened(text: str, width: int) -> str:
    """*text* in at most *width* characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
