"""Blobs brought from a registry, in memory, into a store that keeps what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ctd.errors import AlreadyExists
from ctd.fetch.errors import RegistryUnavailable, TransferBroken
from ctd.fetch.reference import Reference
from ctd.images.download import ATTEMPTS, Downloads
from ctd.model import Descriptor
from tests.unit.fetch.stage import BLOB, LAYER, Reply, Request, Stage

REF = Reference.parse("reg.example/a/b:1")


class KeptIngest:
    """An ingest whose bytes stay when it is closed."""

    def __init__(self, store: KeptContent, descriptor: Descriptor) -> None:
        self.store, self.descriptor = store, descriptor
        self.ref = str(descriptor.digest)
        self.data = store.partial.setdefault(self.ref, bytearray())

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes) -> None:
        self.data += data

    async def commit(self, labels: Mapping[str, str] | None = None) -> None:
        self.store.blobs[self.ref] = bytes(self.data)

    async def close(self) -> None:
        self.store.open -= 1


class KeptContent:
    """A content store as far as downloads need one."""

    def __init__(self) -> None:
        self.partial: dict[str, bytearray] = {}
        self.blobs: dict[str, bytes] = {}
        self.open = 0

    async def ingest(self, ref: str, descriptor: Descriptor) -> KeptIngest:
        if ref in self.blobs:
            raise AlreadyExists("blob", ref)
        self.open += 1
        return KeptIngest(self, descriptor)


class DownloadsTests(SynchronousTestCase):
    """Downloads, whole and in pieces."""

    def setUp(self) -> None:
        self.stage = Stage()
        self.content = KeptContent()
        self.heard: list[int] = []
        content: Any = self.content
        self.downloads = Downloads(self.stage.clock, self.stage.registry, content, 2)

    def fetch(self, plain_http: bool | None = None) -> None:
        work = self.downloads.fetch(REF, LAYER, self.heard.append, plain_http)
        running = self.stage.begin(work)
        for _ in range(40):
            self.stage.wait(0.5)
        self.successResultOf(running)
        self.assertEqual(self.content.open, 0)

    def test_once(self) -> None:
        """A blob comes once, and its progress ends at its size."""
        self.fetch()
        self.fetch()
        self.assertEqual(self.content.blobs, {str(LAYER.digest): BLOB})
        self.assertEqual(self.heard[-1], LAYER.size)
        self.assertEqual(len(self.stage.network.requests), 1)

    def test_plain_http(self) -> None:
        """How the registry is spoken to is handed on."""
        self.stage.network.servers["http://reg.example:80"] = self.stage.fake
        self.fetch(plain_http=True)
        self.assertEqual(self.stage.network.requests[0].origin, "http://reg.example:80")

    def test_resumed(self) -> None:
        """A transfer that breaks goes on where it broke, however often it does."""

        def change(request: Request, reply: Reply) -> Reply:
            reply.sent, reply.close = 1000, True
            return reply

        self.stage.fake.change = change
        self.fetch()
        self.assertEqual(self.content.blobs, {str(LAYER.digest): BLOB})
        ranges = [request.headers.get("Range") for request in self.stage.network.requests]
        self.assertEqual(ranges[:3], [None, "bytes=1000-", "bytes=2000-"])

    def test_server_without_ranges(self) -> None:
        """A server that starts again at 0 is skipped through to where the transfer broke."""
        sent = [9000]

        def change(request: Request, reply: Reply) -> Reply:
            return Reply(200, BLOB, sent=sent.pop() if sent else None, close=True)

        self.stage.fake.change = change
        self.fetch()
        self.assertEqual(self.content.blobs, {str(LAYER.digest): BLOB})
        self.assertEqual(self.heard, sorted(self.heard))

    def test_registry_comes_back(self) -> None:
        """A registry that is away for a moment does not end a download."""
        away = [Reply(503), Reply(503)]
        self.stage.fake.change = lambda request, reply: away.pop() if away else reply
        self.fetch()
        self.assertEqual(self.content.blobs, {str(LAYER.digest): BLOB})

    def test_given_up(self) -> None:
        """Attempts that bring nothing are counted and end; what came before is kept."""
        for reply, error in (
            (Reply(503), RegistryUnavailable),
            (Reply(200, BLOB, sent=0, close=True), TransferBroken),
        ):
            self.stage.network.requests.clear()
            self.stage.fake.change = lambda request, _, reply=reply: reply
            work = self.downloads.fetch(REF, LAYER, self.heard.append)
            running = self.stage.begin(work)
            for _ in range(40):
                self.stage.wait(0.5)
            self.failureResultOf(running, error)
            self.assertEqual(len(self.stage.network.requests), ATTEMPTS)
            self.assertEqual(self.content.open, 0)
