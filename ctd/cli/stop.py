"""``ctd kill`` and ``ctd stop``."""

from __future__ import annotations

import select
import time

from ctd.cli.errors import DaemonError
from ctd.cli.session import for_each

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ctd.cli.session import Session


def kill_options(parser: argparse.ArgumentParser) -> None:
    """Options of kill."""
    parser.add_argument("-s", "--signal", default="KILL", help="name or number; default: KILL")
    parser.add_argument("-a", "--all", action="store_true", help="to all of its processes")
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def kill(session: Session, options: argparse.Namespace) -> int:
    """Send the signal to each, and print its id."""
    all_of_them = {"all": True} if options.all else {}

    def one(name: str) -> str:
        session.call("containers.kill", id=name, signal=options.signal, **all_of_them)
        return name

    return for_each(options.containers, one)


def stop_options(parser: argparse.ArgumentParser) -> None:
    """Options of stop."""
    parser.add_argument(
        "-t",
        "--time",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="before it is killed; default: 10",
    )
    parser.add_argument("-s", "--signal", help="default: the image's stop signal, or TERM")
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def stop(session: Session, options: argparse.Namespace) -> int:
    """Ask each to end, kill it when the time is up, and print its id."""

    def one(name: str) -> str:
        container = session.call("containers.get", id=name)
        if container["status"] in ("running", "paused"):
            chosen = options.signal or _stop_signal(session, container.get("image"))
            _end(session, name, chosen, options.time)
        return name

    return for_each(options.containers, one)


def _end(session: Session, name: str, chosen: str, patience: float) -> None:
    waiting = session.send("containers.wait", id=name)
    if _kill(session, name, chosen) and not _ends(session, waiting, patience):
        _kill(session, name, "KILL")
    try:
        session.connection.reply(waiting)
    except DaemonError as error:
        if error.kind != "not_found":  # someone has removed it: it has ended
            raise


def _kill(session: Session, name: str, chosen: str) -> bool:
    """Send a signal; whether there was still a process to send it to."""
    try:
        session.call("containers.kill", id=name, signal=chosen)
    except DaemonError as error:
        if error.kind in ("failed_precondition", "not_found"):
            return False
        raise
    return True


def _ends(session: Session, waiting: int, patience: float) -> bool:
    """Whether the call *waiting* is answered in so many seconds."""
    connection = session.connection
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    deadline = time.monotonic() + patience
    while not connection.answered(waiting):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return False
        connection.receive()
    return True


def _stop_signal(session: Session, image: str | None) -> str:
    if image is None:
        return "TERM"
    try:
        document = session.call("images.config", ref=image)["config"]
    except DaemonError:
        return "TERM"
    return (document.get("config") or {}).get("StopSignal") or "TERM"


COMMANDS = {"kill": (kill_options, kill), "stop": (stop_options, stop)}
