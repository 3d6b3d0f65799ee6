"""What the content store does at start: look, decide, and put right.

:func:`scan` looks at the disk, :func:`plan` compares it with the records, and
:meth:`ctd.storage.content.ContentStore.recover` does what was decided.  Every
step can be cut and run again: what was done is not found the next time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from ctd.errors import InvalidArgument
from ctd.model import Digest
from ctd.storage.disk import make_directory, sync_directory
from ctd.storage.trees import remove_tree

ALGORITHMS = ("sha256", "sha512")


@attrs.frozen
class Found:
    """What is on disk.

    :ivar blobs: sizes by digest.
    :ivar strays: files among the blobs that no blob can have, relative to the content root.
    :ivar ingests: ids of ingest directories, and whether they hold a file.
    """

    blobs: Mapping[Digest, int]
    strays: Sequence[Path]
    ingests: Mapping[str, bool]


@attrs.frozen
class Left:
    """A recorded ingest.  :ivar boot: the boot it was begun in."""

    ref: str
    id: str
    digest: Digest
    boot: str


@attrs.frozen
class Repair:
    """What to do.

    :ivar adopt: blobs to record, with their sizes: their files were in place
        (a file gets there verified and synced), the record was cut off.
    :ivar lost: recorded blobs that have no file.
    :ivar damaged: recorded blobs whose file has another size.
    :ivar aside: files to put into quarantine, relative to the content root.
    :ivar forget: refs of ingests to drop.
    :ivar sweep: ids of ingest directories to remove.
    """

    adopt: Mapping[Digest, int]
    lost: Sequence[Digest]
    damaged: Sequence[Digest]
    aside: Sequence[Path]
    forget: Sequence[str]
    sweep: Sequence[str]


def scan(root: Path) -> Found:
    """Look at the content directory *root*; its frame is made if it is not there."""
    blobs: dict[Digest, int] = {}
    strays = []
    for algorithm in ALGORITHMS:
        directory = root / "blobs" / algorithm
        make_directory(directory)
        for file in directory.iterdir():
            try:
                digest = Digest.parse(f"{algorithm}:{file.name}")
            except InvalidArgument:
                strays.append(file.relative_to(root))
                continue
            if file.is_symlink() or not file.is_file():
                strays.append(file.relative_to(root))
                continue
            blobs[digest] = file.stat().st_size
    make_directory(root / "ingest")
    ingests = {d.name: (d / "data").is_file() for d in (root / "ingest").iterdir()}
    return Found(blobs, strays, ingests)


def plan(found: Found, records: Mapping[Digest, int], left: Sequence[Left], boot: str) -> Repair:
    """Decide what to do.

    An ingest goes if it has no file, or its blob is there; and if the machine
    was started again since: what was not synced may be missing in its middle.
    """
    damaged = [d for d, size in records.items() if found.blobs.get(d, size) != size]
    stored = (found.blobs.keys() | records.keys()) - set(damaged)
    kept = [
        ingest
        for ingest in left
        if found.ingests.get(ingest.id) and ingest.boot == boot and ingest.digest not in stored
    ]
    return Repair(
        adopt={d: size for d, size in found.blobs.items() if d not in records},
        lost=[d for d in records if d not in found.blobs],
        damaged=damaged,
        aside=[Path("blobs", d.algorithm, d.hex) for d in damaged] + list(found.strays),
        forget=[i.ref for i in left if i not in kept],
        sweep=sorted(found.ingests.keys() - {i.id for i in kept}),
    )


def put_right(root: Path, repair: Repair) -> None:
    """Do the part of *repair* that is on disk."""
    for file in repair.aside:
        make_directory(root / "quarantine")
        (root / file).rename(root / "quarantine" / f"{file.parent.name}-{file.name}")
    for id in repair.sweep:
        remove_tree(root / "ingest" / id)
    for algorithm in ALGORITHMS:
        sync_directory(root / "blobs" / algorithm)
