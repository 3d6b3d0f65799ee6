"""``ctd exec``: another process in a container that runs."""

from __future__ import annotations

import os

from ctd.cli.arguments import command_words, process_options, process_params
from ctd.cli.errors import CommandFailed, ConnectionLost, DaemonError
from ctd.cli.foreground import Foreground
from ctd.cli.forwarding import Signals
from ctd.cli.session import not_found
from ctd.cli.streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ctd.cli.session import Session


def exec_options(parser: argparse.ArgumentParser) -> None:
    """Options of exec."""
    parser.add_argument("-d", "--detach", action="store_true", help="do not wait for it to end")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    process_options(parser)
    command_words(parser, "CONTAINER")


def exec_(session: Session, options: argparse.Namespace) -> int:
    """Start the process, and watch it unless detached."""
    container, command = options.split(options.words)
    if not command:
        raise CommandFailed("exec: no command is given", "ctd exec CONTAINER CMD [ARG...]")
    which = {"container": container, "id": os.urandom(6).hex()}
    given = {k: v for k, v in process_params(options).items() if v not in (None, False, [])}
    params = {**which, "args": command, **given}
    if options.detach:
        session.call("processes.exec", **params)
        return 0
    with Signals() as signals, Streams(options.interactive) as streams:
        started = False
        try:
            _start(session, {**params, "stdio": streams.stdio}, streams, signals)
            started = True
            streams.begin()
            foreground = Foreground(session, streams, signals, "processes", which)
            return foreground.watch()
        finally:
            if started:
                _forget(session, which, signals)


def _start(session: Session, params: dict[str, Any], streams: Streams, signals: Signals) -> None:
    """Start the process once, whatever happens to the daemon meanwhile."""
    which = {"container": params["container"], "id": params["id"]}
    while True:
        try:
            session.call("processes.exec", **params)
        except ConnectionLost:
            session.reconnect(signals.pause)
            try:
                if streams.are_of(session.insist("processes.get", signals.pause, **which)):
                    return
            except DaemonError as error:
                if not not_found(error, "process"):
                    raise
        else:
            return


def _forget(session: Session, which: dict[str, str], signals: Signals) -> None:
    try:
        session.insist("processes.delete", signals.pause, **which)
    except CommandFailed:
        pass  # its record goes with the container at the latest


COMMANDS = {"exec": (exec_options, exec_)}
