"""Where the command begins: global options, the table of commands, and how each ends."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from ctd.cli.arguments import first_word
from ctd.cli.errors import DAEMON_FAILED, FAILED, USAGE, CommandFailed, DaemonError, Interrupted
from ctd.cli.output import complain
from ctd.cli.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    Options = argparse.Namespace
    #: Adds a command's options to its parser, and carries it out.
    Command = tuple[Callable[[argparse.ArgumentParser], None], Callable[[Session, Options], int]]

DEFAULT_SOCKET = "/run/ctd/ctd.sock"

#: Each command's module, which has it in its own ``COMMANDS``, and what it does.
COMMANDS = {
    "run": ("run", "run a command in a new container"),
    "create": ("run", "make a container without starting it"),
    "start": ("run", "start containers that were created"),
    "exec": ("exec", "run another command in a running container"),
    "ps": ("containers", "list containers"),
    "inspect": ("containers", "show all that is known of containers"),
    "wait": ("containers", "wait for containers to end; exits as the last one did"),
    "kill": ("stop", "send a signal to containers"),
    "stop": ("stop", "ask containers to end, then kill them"),
    "rm": ("containers", "remove containers"),
    "pull": ("pull", "fetch an image from its registry"),
    "images": ("images", "list images"),
    "tag": ("images", "give an image another name"),
    "rmi": ("images", "remove images"),
    "events": ("events", "show what happened, or what happens"),
    "info": ("daemon", "describe the daemon"),
    "gc": ("daemon", "remove content and snapshots that nothing needs"),
    "call": ("daemon", "call a method of the control protocol"),
}

#: Commands whose exit status is a process's own, so that ctd's errors are 125.
_RUN_LIKE = frozenset({"run", "create", "start", "exec", "wait"})

_EXIT_STATUS = """\
exit status:
  run, exec, wait   the process's own; 128+N if signal N ended it;
                    125 if ctd failed, 126 if the command cannot be executed,
                    127 if there is no such command
  the others        0, 1 if something failed
  all               2 for wrong usage (run and exec: 125), 130 after Ctrl-C

environment:
  CTD_HOST          the control socket, as with --host
  CTD_NAMESPACE     the namespace, as with --namespace

examples:
  ctd run --rm alpine echo hello
  ctd run -d --name web -e PORT=8080 registry.example/web:1
  ctd exec web ps
  ctd ps -a --json
  ctd events --since 0 -f
  ctd call containers.get '{"id": "web"}'
"""


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations and with a status of its own for wrong usage."""

    usage_status = USAGE

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong with the command line, and end."""
        self.exit(self.usage_status, f"ctd: {message}\n  (`{self.prog} --help` has the usage)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line and give its exit status."""
    _open_standard_streams()
    try:
        status = execute(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130
    return status


def execute(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Parse *argv*, find its command and run it."""
    parser = _global_parser()
    chosen = parser.parse_args(argv)
    name, arguments = first_word(parser, chosen.words, "COMMAND")
    if name not in COMMANDS:
        parser.error(f"there is no command {name!r}")
    module = importlib.import_module(f"ctd.cli.{COMMANDS[name][0]}")
    configure, carry_out = module.COMMANDS[name]
    sub = Parser(
        prog=f"ctd {name}",
        description=f"{COMMANDS[name][1].capitalize()}.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    if name in _RUN_LIKE:
        sub.usage_status = DAEMON_FAILED
    configure(sub)
    _add_global_options(sub)
    options = sub.parse_args(arguments)
    host = options.host or chosen.host or environ.get("CTD_HOST") or DEFAULT_SOCKET
    space = options.namespace or chosen.namespace or environ.get("CTD_NAMESPACE") or "default"
    session = Session(host.removeprefix("unix://"), space)
    try:
        return int(carry_out(session, options))
    except Interrupted as interrupted:
        return 128 + interrupted.signal
    except CommandFailed as error:
        complain(error)
        if name in _RUN_LIKE:
            return error.run_status if isinstance(error, DaemonError) else DAEMON_FAILED
        return FAILED
    finally:
        session.close()


def _global_parser() -> Parser:
    lines = "\n".join(f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(
        prog="ctd",
        usage="ctd [-H SOCKET] [-n NAMESPACE] COMMAND ...",
        description=f"Fetch images and run containers.\n\ncommands:\n{lines}\n\n"
        "`ctd COMMAND --help` describes one of them.",
        epilog=_EXIT_STATUS,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    _add_global_options(parser)
    parser.add_argument("--version", action=_Version, nargs=0, help="print ctd's version")
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add_global_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the daemon")
    group.add_argument("-H", "--host", metavar="SOCKET", help=f"default: {DEFAULT_SOCKET}")
    group.add_argument("-n", "--namespace", metavar="NAME", help="default: default")


class _Help(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal; argparse finds that out slowly, once for each option."""

    def __init__(self, prog: str) -> None:
        try:
            width = os.get_terminal_size(1).columns or 80
        except OSError:
            width = 80
        super().__init__(prog, width=width - 2)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ctd import __version__

        print(f"ctd {__version__}")
        parser.exit()


def _open_standard_streams() -> None:
    """See to it that no descriptor of ours takes the place of a closed standard stream."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
