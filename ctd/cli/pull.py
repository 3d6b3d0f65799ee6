"""``ctd pull``, and how far a pull is."""

from __future__ import annotations

import os
import sys
import time

from ctd.cli.output import shortened, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, TextIO

    from ctd.cli.session import Session

#: Seconds between two drawings of the block on a terminal.
_INTERVAL = 0.1
_BAR = 24


def pull_options(parser: argparse.ArgumentParser) -> None:
    """Options of pull."""
    add = parser.add_argument
    add("-q", "--quiet", action="store_true", help="print nothing but the image's name")
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="default: this machine's")
    add("--snapshotter", help="where it is unpacked: overlayfs, native")
    add(
        "--plain-http",
        action="store_true",
        default=None,
        help="no TLS; default: on loopback addresses only",
    )
    add("images", nargs="+", metavar="IMAGE")


def pull(session: Session, options: argparse.Namespace) -> int:
    """Pull images one after the other and print their full names and digests."""
    for ref in options.images:
        image = pull_image(
            session,
            ref,
            quiet=options.quiet,
            platform=options.platform,
            snapshotter=options.snapshotter,
            plain_http=options.plain_http,
        )
        name = image["name"]
        print(name if options.quiet else f"{name} {image['target']['digest']}", flush=True)
    return 0


def pull_image(session: Session, ref: str, *, quiet: bool, **params: Any) -> dict[str, Any]:
    """Pull *ref*, telling on standard error how far it is unless *quiet*."""
    given = {key: value for key, value in params.items() if value is not None}
    if quiet:
        image: dict[str, Any] = session.call("images.pull", ref=ref, **given)
        return image
    report = Block(sys.stderr) if sys.stderr.isatty() else Lines(ref, sys.stderr)
    try:
        image = session.call("images.pull", report.told, ref=ref, **given)
    finally:
        report.close()
    return image


class Lines:
    """A line for each thing that happens: for files and pipes."""

    def __init__(self, ref: str, out: TextIO) -> None:
        self._ref = ref
        self._out = out
        self._seen: set[tuple[str, str]] = set()

    def told(self, _: str, progress: dict[str, Any]) -> None:
        """Take a ``progress`` notification."""
        self._once(self._ref, progress["phase"])
        for layer in progress["layers"]:
            if layer["state"] in ("downloaded", "unpacked", "exists"):
                self._once(short_digest(layer["digest"]), layer["state"], size(layer["total"]))

    def close(self) -> None:
        """The pull has ended."""

    def _once(self, what: str, state: str, detail: str = "") -> None:
        if (what, state) not in self._seen:
            self._seen.add((what, state))
            print(f"{what}: {state} {detail}".rstrip(), file=self._out, flush=True)


class Block:
    """A line a layer, drawn over and over: for terminals."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._height = 0
        self._drawn_at = 0.0
        self._latest: dict[str, Any] | None = None

    def told(self, _: str, progress: dict[str, Any]) -> None:
        """Take a ``progress`` notification."""
        self._latest = progress
        if time.monotonic() - self._drawn_at >= _INTERVAL:
            self._draw()

    def close(self) -> None:
        """Draw the end."""
        self._draw()

    def _draw(self) -> None:
        if self._latest is None:
            return
        width, rows = os.get_terminal_size(self._out.fileno())
        width, rows = width or 80, rows or 24  # a terminal may not know its size
        lines = [shortened(line, max(width - 1, 10)) for line in block(self._latest, rows - 1)]
        back = f"\x1b[{self._height}A\r" if self._height else ""
        self._out.write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._height, self._latest, self._drawn_at = len(lines), None, time.monotonic()


def block(progress: dict[str, Any], rows: int) -> list[str]:
    """The lines that show *progress*, at most *rows* of them: layers under way come first."""
    layers = progress["layers"]
    room = max(rows - 1, 0)
    if len(layers) > room:
        order = {"unpacked": 2, "exists": 2, "waiting": 1}
        layers = sorted(layers, key=lambda layer: order.get(layer["state"], 0))[:room]
    lines = [_layer(layer) for layer in layers]
    amount = f" {size(progress['downloaded'])} of {size(progress['total'])}"
    return [*lines, progress["phase"] + (amount if progress["total"] else "")]


def _layer(layer: dict[str, Any]) -> str:
    total, state = layer["total"], layer["state"]
    line = f"{short_digest(layer['digest'])}  {state:<12}"
    if state == "downloading":
        return f"{line}{_bar(layer['downloaded'], total)} {size(layer['downloaded'])}/{size(total)}"
    if state == "downloaded":
        return f"{line}{_bar(layer['unpacked'], total)} {size(total)}"
    return f"{line}{size(total)}"


def _bar(done: int, total: int) -> str:
    filled = _BAR if total <= 0 else min(_BAR, done * _BAR // total)
    return f"[{'=' * filled}{' ' * (_BAR - filled)}]"


def short_digest(digest: str) -> str:
    """The first twelve digits of a digest, as images and layers are known to people."""
    return digest.partition(":")[2][:12]


COMMANDS = {"pull": (pull_options, pull)}
