"""What storage offers: content by digest, snapshots as a tree, layers unpacked, garbage swept.

*Content* is blobs under their digests; a blob has that name only once its
bytes hash to it and are on disk.  An *ingest* is a blob on its way, under a
*ref* chosen by the writer.  A *snapshot* is a root file system or a part of
one: *active* and *view* snapshots are named by a *key*, *committed* ones by a
*name*; a layer's name is its *chain ID* (image-spec, config.md, "Layer
ChainID").

Content and committed layers are the whole daemon's, so that namespaces share
them; they have the namespace :data:`SHARED`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum

import attrs
from zope.interface import Attribute, Interface

from ctd.database import Transaction
from ctd.model import Descriptor, Digest, Mount

#: The namespace of what all namespaces share.
SHARED = ""


@attrs.frozen
class BlobInfo:
    """A stored blob.  :ivar size: in bytes."""

    digest: Digest
    size: int
    created_at: datetime
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class IngestInfo:
    """A blob on its way.

    :ivar offset: the bytes that are on disk.
    :ivar total: the bytes it will have.
    """

    ref: str
    offset: int
    total: int
    expected: Digest
    started_at: datetime


class IIngest(Interface):
    """The one open writer of a ref."""

    ref = Attribute("str")
    offset = Attribute("int: how many bytes have been taken; the next write goes there.")

    async def write(data: bytes) -> None:
        """Append *data*.

        Gives control back as soon as the data may be taken; at most a few MiB
        wait for the disk.

        :raise ResourceExhausted: more than the declared size, or the disk is full.
        """

    async def commit(labels: Mapping[str, str] | None = None) -> BlobInfo:
        """Check size and digest, put the file on disk, give it its name; closes the ingest.

        If the digest is there already, what was written is dropped.  On an
        error what was written is dropped too: it can never become right.

        :raise DigestMismatch: the bytes hash to something else.
        :raise SizeMismatch: fewer bytes came than were declared.
        """

    async def close() -> None:
        """Stop writing and keep what is there, to be resumed by ref.  Can be repeated."""

    async def discard() -> None:
        """Stop writing and forget what was written.  Can be repeated."""


class ISource(Interface):
    """A blob to read while it may still be arriving."""

    descriptor = Attribute("Descriptor: what it is or will be.")

    async def verified() -> None:
        """Wait until the blob is committed.  Raises what ended it, if it never will be."""


class IContentStore(Interface):
    """Blobs by digest."""

    async def info(digest: Digest) -> BlobInfo:
        """What is stored.  :raise NotFound: it is not here."""

    async def read(digest: Digest, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a blob, at most :data:`READ_LIMIT` of them.

        :raise NotFound: it is not here.
        :raise ResourceExhausted: more was asked for than :data:`READ_LIMIT`.
        """

    async def ingest(ref: str, expected: Descriptor) -> IIngest:
        """Open *ref* for writing, going on where an earlier writer stopped.

        What an earlier writer left is hashed again before this returns; if it
        was for another digest it is dropped.

        :raise AlreadyExists: the content is here already.
        :raise IngestBusy: another writer has *ref* open.
        """

    def source(expected: Descriptor) -> ISource:
        """The blob *expected*, stored, arriving, or still to come, for an unpacker to read."""

    async def put(descriptor: Descriptor, data: bytes, children: Sequence[Digest] = ()) -> BlobInfo:
        """Store a small blob at once; *children* are blobs it keeps alive.  Can be repeated.

        :raise DigestMismatch: *data* does not hash to the digest.
        """

    async def list() -> Sequence[BlobInfo]:
        """Every blob, by digest."""

    async def ingests() -> Sequence[IngestInfo]:
        """Every ingest, open or left."""

    async def abort(ref: str) -> None:
        """Forget a ref that nobody writes.  :raise NotFound:, :raise IngestBusy:."""

    async def delete(digest: Digest) -> None:
        """Remove a blob.  :raise NotFound: it is not here."""


#: The most bytes one :meth:`IContentStore.read` gives.
READ_LIMIT = 8 << 20


