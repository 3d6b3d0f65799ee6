"""Log lines on standard error, which is a bounded file."""

from __future__ import annotations

import os
import sys
import time

#: The log may grow to so many bytes; what comes after is not written.
LIMIT = 1 << 20


def log(message: str) -> None:
    """Write a line.  Never raises: there is nobody else to tell."""
    line = f"{timestamp()} {message}\n".encode(errors="backslashreplace")
    try:
        if os.fstat(2).st_size < LIMIT:
            os.write(2, line)
    except OSError:
        pass


def log_exception(message: str) -> None:
    """Write a line about the exception being handled, with where it came from."""
    _, error, trace = sys.exc_info()
    places = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    log(f"{message}: {error!r} at {', '.join(places)}")


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with microseconds."""
    nanoseconds = time.time_ns()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    return f"{seconds}.{nanoseconds // 1000 % 10**6:06d}Z"
