"""``ctd info``, ``gc`` and ``call``."""

from __future__ import annotations

import json
import sys

from ctd.cli.errors import CommandFailed
from ctd.cli.output import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ctd.cli.session import Session


def info_options(parser: argparse.ArgumentParser) -> None:
    """Options of info."""
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def info(session: Session, options: argparse.Namespace) -> int:
    """Describe the daemon."""
    found = session.call("daemon.info")
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    width = max(map(len, found), default=0)
    for key, value in found.items():
        print(f"{key.replace('_', ' '):<{width}}  {_plain(value)}")
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "-" if value is None else str(value)


def gc_options(parser: argparse.ArgumentParser) -> None:
    """Options of gc."""
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not list what was removed")


def gc(session: Session, options: argparse.Namespace) -> int:
    """Remove what nothing needs, and tell what that was."""
    collected = session.call("gc.run", dry_run=options.dry_run)
    if options.json:
        print(json.dumps(collected, ensure_ascii=False))
        return 0
    if not options.quiet:
        for resource in collected["removed"]:
            print(f"{resource['kind']} {resource['key']}")
    verb = "would be removed" if options.dry_run else "removed"
    count = collected["removed_count"]
    if not options.quiet and count > len(collected["removed"]):
        print("...")
    print(f"{count} {verb}, {size(collected['size'])}; {collected['kept']} kept", file=sys.stderr)
    return 0


def call_options(parser: argparse.ArgumentParser) -> None:
    """Options of call."""
    parser.add_argument("method", metavar="METHOD", help="rpc.discover lists them all")
    parser.add_argument(
        "params", nargs="?", default="{}", metavar="JSON", help="an object; - for standard input"
    )
    parser.epilog = (
        "Notifications come as JSON lines before the result, on one line too\n"
        "unless it goes to a terminal."
    )


def call(session: Session, options: argparse.Namespace) -> int:
    """Call a method and print its result as JSON."""
    text = sys.stdin.read() if options.params == "-" else options.params
    try:
        params = json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"JSON: {error}", """like '{"id": "web"}'""") from None
    if not isinstance(params, dict):
        raise CommandFailed("JSON: parameters are an object", """like '{"id": "web"}'""")

    def notified(method: str, told: dict[str, Any]) -> None:
        print(json.dumps({"method": method, "params": told}, ensure_ascii=False), flush=True)

    # Given as they are: a namespace among them comes before --namespace.
    params = {"namespace": session.namespace, **params}
    connection = session.connection
    answer = connection.reply(connection.send(options.method, params, notified))
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(answer, indent=indent, ensure_ascii=False))
    return 0


COMMANDS = {"info": (info_options, info), "gc": (gc_options, gc), "call": (call_options, call)}
