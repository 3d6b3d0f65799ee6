"""Why a request failed, in a few words for people."""

from __future__ import annotations

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import error as network


def reason_of(error: BaseException) -> str:
    """What *error*, raised by Twisted's HTTP client, means.

    Never quotes a URL or a header: those can hold secrets.
    """
    reasons = getattr(error, "reasons", None)
    if reasons:
        return reason_of(reasons[-1].value)
    match error:
        case network.DNSLookupError() | network.UnknownHostError():
            return "its name cannot be resolved"
        case network.ConnectionRefusedError():
            return "connection refused"
        case network.TimeoutError() | network.TCPTimedOutError():
            return "no connection in time"
        case SSL.Error():
            return f"TLS: {_tls(error)}"
        case VerificationError():
            return "TLS: its certificate is for another host"
        case network.ConnectionDone() | network.ConnectionLost() | network.ConnectionAborted():
            return "it closed the connection"
        case network.ConnectError():
            return f"cannot connect: {error.osError or type(error).__name__}"
        case _:
            # Most of them are parse errors.
            return f"its reply cannot be used ({type(error).__name__})"


def _tls(error: SSL.Error) -> str:
    """OpenSSL's last word."""
    details = error.args[0] if error.args else None
    if isinstance(details, list) and details and isinstance(details[-1], tuple):
        return str(details[-1][-1])
    return "the connection broke"
