"""``ctd run``, ``create`` and ``start``."""

from __future__ import annotations

import os

from ctd.cli.arguments import container_options, container_params
from ctd.cli.errors import CommandFailed, ConnectionLost, DaemonError, Interrupted
from ctd.cli.foreground import Foreground
from ctd.cli.forwarding import Signals
from ctd.cli.output import say
from ctd.cli.session import for_each, not_found
from ctd.cli.streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ctd.cli.session import Session


def create_options(parser: argparse.ArgumentParser) -> None:
    """Options of create."""
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress of a pull")
    container_options(parser)


def run_options(parser: argparse.ArgumentParser) -> None:
    """Options of run."""
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="print the id; its output is not kept")
    add("--rm", action="store_true", help="remove the container when it has ended")
    add("-i", "--interactive", action="store_true", help="pass standard input on")
    create_options(parser)
    parser.epilog = (
        "Signals are passed on to the command; the third SIGINT or SIGTERM within two\n"
        "seconds kills it.  When nobody reads its output any more, it is killed and the\n"
        "exit status is 141, as for any command in a pipeline."
    )


def start_options(parser: argparse.ArgumentParser) -> None:
    """Options of start."""
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def create(session: Session, options: argparse.Namespace) -> int:
    """Make a container and print its id."""
    params = container_params(options, _name(options))
    with Signals() as signals:
        _create(session, params, options.quiet, signals)
    print(params["id"], flush=True)
    return 0


def start(session: Session, options: argparse.Namespace) -> int:
    """Start containers and print the id of each."""

    def one(name: str) -> str:
        session.call("containers.start", id=name)
        return name

    return for_each(options.containers, one)


def run(session: Session, options: argparse.Namespace) -> int:
    """Make a container, start it, and watch it unless detached."""
    if options.detach and options.rm:
        raise CommandFailed("--rm and --detach: nobody would be there to remove the container")
    if options.detach and options.interactive:
        raise CommandFailed("--interactive and --detach: nobody would be there to write to it")
    params = container_params(options, _name(options))
    with Signals() as signals:
        if not options.detach:
            return _foreground(session, options, params, signals)
        _create(session, params, options.quiet, signals)
        try:
            signals.check()
            session.call("containers.start", id=params["id"])
        except (DaemonError, Interrupted):
            _remove(session, params["id"], signals)
            raise
    print(params["id"], flush=True)
    return 0


def _foreground(
    session: Session, options: argparse.Namespace, params: dict[str, Any], signals: Signals
) -> int:
    name = params["id"]
    with Streams(options.interactive) as streams:
        params["stdio"] = streams.stdio
        _create(session, params, options.quiet, signals, streams)
        remove = True
        try:
            signals.check()
            streams.begin()
            foreground = Foreground(session, streams, signals, "containers", {"id": name})
            _start(session, foreground, name, signals)
            remove = options.rm
            return foreground.watch()
        finally:
            if remove:
                _remove(session, name, signals)


def _create(
    session: Session,
    params: dict[str, Any],
    quiet: bool,
    signals: Signals,
    streams: Streams | None = None,
) -> None:
    """Make the container, pulling its image if that is not here.

    With *streams*, by which ours is known from another of that name, it is made
    once whatever happens to the daemon meanwhile.
    """
    missing = False
    while True:
        try:
            if missing:
                _pull(session, params, quiet, signals)
            session.call("containers.create", **params)
        except DaemonError as error:
            if missing or not not_found(error, "image"):
                raise
            missing = True
        except ConnectionLost:
            if streams is None:
                raise
            session.reconnect(signals.pause)
            if _is_ours(session, params["id"], streams, signals):
                return
        else:
            return


def _is_ours(session: Session, name: str, streams: Streams, signals: Signals) -> bool:
    try:
        return streams.are_of(session.insist("containers.get", signals.pause, id=name))
    except DaemonError as error:
        if not not_found(error, "container"):
            raise
    return False


def _pull(session: Session, params: dict[str, Any], quiet: bool, signals: Signals) -> None:
    from ctd.cli.pull import pull_image

    with signals.interrupting():
        pull_image(session, params["image"], quiet=quiet, snapshotter=params.get("snapshotter"))


def _start(session: Session, foreground: Foreground, name: str, signals: Signals) -> None:
    """Start the container once; its end is asked for before, so that it cannot be missed."""
    while True:
        try:
            foreground.ask()
            session.call("containers.start", id=name)
        except ConnectionLost:
            session.reconnect(signals.pause)
            container = session.insist("containers.get", signals.pause, id=name)
            if container["status"] == "created":
                continue
        return


def _remove(session: Session, name: str, signals: Signals) -> None:
    """Remove the container, also if the daemon is just being replaced."""
    try:
        session.insist("containers.delete", signals.pause, id=name, force=True)
    except Interrupted:
        say(f"container {name} is not removed")
        raise
    except CommandFailed as error:
        if not not_found(error, "container"):
            say(f"container {name} is not removed: {error.message}")


def _name(options: argparse.Namespace) -> str:
    return options.name or os.urandom(6).hex()


COMMANDS = {
    "run": (run_options, run),
    "create": (create_options, create),
    "start": (start_options, start),
}
