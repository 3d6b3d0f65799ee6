"""``ctd ps``, ``inspect``, ``wait`` and ``rm``."""

from __future__ import annotations

import json

from ctd.cli.errors import DAEMON_FAILED, ConnectionLost, DaemonError
from ctd.cli.output import age, complain, json_lines, optional, shortened, table
from ctd.cli.session import for_each, not_found

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from datetime import datetime
    from typing import Any

    from ctd.cli.session import Session


def ps_options(parser: argparse.ArgumentParser) -> None:
    """Options of ps."""
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="also those that do not run")
    add("-q", "--quiet", action="store_true", help="ids only")
    add("--no-trunc", action="store_true", help="commands in full")
    add("-A", "--all-namespaces", action="store_true")
    add("--json", action="store_true", help="one JSON object a line")


def ps(session: Session, options: argparse.Namespace) -> int:
    """List the containers of the namespace, newest first."""
    found = [
        container
        for container in session.items("containers.list", all_namespaces=options.all_namespaces)
        if options.all or container["status"] in ("running", "paused")
    ]
    found.sort(key=lambda container: str(container["created_at"]), reverse=True)
    if options.json:
        json_lines(found)
    elif options.quiet:
        for container in found:
            print(container["id"])
    else:
        from datetime import UTC, datetime

        now = datetime.now(UTC)
        space = optional(options.all_namespaces)
        table(
            (*space("NAMESPACE"), "CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS"),
            [
                (
                    *space(container["namespace"]),
                    container["id"],
                    container["image"] or "-",
                    _command(container["args"], options.no_trunc),
                    f"{age(container['created_at'], now)} ago",
                    status(container, now),
                )
                for container in found
            ],
        )
    return 0


def status(container: dict[str, Any], now: datetime) -> str:
    """A container's status as docker words it: ``Exited (0) 2 minutes ago``."""
    match container["status"]:
        case "created":
            return "Created"
        case "stopped":
            ended = container["exited_at"]
            when = f" {age(ended, now)} ago" if ended else ""
            reason = container["exit_reason"]
            note = f", {reason}" if reason not in (None, "exited", "signalled") else ""
            return f"Exited ({container['exit_status']}{note}){when}"
        case other:
            paused = " (Paused)" if other == "paused" else ""
            return f"Up {age(container['started_at'], now)}{paused}"


def _command(args: list[str], whole: bool) -> str:
    text = json.dumps(" ".join(args), ensure_ascii=False)
    return text if whole else shortened(text, 22)


def inspect_options(parser: argparse.ArgumentParser) -> None:
    """Options of inspect."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def inspect(session: Session, options: argparse.Namespace) -> int:
    """Print containers and their processes as a JSON array."""
    found = []
    for name in options.containers:
        container = session.call("containers.get", id=name)
        container["processes"] = list(session.items("processes.list", container=name))
        found.append(container)
    if options.json:
        json_lines(found)
    else:
        print(json.dumps(found, indent=4, ensure_ascii=False))
    return 0


def wait_options(parser: argparse.ArgumentParser) -> None:
    """Options of wait."""
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def wait(session: Session, options: argparse.Namespace) -> int:
    """Print the exit status of each container; the last one's is the command's own."""
    left = list(options.containers)
    calls: list[int] = []
    status, failed = 0, False
    while left:
        try:
            calls = calls or [session.send("containers.wait", id=name) for name in left]
            status = session.connection.reply(calls[0])["exit_status"]
        except ConnectionLost:
            session.reconnect()
            calls = []
            continue
        except DaemonError as error:
            if error.passing:
                session.reconnect()
                calls = []
                continue
            complain(error)
            failed = True
        else:
            print(status, flush=True)
        del left[0], calls[0]
    return DAEMON_FAILED if failed else status


def rm_options(parser: argparse.ArgumentParser) -> None:
    """Options of rm."""
    parser.add_argument("-f", "--force", action="store_true", help="also if it runs, or is gone")
    parser.add_argument("containers", nargs="+", metavar="CONTAINER")


def rm(session: Session, options: argparse.Namespace) -> int:
    """Remove containers and print the id of each."""

    def one(name: str) -> str | None:
        try:
            session.call("containers.delete", id=name, force=options.force)
        except DaemonError as error:
            if not (options.force and not_found(error, "container")):
                raise
            return None
        return name

    return for_each(options.containers, one)


COMMANDS = {
    "ps": (ps_options, ps),
    "inspect": (inspect_options, inspect),
    "wait": (wait_options, wait),
    "rm": (rm_options, rm),
}