class SnapshotKind(Enum):
    """What may be done with a snapshot."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


@attrs.frozen
class SnapshotInfo:
    """A snapshot's record.

    :ivar key: its key, or its name if committed.
    :ivar parent: a committed snapshot's name.
    """

    namespace: str
    key: str
    kind: SnapshotKind
    parent: str | None
    created_at: datetime
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)


@attrs.frozen
class Usage:
    """What a snapshot holds beyond its parent.  :ivar size: bytes on disk."""

    size: int
    inodes: int


class ISnapshotter(Interface):
    """Root file systems as a tree of snapshots (one kind of storage: overlay, native ...).

    *namespace* is the first argument of every call; parents are looked up in
    the same namespace, then in :data:`SHARED`.
    """

    name = Attribute("str: ``overlayfs``, ``native`` ...")
    capabilities = Attribute(
        "frozenset[str]: ``rebase`` if a snapshot prepared without a parent may be"
        " committed onto one, so that layers can be unpacked side by side."
    )

    async def prepare(
        namespace: str, key: str, parent: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]:
        """Make an active snapshot: *parent*'s files, to be written to.

        :raise AlreadyExists: *key* is taken.
        :raise NotFound: there is no committed snapshot *parent*.
        """

    async def view(
        namespace: str, key: str, parent: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]:
        """Make a snapshot whose mounts are read-only.  Errors as for :meth:`prepare`."""

    async def mounts(namespace: str, key: str) -> Sequence[Mount]:
        """The mounts of an active or view snapshot, the same ones each time.

        :raise NotFound: there is no such key.
        """

    async def commit(
        namespace: str,
        name: str,
        key: str,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
    ) -> None:
        """Make *key* read-only as *name*; its files are on disk first.  *key* is gone then.

        :param parent: with ``rebase``, the committed snapshot it is to lie on.
        :param target: the namespace of *name*, if not *namespace*.
        :raise AlreadyExists: *name* is taken; *key* stays active.
        :raise NotFound: there is no such key or parent.
        :raise FailedPrecondition: *key* is a view, or *parent* given without ``rebase``.
        """

    async def remove(namespace: str, key: str) -> None:
        """Remove a snapshot and its files.  They must not be mounted.

        :raise NotFound: there is no such key or name.
        :raise FailedPrecondition: other snapshots lie on it.
        """

    async def info(namespace: str, key: str) -> SnapshotInfo:
        """Its record.  :raise NotFound: there is no such key or name."""

    async def list(namespace: str | None = None) -> Sequence[SnapshotInfo]:
        """All records, or one namespace's, by namespace and key."""

    async def usage(namespace: str, key: str) -> Usage:
        """What it holds.  :raise NotFound: there is no such key or name."""

    async def recover() -> None:
        """At start: finish or undo what was cut off, remove directories without a record."""


@attrs.frozen
class Layer:
    """A layer to unpack.

    :ivar blob: the layer blob.
    :ivar diff_id: the digest of its uncompressed tar.
    :ivar chain_id: the name its snapshot will have.
    """

    blob: Descriptor
    diff_id: Digest
    chain_id: str


@attrs.frozen
class UnpackProgress:
    """How far a layer is.  :ivar read: bytes of the blob unpacked so far."""

    read: int
    entries: int


class IUnpacker(Interface):
    """Layer blobs made into committed snapshots, in worker processes."""

    async def unpack(
        snapshotter: str,
        layer: Layer,
        parent: Awaitable[str | None],
        source: ISource,
        progress: Callable[[UnpackProgress], None] | None = None,
    ) -> str:
        """Unpack *layer* onto *parent* and give its chain ID.

        Where the snapshotter can rebase, unpacking begins at once, while
        *source* and *parent* are still on their way.  The snapshot is
        committed only when the parent is, the source is verified, and the
        tar's digest is the diff ID.  Any number may ask for the same chain ID
        at once: it is unpacked once.  If it is committed already, nothing is
        read.  On an error nothing is left.

        :param parent: the chain ID below, or None for the first layer.
        :raise DiffIDMismatch: the tar hashes to something else.
        :raise LayerMalformed: not what its media type says, torn, or hostile:
            ``entry`` names where and ``reason`` what.
        :raise LayerTooLarge: over a budget of bytes or entries.
        :raise WorkerDied: the worker process was killed; may be tried again.
        """


@attrs.frozen
class Resource:
    """A thing garbage collection knows: ``kind`` is ``content`` or ``snapshot/<snapshotter>``.

    :ivar key: a digest, or ``namespace/key`` of a snapshot.
    """

    kind: str
    key: str


@attrs.frozen
class Collected:
    """What a collection removed.  :ivar size: bytes of content given back."""

    removed: tuple[Resource, ...]
    kept: int
    size: int


class IGarbageCollector(Interface):
    """Mark and sweep: what no root leads to is removed."""

    def add_roots(roots: Callable[[Transaction], Sequence[Resource]]) -> None:
        """Ask *roots* (in a transaction) at every collection what must stay."""

    def hold(resources: Sequence[Resource]) -> Callable[[], None]:
        """Keep *resources*, there or still to come, until what is given back is called.

        For operations under way: taken before the operation looks whether a
        resource is there, it makes looking and using one step to the collector.
        """

    async def collect(dry_run: bool = False) -> Collected:
        """Remove what nothing leads to.  Can be cut at any step and run again."""
