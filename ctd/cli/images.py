"""``ctd images``, ``tag`` and ``rmi``."""

from __future__ import annotations

from ctd.cli.output import age, json_lines, optional, size, table
from ctd.cli.pull import short_digest
from ctd.cli.session import for_each

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ctd.cli.session import Session


def images_options(parser: argparse.ArgumentParser) -> None:
    """Options of images."""
    add = parser.add_argument
    add("-q", "--quiet", action="store_true", help="names only")
    add("-A", "--all-namespaces", action="store_true")
    add("--json", action="store_true", help="one JSON object a line")


def images(session: Session, options: argparse.Namespace) -> int:
    """List the images of the namespace."""
    found = list(session.items("images.list", all_namespaces=options.all_namespaces))
    if options.json:
        json_lines(found)
    elif options.quiet:
        for image in found:
            print(image["name"])
    else:
        from datetime import UTC, datetime

        now = datetime.now(UTC)
        space = optional(options.all_namespaces)
        table(
            (*space("NAMESPACE"), "IMAGE", "DIGEST", "CREATED", "SIZE"),
            [
                (
                    *space(image["namespace"]),
                    image["name"],
                    short_digest(image["target"]["digest"]),
                    f"{age(image['created_at'], now)} ago",
                    size(image["size"]),
                )
                for image in found
            ],
        )
    return 0


def tag_options(parser: argparse.ArgumentParser) -> None:
    """Options of tag."""
    parser.add_argument("source", metavar="IMAGE")
    parser.add_argument("target", metavar="NAME")


def tag(session: Session, options: argparse.Namespace) -> int:
    """Give an image another name."""
    session.call("images.tag", source=options.source, target=options.target)
    return 0


def rmi_options(parser: argparse.ArgumentParser) -> None:
    """Options of rmi."""
    parser.add_argument("images", nargs="+", metavar="IMAGE")


def rmi(session: Session, options: argparse.Namespace) -> int:
    """Remove images by name, and print each."""

    def one(ref: str) -> str:
        session.call("images.delete", ref=ref)
        return ref

    return for_each(options.images, one)


COMMANDS = {
    "images": (images_options, images),
    "tag": (tag_options, tag),
    "rmi": (rmi_options, rmi),
}
