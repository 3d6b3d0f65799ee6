"""``ctd events``: what happened, and what happens."""

from __future__ import annotations

import json

from ctd.cli.errors import ConnectionLost, DaemonError
from ctd.cli.output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ctd.cli.session import Session


def events_options(parser: argparse.ArgumentParser) -> None:
    """Options of events."""
    add = parser.add_argument
    add("--since", type=int, metavar="SEQ", help="only those after this one; default: all, -f: new")
    add("-f", "--follow", action="store_true", help="go on with new ones, across daemons too")
    add("--topic", action="append", default=[], help="only these, like container.exited or image.*")
    add("-A", "--all-namespaces", action="store_true")
    add("--json", action="store_true", help="one JSON object a line")
    add("-q", "--quiet", action="store_true", help="sequence numbers only")


def events(session: Session, options: argparse.Namespace) -> int:
    """Print events, oldest first."""
    show = _Printer(options)
    selection = {"topics": options.topic, "all_namespaces": options.all_namespaces}
    if options.follow:
        return _follow(session, show, selection)
    since = options.since or 0
    while True:
        page = session.call("events.list", since=since, limit=1000, **selection)
        if page.get("trimmed"):
            show.trimmed(page["trimmed"])
        for event in page["items"]:
            show.event(event)
        if page["next"] is None:
            return 0
        since = page["next"]


def _follow(session: Session, show: _Printer, selection: dict[str, Any]) -> int:
    while True:
        since = {} if show.since is None else {"since": show.since}
        try:
            session.call("events.subscribe", show.told, **since, **selection)
        except ConnectionLost:
            pass
        except DaemonError as error:
            if not error.passing:
                raise
        session.reconnect()


class _Printer:
    """Prints events and knows where it is."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._json = options.json
        self._quiet = options.quiet
        self.since: int | None = options.since

    def told(self, method: str, params: dict[str, Any]) -> None:
        """Take a notification of ``events.subscribe``."""
        if method != "event":
            return
        if "subscribed" in params:
            self.since = params["subscribed"]["since"]
        if "trimmed" in params:
            self.trimmed(params["trimmed"])
        if "event" in params:
            self.event(params["event"])

    def event(self, event: dict[str, Any]) -> None:
        """Print one."""
        self.since = event["seq"]
        if self._json:
            print(json.dumps(event, ensure_ascii=False), flush=True)
        elif self._quiet:
            print(event["seq"], flush=True)
        else:
            facts = " ".join(f"{key}={_word(value)}" for key, value in event["data"].items())
            print(
                event["seq"],
                event["at"],
                event["namespace"],
                event["topic"],
                event["subject"],
                facts,
                flush=True,
            )

    def trimmed(self, trimmed: dict[str, Any]) -> None:
        """Tell that events are missing."""
        say(f"events before {trimmed['oldest']} are no longer kept")


def _word(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)


COMMANDS = {"events": (events_options, events)}
